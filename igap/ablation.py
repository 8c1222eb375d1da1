"""Ablation: what a model still does without a component.

A component's activation is replaced at all positions, on every prompt: by 0 (`zero`), by its mean over reference
prompts and positions (`mean`) or per position (`mean_positional`), or by that on another prompt of the same length
(`resample`). Zero ablation of heads differs between processed and raw weights, whose value biases lie elsewhere.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64
from scipy import stats
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.maps import Progress
from igap.datasets.answered import Prompt
from igap.errors import InputError
from igap.hooking import Change, changed
from igap.intervals import bootstrap_means
from igap.performance import Batch, Edit, Performance, batches, performance
from igap.runs import frozen
from igap.sites import Site, component_name, hook_name, locate, parse_component

AblationKind = Literal["zero", "mean", "mean_positional", "resample"]

Place = tuple[Site, int]
"""Site and layer."""
Places = Mapping[Place, tuple[int, ...]]
"""Components by site and layer."""


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


@dataclass(frozen=True, eq=False)
class Ablations:
    """One kind of ablation of one list of components."""

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


def ablate(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    components: Sequence[str],
    kind: AblationKind = "zero",
    *,
    reference_n: int = 100,
    seed: int = 0,
    controls: int = 10,
    generate: bool = False,
    batch_size: int | None = None,
    on_progress: Progress | None = None,
) -> Ablations:
    """Performance on `prompts` without each of `components` ("9.6", "L5.N1234"), without all, and without random ones.

    The reference set of the means is `reference_n` of the prompts, drawn with the seed. Raises InputError on a
    component that the model does not have, an unknown kind, and a reference set that the prompts cannot give.
    """
    if kind not in get_args(AblationKind):
        raise InputError(f"ablation: got {kind!r}, wanted one of {', '.join(get_args(AblationKind))}.")
    if not components or len(set(components)) < len(components):
        raise InputError(f"ablation.components: got {' '.join(components) or 'none'}, wanted different components.")
    widths: dict[Site, int | None] = {"heads": model.cfg.n_heads, "neurons": model.cfg.d_mlp}
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
        values = _values(model, made, kind, places, reference_n=reference_n, rng=rng)

    total, passed = len(prompts) * (1 + len(sets)), itertools.count()

    def run(edit: Edit | None) -> Performance:
        before = next(passed) * len(prompts)
        told = (lambda done, _: on_progress(before + done, total)) if on_progress else None
        return performance(model, made, edit=edit, generate=generate, on_progress=told)

    whole = run(None)
    found = [_ablated(name, names, whole, run(_edit(model, by_place(names), values)), seed) for name, names in sets]
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


def by_place(names: Sequence[str] | Iterator[str]) -> Places:
    """Components by site and layer, each once, in order."""
    places: dict[Place, set[int]] = {}
    for name in names:
        site, layer, index = parse_component(name)
        places.setdefault((site, layer), set()).add(index)
    return {place: tuple(sorted(indices)) for place, indices in sorted(places.items())}


def check_donors(lengths: Iterable[int]) -> None:
    """Raises InputError where a prompt has a token length of its own, so that nothing can be taken from another."""
    alone = sorted(length for length, count in Counter(lengths).items() if count == 1)
    if alone:
        raise InputError(
            f"ablation: got resample, but only one of the prompts has {alone[0]} tokens, wanted another of that length "
            "to take activations from. Remove it, use more prompts, or ablation=mean."
        )


def too_few_references(asked: int, n: int) -> InputError:
    """The error of a reference set that `n` prompts cannot give."""
    return InputError(
        f"ablation.reference_n: got {asked}, but there are only {n} prompts to take reference prompts from. Use fewer, "
        "or more prompts (ablation.n)."
    )


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """McNemar's exact two-sided p of paired outcomes, (0, 1]; 1 where no outcome changed."""
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    return float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0


Replacement = Callable[[Batch, Place], Tensor]
"""A batch and a place to what replaces its components: `[prompt, pos, component, ...]`, or what expands to that."""


