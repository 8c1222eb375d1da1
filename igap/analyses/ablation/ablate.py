"""Ablation: what a model still does without a component; what takes its place is in `replacements`.

Zero ablation of heads differs between processed and raw weights, whose value biases lie elsewhere.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float64
from scipy import stats
from transformer_lens.model_bridge import TransformerBridge

from igap.analyses.ablation.accuracy import Edit, Performance, batches, performance
from igap.analyses.ablation.replacements import by_place, edit, replacement
from igap.arguments import Count, Range, Seed, checks_arguments
from igap.attribution.maps import Progress
from igap.components import Site, component_name, locate, parse_component, widths_of
from igap.engine.activations import Model, frozen
from igap.errors import InputError
from igap.inputs.labelled_prompts import Prompt
from igap.statistics.bootstrap import bootstrap_means
from igap.vocabulary import AblationKind


@dataclass(frozen=True, eq=False)
class Ablated:
    """Performance without some components, and how far it is from that of the whole model on the same prompts."""

    name: str
    """The component's name, `all`, or `control N`."""
    components: tuple[str, ...]
    performance: Performance
    share: float
    """Share of prompts whose greedy next token is the answer, [0, 1]."""
    change: float
    """`share` minus that of the whole model."""
    change_low: float
    """Lower end of the paired 95% bootstrap interval of `change`, over prompts."""
    change_high: float
    p: float
    """McNemar's exact p, two-sided: how likely chance is to split the changed outcomes so unevenly."""
    logit_diff: float | None
    """Mean of logit[answer] - logit[distractor], in logits; None where the prompts have no distractor."""
    logit_diff_change: float | None
    logit_diff_low: float | None
    """Lower end of the paired 95% bootstrap interval of `logit_diff_change`."""
    logit_diff_high: float | None
    generated: float | None
    """Share by the notebook's criterion, only where asked for."""


@checks_arguments
@dataclass(frozen=True, eq=False)
class Ablations:
    """One kind of ablation of one list of components, as `ablate` returns it.

    Example:
        >>> prompts = [Prompt(pair.clean, " John", " Mary"), Prompt(pair.corrupted, " Mary", " John")]
        >>> ablations = ablate(model, prompts, ["0.3", "2.1"], controls=2)
        >>> ablations.n_prompts, [single.name for single in ablations.single], len(ablations.controls)
        (2, ['0.3', '2.1'], 2)
    """

    kind: AblationKind
    n_prompts: int
    unablated: Performance
    share: float
    """Share correct of the whole model."""
    share_low: float
    """Lower end of its 95% bootstrap interval, over prompts."""
    share_high: float
    logit_diff: float | None
    """Mean logit difference of the whole model, in logits."""
    generated: float | None
    single: tuple[Ablated, ...]
    """Each component alone."""
    together: Ablated | None
    """All of them; None for one component."""
    controls: tuple[Ablated, ...]
    """As many others of the same sites at random, all together, repeated; empty where the model has too few others."""


