"""Ablation: what a model still does without a component; what takes its place is in `replacements`.

Zero ablation of heads differs between processed and raw weights, whose value biases lie elsewhere.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy import stats
from transformer_lens.model_bridge import TransformerBridge

from igap.analyses.ablation.ablated import AblatedSet, ablated_spans, all_of
from igap.analyses.ablation.accuracy import (
    Batch,
    Logits,
    PromptOutcomes,
    batch_by_length,
    batch_rows,
    evaluate_accuracy,
)
from igap.analyses.ablation.passes import choose_passes
from igap.analyses.ablation.replacements import by_place, record_places, replacement
from igap.analyses.ablation.results import AblationEffect, Ablations
from igap.attribution.maps import Progress
from igap.components import PLACES, Site, component_name, locate_set, parse_component, sites_of
from igap.engine.activations import Model, borrow, check_hooks
from igap.engine.metrics import as_metric
from igap.engine.positions import Positions
from igap.errors import InputError
from igap.errors.arguments import Count, Positive, Range, Seed, checks_arguments
from igap.inputs.labelled_prompts import Prompt
from igap.metrics import METRICS, AnyMetric, Metric
from igap.models.families import check_columns, widths_of_model
from igap.statistics.bootstrap import mean_intervals, resample_counts
from igap.vocabulary import AblationKind

Numbers = Float[np.ndarray, " prompt"]
Counts = Float64[np.ndarray, "resample prompt"]
"""How often each prompt is drawn in each bootstrap sample."""


@checks_arguments
def ablate(
    model: Model,
    prompts: Sequence[Prompt],
    components: Sequence[str],
    kind: AblationKind = "zero",
    *,
    positions: Positions = "all",
    metric: AnyMetric = "logit_diff",
    reference_n: Count = 100,
    seed: Seed = 0,
    controls: Annotated[int, Range(0, 1000)] = 10,
    generate: bool = False,
    batch_size: Count | None = None,
    memory_gib: Positive | None = None,
    on_progress: Progress | None = None,
) -> Ablations:
    """Accuracy on prompts without each of the components, without all of them, and without as many random ones.

    Args:
        model: A TransformerBridge, for example of `load_model`; it comes back unchanged.
        prompts: The prompts, each with its answer.
        components: Names such as "9.6", "L5.N1234", "9.6.q" and "L5.mlp_out", or sets such as "9.6+9.9", which go
            together; each once.
        kind: What an ablated activation becomes, default "zero"; see `igap.vocabulary.AblationKind`.
        positions: Where they are ablated. "all" (default): everywhere, tokens that `generate` adds included. "last" of
            each prompt. "each", "roles" or a mapping of spans by name: a row a component and span, named "9.6 at S2";
            all together and controls are at all of the spans.
        metric: F, measured beside accuracy and the logit difference, its default; see `activation_patching`. "kl" and
            "js" are to the output of the whole model on the same prompt.
        reference_n: Prompts that means are over, drawn from `prompts`; default 100.
        seed: Seed of everything drawn and of the bootstrap, default 0.
        controls: Random sets of other components, 0 to 1000, default 10.
        generate: Whether to count also as the research notebook did: the answer is in the first word of three tokens.
        batch_size: Prompts of a pass. None (default): as many as `memory_gib` holds.
        memory_gib: GiB of a pass beyond the model. None (default): 2, on a GPU half of what is free.
        on_progress: Called with (prompts done, prompts in all), each counted once a set of components.

    Returns:
        Share of prompts whose greedy next token is the answer, [0, 1], mean logit differences, F if it is another
        metric (`value`, in its unit), and their changes.

    Raises:
        InputError: The model has no such component, the prompts no such positions, no distractor though F needs one,
            or they give no reference set of that size.

    Example:
        >>> prompts = [Prompt(pair.clean, " John", " Mary"), Prompt(pair.corrupted, " Mary", " John")]
        >>> ablations = ablate(model, prompts, ["0.3", "2.1"], "resample", controls=0)
        >>> ablations.accuracy, round(ablations.together.logit_diff_change, 2)
        (1.0, -1.09)
        >>> ablations = ablate(model, prompts, ["3.1"], positions={"end": [16]}, metric="prob", controls=0)
        >>> ablations.single[0].name, round(ablations.value, 3), round(ablations.single[0].value_change, 3)
        ('3.1 at end', 0.965, -0.019)
    """
    return ablate_kinds(
        model,
        prompts,
        components,
        (kind,),
        positions=positions,
        metric=as_metric(metric),
        reference_n=reference_n,
        seed=seed,
        controls=controls,
        generate=generate,
        batch_size=batch_size,
        memory_gib=memory_gib,
        on_progress=on_progress,
    )[kind]


def ablate_kinds(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    components: Sequence[str],
    kinds: Sequence[AblationKind],
    *,
    positions: Positions = "all",
    metric: Metric = METRICS["logit_diff"],
    reference_n: int,
    seed: int,
    controls: int,
    generate: bool,
    batch_size: int | None,
    memory_gib: float | None,
    on_progress: Progress | None,
) -> dict[str, Ablations]:
    """`ablate` with several kinds of ablation, of the same sets of components; the whole model runs once for all."""
    if not prompts:
        raise InputError("prompts: got none, wanted at least one. Make some with igap.Prompt.")
    widths = widths_of_model(model)
    located = [locate_set(text, model.cfg.n_layers, widths, item="ablation.components") for text in components]
    if not components or len(set(map(frozenset, located))) < len(components):
        raise InputError(f"ablation.components: got {' '.join(components) or 'none'}, wanted different components.")
    check_distractors(prompts, metric.name)
    batches = batch_by_length(model, prompts)
    spans = ablated_spans(positions, [(batch.indices, batch.pairs) for batch in batches])
    _check_sites(model, sites_of(components), batches[0])
    rng = np.random.default_rng(seed)
    sets = [
        AblatedSet(text + at, (text,) if len(members) == 1 else tuple(component_name(*each) for each in members), where)
        for text, members in zip(components, located, strict=True)
        for at, where in spans.items()
    ]
    n_single, everywhere = len(sets), all_of(list(spans.values()))
    every_name = tuple(dict.fromkeys(itertools.chain(*(of_set.components for of_set in sets))))
    if n_single > 1:
        sets.append(AblatedSet("all", every_name, everywhere))
    drawn = _controls(model.cfg.n_layers, widths, every_name, controls, rng)
    sets += [AblatedSet(f"control {index}", names, everywhere) for index, names in enumerate(drawn, start=1)]
    places = [by_place(of_set.components) for of_set in sets]
    rows = batch_rows(model, batches, batch_size, memory_gib)
    with borrow(model), torch.no_grad():
        open_batch = choose_passes(model, batches[0], places, generate)
        every = by_place(itertools.chain(every_name, *drawn))
        replacements = [
            # Each kind draws its prompts as if it were the only one.
            replacement(model, batches, kind, every, reference_n=reference_n, rng=copy.deepcopy(rng), rows=rows)
            for kind in kinds
        ]

    def variants(batch: Batch) -> Iterator[Logits]:
        passes = open_batch(batch)
        yield passes.run_unablated()
        for replace in replacements:
            values = replace(batch, passes.record)
            for of_set, at in zip(sets, places, strict=True):
                yield passes.run_ablated(at, values, of_set.at(batch))

    counts = resample_counts(len(prompts), seed=seed)
    whole, *ablated = evaluate_accuracy(
        model,
        batches,
        variants=variants,
        n_variants=1 + len(kinds) * len(sets),
        generate=generate,
        metric=metric,
        rows=rows,
        on_progress=on_progress,
    )
    return {
        kind: _ablations(kind, metric, n_single, whole, sets, ablated[start : start + len(sets)], counts)
        for kind, start in zip(kinds, itertools.count(0, len(sets)), strict=False)
    }


def _ablations(
    kind: AblationKind,
    metric: Metric,
    n: int,
    whole: PromptOutcomes,
    sets: Sequence[AblatedSet],
    ablated: Sequence[PromptOutcomes],
    counts: Counts,
) -> Ablations:
    """The statistics of one kind; the sets are `n` components alone, all of them if there are several, and controls."""
    effects = [_effect(of_set, whole, without, counts) for of_set, without in zip(sets, ablated, strict=True)]
    low, high = _interval(whole.correct.astype(np.float64), counts)
    return Ablations(
        kind=kind,
        n_prompts=len(whole.correct),
        unablated=whole,
        accuracy=float(whole.correct.mean()),
        accuracy_low=low,
        accuracy_high=high,
        logit_diff=None if whole.logit_diff is None else float(whole.logit_diff.mean()),
        generated=None if whole.generated is None else float(whole.generated.mean()),
        single=tuple(effects[:n]),
        together=effects[n] if n > 1 else None,
        controls=tuple(effects[n + (n > 1) :]),
        metric=metric.name,
        unit=metric.unit,
        value=None if whole.value is None else float(whole.value.mean()),
    )


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """McNemar's exact two-sided p of paired outcomes, (0, 1]; 1 where no outcome changed."""
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    return float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def _effect(of_set: AblatedSet, whole: PromptOutcomes, without: PromptOutcomes, counts: Counts) -> AblationEffect:
    change = without.correct.astype(np.float64) - whole.correct
    low, high = _interval(change, counts)
    logit_diff, moved, moved_low, moved_high = _summarize_change(whole.logit_diff, without.logit_diff, counts)
    value, value_change, value_low, value_high = _summarize_change(whole.value, without.value, counts)
    return AblationEffect(
        name=of_set.name,
        components=of_set.components,
        outcomes=without,
        accuracy=float(without.correct.mean()),
        change=float(change.mean()),
        change_low=low,
        change_high=high,
        p=mcnemar(whole.correct, without.correct),
        logit_diff=logit_diff,
        logit_diff_change=moved,
        logit_diff_low=moved_low,
        logit_diff_high=moved_high,
        generated=None if without.generated is None else float(without.generated.mean()),
        value=value,
        value_change=value_change,
        value_low=value_low,
        value_high=value_high,
    )


