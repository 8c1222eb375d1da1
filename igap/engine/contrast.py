"""The question every method asks: what happens to F when a site moves from one activation to another?

`contrasts` borrows the model, makes the two runs of each pair, and fixes direction and baseline; a method then only
needs `Contrast.function` or `Contrast.patches` and the two ends of the path.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.components import SITES, Site
from igap.engine import baselines
from igap.engine.activations import Run, frozen, record
from igap.engine.baselines import Activations, Baseline
from igap.engine.batching import Rows, rows_a_pass
from igap.engine.decoder import Decoder
from igap.engine.forward import Engine, Route, Suffix, weights_or_reason
from igap.engine.hooks import Gradients, Hooks, PatchFunction, SiteFunction
from igap.errors import InputError
from igap.inputs.alignment import Partners
from igap.inputs.prompts import PromptPair, TokenPair, least_gap, tokenize
from igap.models.families import check_heads, check_neurons
from igap.vocabulary import BaselineKind, Direction, denoising_problem

EngineOf = Callable[[Sequence[TokenPair], Run, int], Engine]
"""Pairs, the run around the site and the first position that changes, to their engine."""

_PAIRS_A_PASS, _TOKENS_A_PASS = 64, 2048
"""A pass has a row of every pair at least, so that pairs of long prompts share none."""

_NUDGES = torch.arange(8) * 2.0**-20
"""Shares of a path that move F by less than it is rounded, but for a straight line."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """Runs of pairs that share a pass, and for each site and layer the activations they have and are moved to."""

    model: TransformerBridge
    pairs: tuple[TokenPair, ...]
    """Pairs of equal lengths whose activations change from one position on; axis `pair` of every tensor."""
    clean: Run
    corrupted: Run
    around: Run
    """The runs the site is changed in: clean when noising, corrupted when denoising."""
    replacement: Activations
    """a' for every site of the runs, one tensor a layer, at all positions of `around`; without a partner a stays."""
    first: int
    """The first position at which an activation changes."""
    engine: Engine
    engine_of: EngineOf
    """Makes the engine for some of the pairs."""
    route: Route
    why: str
    """Why this route, in a few words."""

    @property
    def gap(self) -> Tensor:
        """D = F(clean) - F(corrupted) of each pair, in logits, whatever the direction and baseline."""
        return self.clean.logit_diff - self.corrupted.logit_diff

    @property
    def least_gaps(self) -> list[float]:
        """The absolute gap, in logits, below which each pair has no scores."""
        return [
            least_gap(pair.min_gap, clean)
            for pair, clean in zip(self.pairs, self.clean.logit_diff.tolist(), strict=True)
        ]

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return len(self.around.residual)

    def n_components(self, site: Site) -> int:
        """Components of the site in one layer. Raises InputError on a site that was not asked for."""
        if site not in self.around.activations:
            raise InputError(f"site: got {site!r}, wanted one that was asked for. Add it to sites.")
        return self.around.activations[site][0].shape[2]

    def check(self, site: Site) -> None:
        """Raises InputError where the site's columns are not the model's components."""
        config = getattr(self.model.original_model, "config", None)
        if config is not None:
            check_columns = check_heads if site == "heads" else check_neurons
            check_columns(config, self.n_components(site), self.model.cfg.model_name)

    @property
    def widths(self) -> dict[Site, int | None]:
        """Components of each site in one layer, None of a site whose activations were not asked for."""
        return {site: self.n_components(site) if site in self.around.activations else None for site in SITES}

    def function(self, site: Site, layer: int) -> SiteFunction:
        """F as a function of this site's activation in this layer, at the positions from `first` on."""
        return self.engine.function(site, layer)

    def patches(self, site: Site, layer: int) -> PatchFunction:
        """F with single components of this site and layer moved from start to end."""
        return self.engine.patches(site, layer, *self.ends(site, layer))

    def ends(self, site: Site, layer: int) -> tuple[Tensor, Tensor]:
        """The path's start a (in the run) and end a' (its replacement), each `[pair, pos, ...]` from `first` on."""
        self.check(site)
        start, end = self.around.activations[site][layer], self.replacement[site][layer]
        return start[:, self.first :], end[:, self.first :]

    def moved(self, site: Site, layer: int) -> Tensor:
        """Whether a component's activation differs between the ends, `[pair, component]`; if not its effect is 0."""
        start, end = self.ends(site, layer)
        return (start != end).flatten(3).any(-1).any(1) if site == "heads" else (start != end).any(1)

    def path(self, site: Site, layer: int, few: list[int]) -> tuple[SiteFunction, Tensor, Tensor]:
        """`function` and `ends` of some of the pairs."""
        start, end = self.ends(site, layer)
        if len(few) == len(self.pairs):
            return self.function(site, layer), start, end
        return self._engine(few).function(site, layer), start[few], end[few]

    def gradients(self, site: Site, few: list[int], *, dropping: bool = False) -> Gradients:
        """dF/da of some of the pairs, where they are, layer by layer in any order; see `Hooks.gradients`."""
        return self._engine(few).gradients(site, dropping=dropping)

    def _engine(self, few: list[int]) -> Engine:
        if len(few) == len(self.pairs):
            return self.engine
        return self.engine_of([self.pairs[pair] for pair in few], self.around.of_pairs(few), self.first)

    def rounding(self, site: Site, rows: Rows) -> Float[Tensor, "pair layer"]:
        """How far rounding alone may put F(end) - F(start), or a sum that should be equal to it, in logits.

        Measured in layer 0: points so near to the start that F is a straight line there, but for rounding. Eight times
        the standard deviation from that line, because what near points share of it does not show: on SmolLM2 errors
        against float64 were 2.5 times as large (root mean square), 6.6 times at most. Every block adds rounding of its
        own and such errors add in squares, hence the square root of the blocks that are left. At least ten roundings
        of float32, in which Captum has its weights whatever the model's type; of bfloat16, where near points are the
        same, no more is known.
        """
        function, (start, end) = self.function(site, 0), self.ends(site, 0)
        nudges = _NUDGES.to(start)

        def near(shares: Tensor) -> Tensor:
            return function(start[:, None] + shares.view(-1, *[1] * (start.ndim - 1)) * (end - start)[:, None])

        with torch.no_grad():
            values = torch.cat([found for _, found in rows.each(near, nudges, len(self.pairs))], 1).cpu().double()
        line = torch.stack([torch.ones_like(_NUDGES), _NUDGES / _NUDGES[-1]], 1).double()
        off = values.T - line @ (torch.linalg.pinv(line) @ values.T)
        deviation = (off.square().sum(0) / (len(nudges) - 2)).sqrt()
        left = 1 - torch.arange(self.n_layers).double() / self.n_layers
        least = 10 * torch.finfo(torch.float32).eps * self.gap.abs().clamp(min=1.0).cpu().double()
        return torch.maximum(8 * deviation[:, None] * left.sqrt(), least[:, None]).to(start)

    def rows(self, asked: int | None, memory_gib: float | None, *, gradients: bool, whole: bool = False) -> Rows:
        """How many rows a pass has, counting those of all pairs; `whole` where it is of the whole model, hooked."""
        run, cfg = self.around, self.model.cfg
        n_tokens, width = run.tokens.shape[1], cfg.d_mlp or 4 * cfg.d_model
        whole = whole or self.route == "hooks"
        changed = n_tokens if whole else n_tokens - self.first
        # What one block holds at its fullest; with gradients every block keeps about that much.
        numbers = changed * (10 * cfg.d_model + 4 * width) + 2 * n_tokens * (cfg.d_model + 2 * cfg.n_heads * changed)
        if whole:
            numbers += cfg.d_vocab
        kept = self.n_layers if gradients else 1
        size, device = numbers * run.residual[0].element_size(), run.tokens.device
        return rows_a_pass(size, kept, device, asked, memory_gib, recomputes=gradients and not whole)