def _values(
    model: TransformerBridge,
    made: Sequence[Batch],
    kind: AblationKind,
    places: Places,
    *,
    reference_n: int,
    rng: np.random.Generator,
) -> Replacement:
    """What this kind puts in a component's place."""
    if kind == "zero":
        return lambda *_: torch.zeros(())
    if kind == "resample":
        donors = _donors(made, rng)

        def another(batch: Batch, place: Place) -> Tensor:
            prompts = donors[batch.indices]
            # Where a continuation has grown, that of the prompt itself.
            return _recorded(model, torch.cat([prompts, batch.tokens[:, prompts.shape[1] :]], 1), [place])[place]

        return another
    means = _means(model, made, places, reference_n=reference_n, rng=rng)
    if kind == "mean":
        overall = {place: total.sum(0) / count.sum() for place, (total, count) in means.items()}
        return lambda _, place: overall[place][None, None]
    _, count = next(iter(means.values()))
    if bool((count == 0).any()):
        first = int((count == 0).nonzero()[0])
        raise InputError(
            f"ablation.reference_n: got {reference_n} reference prompts, none of which reaches position {first} of the "
            f"longest prompt ({len(count)} tokens), wanted one at every position. Use more, or ablation=mean."
        )
    positional = {place: total / count.view(-1, *[1] * (total.ndim - 1)) for place, (total, _) in means.items()}
    # A continuation that outgrows the reference prompts keeps the mean of their last position.
    return lambda batch, place: positional[place][
        torch.arange(batch.tokens.shape[1]).clamp(max=len(count) - 1).to(count.device)
    ][None]


def _means(
    model: TransformerBridge, made: Sequence[Batch], places: Places, *, reference_n: int, rng: np.random.Generator
) -> dict[Place, tuple[Tensor, Tensor]]:
    """Of reference prompts, by place: the sum of activations `[pos, component, ...]` and the number of them `[pos]`."""
    n = sum(len(batch.indices) for batch in made)
    if reference_n > n:
        raise too_few_references(reference_n, n)
    chosen = set(rng.permutation(n)[:reference_n].tolist())
    longest = max(batch.tokens.shape[1] for batch in made)
    found: dict[Place, tuple[Tensor, Tensor]] = {}
    for batch in made:
        rows = [row for row, index in enumerate(batch.indices) if index in chosen]
        if not rows:
            continue
        for place, activation in _recorded(model, batch.tokens[rows], list(places)).items():
            if place not in found:
                shape = (longest, *activation.shape[2:])
                found[place] = (activation.new_zeros(shape), activation.new_zeros(longest))
            total, count = found[place]
            total[: activation.shape[1]] += activation.sum(0)
            count[: activation.shape[1]] += len(activation)
    return found


def _donors(made: Sequence[Batch], rng: np.random.Generator) -> dict[tuple[int, ...], Tensor]:
    """For each batch, by its indices, the tokens of other prompts of its length, one for each of its prompts."""
    found: dict[tuple[int, ...], Tensor] = {}
    check_donors(batch.tokens.shape[1] for batch in made for _ in batch.indices)
    for _, group in itertools.groupby(made, key=lambda batch: batch.tokens.shape[1]):
        members = list(group)
        tokens = torch.cat([batch.tokens for batch in members])
        order = torch.from_numpy(rng.permutation(len(tokens))).to(tokens.device)
        donor = torch.empty_like(order)
        donor[order] = order.roll(1)  # a cycle: nobody is his own donor
        for batch, mine in zip(members, donor.split([len(batch.indices) for batch in members]), strict=True):
            found[batch.indices] = tokens[mine]
    return found


def _recorded(model: TransformerBridge, tokens: Tensor, places: Sequence[Place]) -> dict[Place, Tensor]:
    """Activations of the unchanged model at these places."""
    names = {hook_name(*place): place for place in places}
    _, cache = model.run_with_cache(tokens, names_filter=list(names), logits_to_keep=1)
    return {place: cache[name] for name, place in names.items()}


def _edit(model: TransformerBridge, places: Places, values: Replacement) -> Edit:
    """The model with these components replaced."""

    @contextmanager
    def edit(batch: Batch) -> Iterator[None]:
        # Before any hook is there: resample runs the model.
        changes = {hook_name(*place): _put(list(indices), values(batch, place)) for place, indices in places.items()}
        with changed(model, changes):
            yield

    return edit


def _put(indices: list[int], given: Tensor) -> Change:
    def put(activation: Tensor) -> Tensor:
        ablated = activation.clone()
        ablated[:, :, indices] = given.to(activation).expand_as(activation)[:, :, indices]
        return ablated

    return put


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
