"""The result of every attribution method: one number a component, with its unit and its completeness delta."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.arguments import Finite, NotNegative, checks_arguments
from igap.components import Site
from igap.engine.baselines import Baseline
from igap.engine.contrast import Contrast, contrasts
from igap.engine.forward import Route
from igap.errors import InputError
from igap.inputs.prompts import PromptPair
from igap.vocabulary import BaselineKind, Direction

Progress = Callable[[int, int], None]
"""Called with (components done, components in all), over all pairs."""


@checks_arguments
@dataclass(frozen=True, eq=False)
class AttributionMap:
    """Effects and scores of one method for every component of one site, of one prompt pair or the mean of several.

    Example:
        >>> ap = activation_patching(model, pair)
        >>> ap.method, ap.site, ap.score.shape
        ('ap', 'heads', torch.Size([4, 8]))
    """

    method: str
    """ig, ap, atp or atp_star."""
    site: Site
    effect: Float[Tensor, "layer component"]
    """Logits. Negative: moving the component to the baseline lowers F = logit[answer] - logit[distractor].
    Without a sign (`signed`), how far it moves F either way, at least 0."""
    gap: Finite
    """D = F(clean) - F(corrupted), in logits."""
    min_gap: NotNegative = 0.0
    """Logits. Below this absolute gap scores are missing (NaN): `least_gap` of the pair."""
    delta: Float[Tensor, " layer"] | None = None
    """IG only. Completeness delta in logits: (sum of the layer's effects) - (F(all of the site replaced) - F(x)).
    For the single path, where each component has its own completeness, the one farthest from 0: IG_c - AP_c.
    Of several pairs, the one farthest from 0."""
    layer_effect: Float[Tensor, " layer"] | None = None
    """IG only. F(all of the site replaced) - F(x), in logits; of delta's component and pair where those are chosen."""
    rounding: Float[Tensor, " layer"] | None = None
    """IG only. How far F's rounding alone may put delta from 0, in logits; of delta's pair. See `Contrast.rounding`."""
    n_steps: Int[Tensor, " layer"] | None = None
    """IG only. Quadrature nodes of the numbers given, the most of any pair."""
    converged: Bool[Tensor, " layer"] | None = None
    """IG with n_steps=auto only. Whether the nodes were enough for the tolerance; of several pairs, for every one."""
    effect_by_position: Float[Tensor, "layer pos component"] | None = None
    """Logits; sums to `effect` over positions. Only where asked for, of one pair."""
    signed: bool = True
    """Whether effect and score have a sign; if not they are magnitudes."""
    pairs: tuple["AttributionMap", ...] = ()
    """The maps of the pairs that this one is the mean of; empty for one pair."""

    @property
    def score(self) -> Float[Tensor, "layer component"]:
        """effect / gap: 0 no effect, -1 (noising) the component alone carries F all the way to the corrupted run.

        Of a map without sign effect / |gap|, at least 0. NaN everywhere when |gap| < min_gap or the gap is 0: a
        quotient by almost nothing says nothing. Over several pairs the mean of the scores that there are.
        """
        if self.pairs:
            return torch.stack([one.score for one in self.pairs]).nanmean(0)
        if not scores_exist(self.gap, self.min_gap):
            return torch.full_like(self.effect, float("nan"))
        return self.effect / (self.gap if self.signed else abs(self.gap))

    @checks_arguments
    def incomplete_layers(self, tolerance: NotNegative = 0.01) -> list[int]:
        """Layers whose |delta| is above `tolerance` times |layer_effect| and above rounding; empty without a delta."""
        if self.pairs:
            return sorted({layer for one in self.pairs for layer in one.incomplete_layers(tolerance)})
        if self.delta is None or self.layer_effect is None or self.rounding is None:
            return []
        bound = completeness_bound(self.layer_effect, self.rounding, tolerance)
        return [int(layer) for layer in (self.delta.abs() > bound).nonzero().flatten()]


def scores_exist(gap: float, min_gap: float) -> bool:
    """Whether a gap, in logits, is large enough to divide by."""
    return gap != 0 and abs(gap) >= min_gap


def completeness_bound(whole: Tensor, rounding: Tensor, tolerance: float) -> Tensor:
    """How far a completeness delta may be from 0, in logits: a share of the whole, or F's rounding."""
    return torch.maximum(tolerance * whole.abs(), rounding)


def per_component(attributions: Tensor, site: Site) -> Float[Tensor, "*rows pos component"]:
    """Attributions of a site's activation summed over d_head (heads) or as they are (neurons)."""
    return attributions.sum(-1) if site == "heads" else attributions


Advance = Callable[[int], None]
"""Called with the components done so far of the pairs at hand."""
Method = Callable[[Contrast, Advance], list[AttributionMap]]
"""One map a pair of the Contrast."""


def over_pairs(
    method: Method,
    model: TransformerBridge,
    pair: PromptPair | Sequence[PromptPair],
    site: Site,
    on_progress: Progress | None,
    *,
    baseline: BaselineKind | Baseline,
    direction: Direction,
    route: Route | None,
) -> AttributionMap:
    """The method's map of a pair, or the mean of several pairs' maps with each of them in `pairs`.

    Raises ValueError when there is no pair.
    """
    pairs = listed(pair)
    found: dict[int, AttributionMap] = {}
    with contrasts(model, pairs, baseline=baseline, direction=direction, route=route, sites=(site,)) as groups:
        for indices, question in groups:
            in_all = question.n_layers * question.n_components(site)

            def advance(done: int, before: int = len(found), at_once: int = len(indices), each: int = in_all) -> None:
                if on_progress:
                    on_progress(before * each + at_once * done, len(pairs) * each)

            found.update(zip(indices, method(question, advance), strict=True))
            advance(in_all)
    return mean([found[index] for index in range(len(pairs))])


def listed(pair: PromptPair | Sequence[PromptPair]) -> list[PromptPair]:
    """The pairs as a list. Raises ValueError when there is none."""
    pairs = [pair] if isinstance(pair, PromptPair) else list(pair)
    if not pairs:
        raise InputError("prompts: got no pair, wanted at least one.")
    return pairs


def mean(maps: Sequence[AttributionMap]) -> AttributionMap:
    """The mean of one method's maps of several pairs; one map as it is."""
    if len(maps) == 1:
        return maps[0]
    one = maps[0]
    delta = layer_effect = rounding = n_steps = converged = None
    if one.delta is not None:
        each = [torch.stack([getattr(m, name) for m in maps]) for name in ("delta", "layer_effect", "rounding")]
        worst = each[0].abs().argmax(0, keepdim=True)
        delta, layer_effect, rounding = (of_pairs.gather(0, worst)[0] for of_pairs in each)
    if one.n_steps is not None:
        n_steps = torch.stack([m.n_steps for m in maps if m.n_steps is not None]).amax(0)
    if one.converged is not None:
        converged = torch.stack([m.converged for m in maps if m.converged is not None]).all(0)
    return AttributionMap(
        method=one.method,
        site=one.site,
        effect=torch.stack([m.effect for m in maps]).mean(0),
        gap=sum(m.gap for m in maps) / len(maps),
        min_gap=one.min_gap,
        delta=delta,
        layer_effect=layer_effect,
        rounding=rounding,
        n_steps=n_steps,
        signed=one.signed,
        converged=converged,
        pairs=tuple(maps),
    )