@contextmanager
def contrasts(
    model: TransformerBridge,
    pairs: Sequence[PromptPair],
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    route: Route | None = None,
    sites: Sequence[Site] = SITES,
) -> Iterator[Iterator[tuple[tuple[int, ...], Contrast]]]:
    """(indices of the pairs, their Contrast), with the model frozen meanwhile and given back unchanged.

    Pairs of equal lengths and equal first differences come together. `direction="denoising"` is the mirror, clean
    activations into the corrupted run, and takes the `corrupted` baseline only. `route=None` chooses the faster one
    that is right for this model. Questions can be asked about `sites` only.
    """
    baseline = baseline if isinstance(baseline, Baseline) else Baseline(baseline)
    if problem := denoising_problem(direction, baseline.kind):
        raise InputError(problem)
    tokens = [tokenize(model, pair) for pair in pairs]
    with frozen(model):
        yield _contrasts(model, tokens, baseline, direction, route, sites)


@contextmanager
def contrast(
    model: TransformerBridge,
    pair: PromptPair,
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    route: Route | None = None,
    sites: Sequence[Site] = SITES,
) -> Iterator[Contrast]:
    """The contrast of one prompt pair; see `contrasts`."""
    with contrasts(model, [pair], baseline=baseline, direction=direction, route=route, sites=sites) as groups:
        yield next(groups)[1]