@checks_arguments
def ablate(
    model: Model,
    prompts: Sequence[Prompt],
    components: Sequence[str],
    kind: AblationKind = "zero",
    *,
    reference_n: Count = 100,
    seed: Seed = 0,
    controls: Annotated[int, Range(0, 1000)] = 10,
    generate: bool = False,
    batch_size: Count | None = None,
    on_progress: Progress | None = None,
) -> Ablations:
    """Accuracy on prompts without each of the components, without all of them, and without as many random ones.

    Args:
        model: A TransformerBridge, for example of `load_model`; it comes back unchanged.
        prompts: The prompts, each with its answer.
        components: Names such as "9.6" and "L5.N1234", each once.
        kind: What an ablated activation becomes, default "zero"; see `igap.vocabulary.AblationKind`.
        reference_n: Prompts that means are over, drawn from `prompts`; default 100.
        seed: Seed of everything drawn and of the bootstrap, default 0.
        controls: Random sets of other components, 0 to 1000, default 10.
        generate: Whether to count also as the research notebook did: the answer is in the first word of three tokens.
        batch_size: Prompts of a pass. None (default): as many as fit.
        on_progress: Called with (prompts done, prompts in all).

    Returns:
        Share of prompts whose greedy next token is the answer, [0, 1], mean logit differences, and their changes.

    Raises:
        InputError: The model has no such component, or the prompts give no reference set of that size.

    Example:
        >>> prompts = [Prompt(pair.clean, " John", " Mary"), Prompt(pair.corrupted, " Mary", " John")]
        >>> ablations = ablate(model, prompts, ["0.3", "2.1"], "resample", controls=0)
        >>> ablations.share, round(ablations.together.logit_diff_change, 2)
        (1.0, -1.09)
    """
    if not prompts:
        raise InputError("prompts: got none, wanted at least one. Make some with igap.Prompt.")
    if not components or len(set(components)) < len(components):
        raise InputError(f"ablation.components: got {' '.join(components) or 'none'}, wanted different components.")
    widths = widths_of(model.cfg.n_heads, model.cfg.d_mlp)
    for name in components:
        locate(name, model.cfg.n_layers, widths, item="ablation.components")
    made = batches(model, prompts, batch_size=batch_size)
    rng = np.random.default_rng(seed)
    sets: list[tuple[str, tuple[str, ...]]] = [(name, (name,)) for name in components]
    if len(components) > 1:
        sets.append(("all", tuple(components)))
    drawn = _controls(model, components, controls, rng)
    sets += [(f"control {index}", names) for index, names in enumerate(drawn, start=1)]
    places = by_place(itertools.chain(components, *drawn))
    with frozen(model), torch.no_grad():
        values = replacement(model, made, kind, places, reference_n=reference_n, rng=rng)

    total, passed = len(prompts) * (1 + len(sets)), itertools.count()

    def run(edit: Edit | None) -> Performance:
        before = next(passed) * len(prompts)
        told = (lambda done, _: on_progress(before + done, total)) if on_progress else None
        return performance(model, made, edit=edit, generate=generate, on_progress=told)

    whole = run(None)
    found = [_ablated(name, names, whole, run(edit(model, by_place(names), values)), seed) for name, names in sets]
    n = len(components)
    low, high = _interval(whole.correct.astype(np.float64), seed)
    return Ablations(
        kind=kind,
        n_prompts=len(prompts),
        unablated=whole,
        share=float(whole.correct.mean()),
        share_low=low,
        share_high=high,
        logit_diff=None if whole.logit_diff is None else float(whole.logit_diff.mean()),
        generated=None if whole.generated is None else float(whole.generated.mean()),
        single=tuple(found[:n]),
        together=found[n] if n > 1 else None,
        controls=tuple(found[n + (n > 1) :]),
    )


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """McNemar's exact two-sided p of paired outcomes, (0, 1]; 1 where no outcome changed."""
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    return float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def _ablated(name: str, names: tuple[str, ...], whole: Performance, without: Performance, seed: int) -> Ablated:
    change = without.correct.astype(np.float64) - whole.correct
    low, high = _interval(change, seed)
    logit_diff = moved = moved_low = moved_high = None
    if whole.logit_diff is not None and without.logit_diff is not None:
        logit_diff = float(without.logit_diff.mean())
        moved = float((without.logit_diff - whole.logit_diff).mean())
        moved_low, moved_high = _interval(without.logit_diff - whole.logit_diff, seed)
    return Ablated(
        name=name,
        components=names,
        performance=without,
        share=float(without.correct.mean()),
        change=float(change.mean()),
        change_low=low,
        change_high=high,
        p=mcnemar(whole.correct, without.correct),
        logit_diff=logit_diff,
        logit_diff_change=moved,
        logit_diff_low=moved_low,
        logit_diff_high=moved_high,
        generated=None if without.generated is None else float(without.generated.mean()),
    )


def _interval(values: Float64[np.ndarray, " prompt"], seed: int) -> tuple[float, float]:
    found = bootstrap_means(values[:, None], seed=seed)
    return float(found.low[0]), float(found.high[0])


def _controls(
    model: TransformerBridge, components: Sequence[str], repeats: int, rng: np.random.Generator
) -> list[tuple[str, ...]]:
    """`repeats` random sets of other components, as many of each site as given; none where too few are left."""
    wanted: dict[Site, set[tuple[int, int]]] = {}
    for name in components:
        site, layer, index = parse_component(name)
        wanted.setdefault(site, set()).add((layer, index))
    pools = {}
    for site, taken in wanted.items():
        width = model.cfg.n_heads if site == "heads" else int(model.cfg.d_mlp or 0)
        pools[site] = [
            place for place in itertools.product(range(model.cfg.n_layers), range(width)) if place not in taken
        ]
        if len(pools[site]) < len(taken):
            return []
    return [
        tuple(
            component_name(site, *pools[site][i])
            for site, taken in wanted.items()
            for i in rng.permutation(len(pools[site]))[: len(taken)]
        )
        for _ in range(repeats)
    ]
