"""The exact effect of every subset of a set of components, and Integrated Gradients of the set.

Members may be of any layers and sites. A member that is moved has its activation in the other run, whatever comes
before it; one that is not is what the moved ones before it give. So a member that acts only through a later one does
nothing more once that one is moved: moving L5.attn_out and 5.3 is moving L5.attn_out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations
from math import comb

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from igap.analyses.sets.results import SetEffects
from igap.attribution.integrated_gradients import along_path, check_quadrature
from igap.attribution.maps import Progress
from igap.components import Site, component_name, locate_set, sites_of
from igap.engine.activations import Model
from igap.engine.backend import Route
from igap.engine.baselines import Baseline
from igap.engine.component_sets import ComponentSet
from igap.engine.open_pairs import OpenPairs, open_pairs
from igap.engine.positions import Positions, find_spans
from igap.errors import InputError
from igap.errors.arguments import Count, Positive, Seed, checks_arguments
from igap.inputs.prompts import PromptPair
from igap.metrics import AnyMetric
from igap.models.families import widths_of_model
from igap.statistics.coalitions import members_of, sample_orders
from igap.vocabulary import BaselineKind, Direction

MOST_EXACT = 8
"""Members of a set all of whose subsets are moved: 256."""


@checks_arguments
def set_effects(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    components: str | Sequence[str],
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    positions: Positions = "all",
    metric: AnyMetric = "logit_diff",
    n_orders: Count = 100,
    n_steps: Count = 50,
    seed: Seed = 0,
    batch_size: Count | None = None,
    memory_gib: Positive | None = None,
    route: Route | None = None,
    on_progress: Progress | None = None,
) -> SetEffects:
    """F with every subset of some components moved minus F without: interactions, Shapley values, and IG of the set.

    Args:
        model: A TransformerBridge, for example of `load_model`; it comes back unchanged.
        pair: The prompt pair, or several, whose mean is returned.
        components: The set, "9.6+9.9+L5.N1234+L7.mlp_out", or a list of its members, of any sites; "ioi:name-mover" is
            a class of heads of the IOI circuit. At most 64. Of up to 8 all 2^n subsets are moved. Beyond, Shapley
            values are means over random orders, and interactions those of two.
        baseline: What activations move to, a kind or a Baseline. Default "corrupted", as in activation patching.
        direction: "noising" (default) patches the clean run; "denoising" the corrupted run, towards the clean one.
        positions: Which positions of all members are moved: "all" (default), "last", "diff", or a mapping with one
            span, {"verb": [11, 12]}.
        metric: F, default "logit_diff". "logit", "logprob", "prob": of the answer. "kl", "js": to the clean output.
            Or a function of logits `[row, vocab]` and the pair as token ids to one number a row.
        n_orders: Random orders of more than 8 members, default 100; each moves as many subsets as there are members.
        n_steps: Quadrature nodes of IG, default 50; each costs a forward and a backward pass.
        seed: Seed of the random orders and of the bootstrap over pairs, default 0.
        batch_size: Rows of a pass. None (default): as many as fit.
        memory_gib: GiB of a pass beyond the model. None (default): 2.
        route: "suffix" or "hooks", how F is computed. None (default): the faster one that is right for the model.
        on_progress: Called with (subsets done, subsets in all), over all pairs.

    Returns:
        Effects `[pair, subset]` in F's unit, with what follows from them.

    Raises:
        InputError: The set is empty, holds a component twice or one that the model does not have, or another argument
            is invalid.

    Example:
        >>> effects = set_effects(model, pair, "0.3+0.5+2.1")
        >>> round(effects.effect, 2), effects.alone.round(2).tolist(), round(float(effects.pairwise[0, 1]), 2)
        (-1.66, [-0.96, -0.24, -0.05], -0.43)

    Source: Harsanyi 1963 and Shapley 1953, of cooperative games; Castro et al. 2009 for random orders.
    """
    text = components if isinstance(components, str) else "+".join(components)
    members = locate_set(text, model.cfg.n_layers, widths_of_model(model), item="components")
    check_quadrature("gausslegendre", n_steps, "joint")
    names = [component_name(*member) for member in members]
    with open_pairs(model, pair, sites=sites_of(names), route=route, metric=metric) as opened:
        return measure_set(
            opened,
            members,
            baseline=baseline,
            direction=direction,
            positions=positions,
            n_orders=n_orders,
            n_steps=n_steps,
            seed=seed,
            batch_size=batch_size,
            memory_gib=memory_gib,
            on_progress=on_progress,
        )


def measure_set(
    opened: OpenPairs,
    members: Sequence[tuple[Site, int, int]],
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    positions: Positions = "all",
    n_orders: int = 100,
    n_steps: int = 50,
    seed: int = 0,
    batch_size: int | None = None,
    memory_gib: float | None = None,
    on_progress: Progress | None = None,
) -> SetEffects:
    """The effects of a set of open pairs; see `set_effects`."""
    span = _span(positions)
    for tokens in opened.tokens:
        find_spans(positions, [tokens], direction)
    plan = _plan(len(members), n_orders, seed)
    n_pairs, done, size = len(opened.pairs), 0, 0.0
    effects, parts = np.empty((n_pairs, len(plan.subsets))), np.empty((n_pairs, len(members)))
    gaps = np.empty(n_pairs)
    for indices, contrast in opened.contrasts(baseline, direction):
        spans = contrast.spans(positions)
        moved = ComponentSet(contrast if spans is None else contrast.at(spans.masks[0]), tuple(members))
        chosen = torch.from_numpy(plan.subsets).to(contrast.base.tokens.device)
        rows = moved.contrast.rows(batch_size, memory_gib, gradients=False)
        values = np.empty((len(indices), len(chosen)))
        for few, of_few in rows.each(partial(_move, moved, chosen), torch.arange(len(chosen)), len(indices)):
            values[:, few.tolist()] = of_few.double().cpu().numpy()
            done += of_few.numel()
            if on_progress:
                on_progress(done, effects.size)
        effects[list(indices)] = values - values[:, [plan.empty]]
        parts[list(indices)] = _integrate(moved, n_steps, batch_size, memory_gib).double().cpu().numpy()
        gaps[list(indices)] = contrast.gap.double().cpu().numpy()
        size = max(size, 100 * torch.finfo(contrast.base.residual[0].dtype).eps * float(np.abs(values).max()))
        readout = contrast.readout
    if not (np.isfinite(effects).all() and np.isfinite(parts).all()):
        raise InputError(
            f"metric: got NaN or infinity from {readout.metric.name}, wanted a number all the way from one prompt to "
            "the other. Use a metric that is finite for all logits."
        )
    return SetEffects(
        members=tuple(component_name(*member) for member in members),
        subsets=plan.named,
        by_pair=effects[:, plan.named_at],
        contributions=None if plan.orders is None else _contributions(plan, effects.mean(0)),
        ig_by_pair=parts,
        gaps=gaps,
        rounding=size,
        n_steps=n_steps,
        seed=seed,
        metric=readout.metric.name,
        unit=readout.metric.unit,
        baseline=baseline.kind if isinstance(baseline, Baseline) else baseline,
        direction=direction,
        positions=span,
    )


def _span(positions: Positions) -> str:
    """The name of the positions that are moved. Raises InputError where they are not moved together."""
    if positions in ("each", "roles", "own") or (isinstance(positions, Mapping) and len(positions) != 1):
        got = positions if isinstance(positions, str) else f"{len(positions)} spans"
        raise InputError(
            f"positions: got {got}, wanted positions that are moved together: all, last, diff, or one span. Call it "
            "once a span."
        )
    return positions if isinstance(positions, str) else next(iter(positions))


@dataclass(frozen=True, eq=False)
class _Plan:
    """The subsets that are moved, each once."""

    subsets: Bool[np.ndarray, "subset member"]
    empty: int
    """The place of the empty one."""
    named: tuple[tuple[int, ...], ...]
    """Those of the result."""
    named_at: Int64[np.ndarray, " named"]
    """Their places."""
    orders: Int64[np.ndarray, "order place"] | None = None
    """The random orders of the members; None where all subsets are moved."""
    before: Int64[np.ndarray, "order step"] | None = None
    """The place of the subset that is moved before each step of an order; the last one is the whole."""


def _plan(n: int, n_orders: int, seed: int) -> _Plan:
    if n <= MOST_EXACT:
        subsets = members_of(np.arange(2**n), n)
        return _Plan(subsets, 0, tuple(map(_members_of, subsets)), np.arange(2**n))
    sizes = (0, 1, 2, n - 1, n)
    named = np.zeros((sum(comb(n, size) for size in sizes), n), dtype=bool)
    for row, held in zip(named, chain(*(combinations(range(n), size) for size in sizes)), strict=True):
        row[list(held)] = True
    orders = sample_orders(n, n_orders, seed)
    place = orders.argsort(1)  # of each member
    steps = place[:, None] < np.arange(n + 1)[:, None]
    subsets, at = np.unique(np.concatenate([named, steps.reshape(-1, n)]), axis=0, return_inverse=True)
    at = at.ravel()
    before = at[len(named) :].reshape(n_orders, n + 1)
    return _Plan(subsets, int(at[0]), tuple(map(_members_of, named)), at[: len(named)], orders, before)


def _members_of(subset: Bool[np.ndarray, " member"]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(subset).tolist())


def _contributions(plan: _Plan, effects: Float64[np.ndarray, " subset"]) -> Float64[np.ndarray, "order member"]:
    """What each member adds in each order."""
    assert plan.orders is not None
    assert plan.before is not None
    added = np.empty(plan.orders.shape)
    np.put_along_axis(added, plan.orders, np.diff(effects[plan.before], axis=1), axis=1)
    return added


def _move(moved: ComponentSet, chosen: Bool[Tensor, "subset member"], few: Tensor) -> Float[Tensor, "pair row"]:
    with torch.no_grad():
        return moved.patch(chosen[few])


def _integrate(
    moved: ComponentSet, n_steps: int, batch_size: int | None, memory_gib: float | None
) -> Float[Tensor, "pair member"]:
    """Integrated Gradients of the members, all moving together."""
    rows = moved.contrast.rows(batch_size, memory_gib, gradients=True)
    start, end = (each[:, None] for each in moved.ends())
    parts = along_path(moved.function, start, end, n_steps, "gausslegendre", rows)[:, 0]
    return moved.by_member(parts.sum(1))