def _contrasts(
    model: TransformerBridge,
    pairs: list[TokenPair],
    baseline: Baseline,
    direction: Direction,
    route: Route | None,
    sites: Sequence[Site],
) -> Iterator[tuple[tuple[int, ...], Contrast]]:
    weights: Decoder | str | None = "asked for" if route == "hooks" else None
    for indices in _groups(pairs):
        group = tuple(pairs[index] for index in indices)
        clean = record(model, torch.cat([pair.clean for pair in group]), group, name="clean", sites=sites)
        corrupted = record(model, torch.cat([pair.corrupted for pair in group]), group, name="corrupted", sites=sites)
        into_clean = _aligned(corrupted, clean, [pair.alignment.clean for pair in group])
        if direction == "noising":
            around = clean
            replacement = baselines.activations(baselines.Request(model, group, clean, into_clean, baseline))
        else:
            around = corrupted
            replacement = _aligned(clean, corrupted, [pair.alignment.corrupted for pair in group])
        if baseline.kind == "corrupted":
            # Of the tokens, and not of the activations: a last bit that differs before it is no difference.
            first = group[0].first_difference if direction == "noising" else group[0].first_difference_in_corrupted
        else:
            first = _first_moved(around.activations, replacement)
        if weights is None:
            one = {site: tuple(layer[:1] for layer in layers) for site, layers in into_clean.items()}
            weights = weights_or_reason(model, group[0], clean.of_pairs([0]), one, group[0].first_difference)
            if route == "suffix" and isinstance(weights, str):
                raise InputError(f"route: got suffix, which this model does not have: {weights}. Use route=hooks.")
        engine_of: EngineOf
        route_taken: Route
        if isinstance(weights, str):
            engine_of, route_taken, why = partial(Hooks, model), "hooks", weights
        else:
            engine_of, route_taken = partial(Suffix, weights), "suffix"
            why = "the weights alone give what the whole model gives"
        yield (
            indices,
            Contrast(
                model=model,
                pairs=group,
                clean=clean,
                corrupted=corrupted,
                around=around,
                replacement=replacement,
                first=first,
                engine=engine_of(group, around, first),
                engine_of=engine_of,
                route=route_taken,
                why=why,
            ),
        )


def _groups(pairs: list[TokenPair]) -> list[tuple[int, ...]]:
    """Indices of pairs that can share a pass, in the order of their first member."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        shape = (pair.clean.shape[1], pair.corrupted.shape[1])
        alike.setdefault((*shape, pair.first_difference, pair.first_difference_in_corrupted), []).append(index)
    return [
        tuple(group[start : start + at_once])
        for (n_tokens, *_), group in alike.items()
        for at_once in [max(1, min(_PAIRS_A_PASS, _TOKENS_A_PASS // n_tokens))]
        for start in range(0, len(group), at_once)
    ]


def _aligned(there: Run, here: Run, partners: Sequence[Partners]) -> Activations:
    """The activations of run `there` at the positions of run `here`, whose own ones stay where there is no partner."""
    if all(each == tuple(range(there.tokens.shape[1])) for each in partners):
        return there.activations
    device = here.tokens.device
    pair = torch.arange(len(partners), device=device)[:, None]
    index = torch.tensor([[j or 0 for j in each] for each in partners], device=device)
    matched = torch.tensor([[j is not None for j in each] for each in partners], device=device)

    def taken(own: Tensor, others: Tensor) -> Tensor:
        return torch.where(matched.view(*matched.shape, *[1] * (own.ndim - 2)), others[pair, index], own)

    return {
        site: tuple(
            taken(own, others) for own, others in zip(*(run.activations[site] for run in (here, there)), strict=True)
        )
        for site in here.activations
    }


def _first_moved(here: Activations, there: Activations) -> int:
    """First position at which any activation of any pair differs; the last one when none does."""
    found = [
        (one != other).flatten(2).any(-1).any(0)
        for site in here
        for one, other in zip(here[site], there[site], strict=True)
    ]
    moved = torch.stack(found).any(0).nonzero()
    return int(moved[0]) if len(moved) else len(found[0]) - 1