def _summarize_change(
    whole: Numbers | None, without: Numbers | None, counts: Counts
) -> tuple[float, float, float, float] | tuple[None, None, None, None]:
    """The mean without, the mean change, and the ends of its interval."""
    if whole is None or without is None:
        return None, None, None, None
    return float(without.mean()), float((without - whole).mean()), *_interval(without - whole, counts)


def _interval(values: Float64[np.ndarray, " prompt"], counts: Counts) -> tuple[float, float]:
    interval = mean_intervals(values[:, None], seed=0, counts=counts)
    return float(interval.low[0]), float(interval.high[0])


def check_distractors(prompts: Sequence[Prompt], metric: str) -> None:
    """Raises InputError where F, other than its default, is of distractors that prompts do not have."""
    without = [i for i, prompt in enumerate(prompts, start=1) if prompt.distractor is None]
    if without and (metric == "prob_diff" or metric.startswith("custom")):
        raise InputError(
            f"metric: got {metric}, but {len(without)} prompts (the first is {without[0]}) have no distractor, "
            "wanted one each. Give them one, or use metric=prob."
        )


def _check_sites(model: TransformerBridge, sites: Sequence[Site], batch: Batch) -> None:
    """Raises InputError where the model lacks a site's hook points, or their columns are not its components."""
    check_hooks(model, sites)
    with_columns = [site for site in sites if site != "heads" and not PLACES[site].is_vector]
    if with_columns:
        with borrow(model), torch.no_grad():
            recorded = record_places(model, batch.tokens[:1], [(site, 0) for site in with_columns])
        for site in with_columns:
            check_columns(model, site, recorded[site, 0].shape[2:])


def _controls(
    n_layers: int, widths: Mapping[Site, int | None], components: Sequence[str], repeats: int, rng: np.random.Generator
) -> list[tuple[str, ...]]:
    """`repeats` random sets of other components, as many of each site as given; none where too few are left."""
    wanted: dict[Site, set[tuple[int, int]]] = {}
    for name in components:
        site, layer, index = parse_component(name)
        wanted.setdefault(site, set()).add((layer, index))
    pools = {}
    for site, taken in wanted.items():
        every = itertools.product(range(n_layers), range(widths[site] or 0))
        pools[site] = [place for place in every if place not in taken]
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
