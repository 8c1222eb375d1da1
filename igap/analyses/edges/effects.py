"""The effect of every edge: what one component writes, as one later component reads it.

    ap         F(run, the reader alone sees the sender's write moved) - F(run): path patching of one edge, exactly
    atp        (w' - w) . dF/d(what the reader reads), to first order: edge attribution patching (EAP)
    ig         the same with its mean along the sender's own path, on which its layer's components move together, as in
               `integrated_gradients`. Over all its readers it sums to the sender's IG
    ig_inputs  the same with its mean along the path of the inputs (EAP-IG)

Sources: Wang et al. 2022 (arXiv 2211.00593), Syed et al. 2023 (2310.10348), Hanna et al. 2024 (2403.17806).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from igap.analyses.edges.results import LOGITS, EdgeEffects, EdgeMethod, Shape, reader_names, sender_names
from igap.attribution.conductance import gauss_legendre
from igap.attribution.integrated_gradients import check_quadrature
from igap.attribution.maps import Progress, ignore
from igap.engine.activations import Model
from igap.engine.batching import AdaptiveBatch
from igap.engine.contrast import Contrast
from igap.engine.edges import Edges, Place, Reading, Sender
from igap.engine.metrics import check_gradient
from igap.engine.open_pairs import OpenPairs, open_pairs
from igap.errors import InputError, short_repr
from igap.errors.arguments import Count, Positive, checks_arguments
from igap.inputs.prompts import PromptPair
from igap.metrics import AnyMetric
from igap.vocabulary import Direction

INPUT: Place = ("resid_pre", 0)
SENDERS: tuple[Sender, ...] = ("heads", "mlp_out", "resid_pre")
"""The sites that pairs must be opened with."""


@checks_arguments
def edge_effects(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    method: EdgeMethod = "atp",
    *,
    readers: Sequence[str] | None = None,
    direction: Direction = "noising",
    metric: AnyMetric = "logit_diff",
    n_steps: Count = 50,
    batch_size: Count | None = None,
    memory_gib: Positive | None = None,
    on_progress: Progress | None = None,
) -> EdgeEffects:
    """The effect of what each component writes, as each later query, key, value, MLP, or the logits, reads it.

    All positions at once, towards the corrupted run (noising) or the clean one. Heads that share keys and values
    (grouped queries) have one reader for them.

    Args:
        model: A TransformerBridge, for example of `load_model`; it comes back unchanged.
        pair: The prompt pair, or several, whose mean is returned.
        method: "atp" (default): to first order, one backward pass for all edges. "ig": a mean of slopes along the
            sender's path; sums over readers to its IG. "ig_inputs": along the path of the inputs. "ap": exactly, one
            pass an edge.
        readers: Which components read, by names such as "9.6.q", "L10.mlp_out", "logits". None (default): all.
        direction: "noising" (default) patches the clean run; "denoising" the corrupted run, towards the clean one.
        metric: F, default "logit_diff"; see `activation_patching`.
        n_steps: Nodes of the mean, default 50, of "ig" and "ig_inputs".
        batch_size: Rows of a pass. None (default): as many as fit.
        memory_gib: GiB of a pass beyond the model. None (default): 2.
        on_progress: Called with (parts done, parts in all).

    Returns:
        The effects `[reader, sender]`, in F's unit.

    Raises:
        InputError: An argument is invalid, the pair does not fit the model, or F is not computed from the model's
            weights: an architecture that the engine does not know, bfloat16, or hooks on the model.

    Example:
        >>> edges = edge_effects(model, pair, "ap", readers=["logits"])
        >>> edges.to_frame().head(2).round(3).values.tolist()
        [['3.1', 'logits', -1.758], ['3.5', 'logits', -1.623]]

    Source: Wang et al. 2022 (arXiv 2211.00593), Hanna et al. 2024 (2403.17806).
    """
    with open_pairs(model, pair, sites=SENDERS, metric=metric) as opened:
        return effects_of_edges(
            opened,
            method,
            readers=readers,
            direction=direction,
            n_steps=n_steps,
            batch_size=batch_size,
            memory_gib=memory_gib,
            on_progress=on_progress,
        )


def effects_of_edges(
    opened: OpenPairs,
    method: EdgeMethod,
    *,
    readers: Sequence[str] | None = None,
    direction: Direction = "noising",
    n_steps: int = 50,
    batch_size: int | None = None,
    memory_gib: float | None = None,
    on_progress: Progress | None = None,
) -> EdgeEffects:
    """The same of open pairs, whose sites must be SENDERS; see `edge_effects`."""
    check_quadrature("gausslegendre", n_steps, "joint")
    compute = {"ap": _patch, "atp": _first_order, "ig": _along_senders, "ig_inputs": _along_inputs}[method]
    shape: Shape | None = None
    chosen: list[int] = []
    effects: list[Tensor] = []
    gaps: list[float] = []
    for indices, contrast in opened.contrasts(direction=direction):

        def advance(part: int, parts: int, done: int = len(gaps), now: int = len(indices)) -> None:
            if on_progress:
                on_progress(done * parts + now * part, len(opened.pairs) * parts)

        edges = Edges(contrast)
        if method == "atp":
            check_gradient(contrast.readout, direction, "edges by atp")
        if shape is None:
            shape = _shape_of(contrast, edges)
            chosen = _find_rows(readers, reader_names(shape))
        rows = contrast.rows(batch_size, memory_gib, gradients=method != "ap")
        made = compute(_Request(edges, len(indices), chosen, n_steps, rows, advance)).double().cpu()
        effects.append(torch.where(edges.between(), made, torch.nan).sum(0))
        gaps += contrast.gap.tolist()
    assert shape is not None
    names, metric = reader_names(shape), opened.metrics[0]
    return EdgeEffects(
        method=method,
        effect=(torch.stack(effects).sum(0) / len(gaps))[chosen],
        readers=tuple(names[row] for row in chosen),
        senders=tuple(sender_names(shape)),
        gap=sum(gaps) / len(gaps),
        direction=direction,
        metric=metric.name,
        unit=metric.unit,
        shape=shape,
    )


@dataclass(frozen=True, eq=False)
class CircuitValues:
    """F of circuits of edges, in F's unit, the mean over pairs."""

    full: float
    """F(x)."""
    corrupted: float
    """F(x')."""
    circuits: tuple[float, ...]
    """NaN, with a reason, where they are not defined."""
    reason: str = ""


def circuit_values(opened: OpenPairs, circuits: Sequence[Bool[Tensor, "reader sender"]]) -> CircuitValues:
    """F where the edges of each circuit carry what the clean prompt gives, and all others what the corrupted one has.

    What a component of the circuit writes is recomputed from what it reads.
    """
    ends, values = [], []
    for _, contrast in opened.contrasts():
        edges = Edges(contrast)
        if not edges.adds_up:
            reason = "not defined: a norm follows attention, and what single heads write does not add up"
            return CircuitValues(torch.nan, torch.nan, (torch.nan,) * len(circuits), reason)
        ends.append(torch.stack([contrast.value(contrast.clean), contrast.value(contrast.corrupted)]))
        with torch.no_grad():
            values.append(torch.stack([edges.with_kept(circuit) for circuit in circuits]))
    full, corrupted, *of_circuits = torch.cat([torch.cat(ends, 1), torch.cat(values, 1)]).double().mean(1).tolist()
    return CircuitValues(full, corrupted, tuple(of_circuits))


@dataclass(frozen=True, eq=False)
class _Request:
    """What a method is asked of the pairs of one contrast."""

    edges: Edges
    n_pairs: int
    chosen: Sequence[int]
    """Rows of the readers that are wanted."""
    n_steps: int
    rows: AdaptiveBatch
    advance: Progress


def _first_order(asked: _Request) -> Float[Tensor, "pair reader sender"]:
    edges = asked.edges
    start = edges.ends(INPUT)[0][:, None]
    tangents = {place: edges.tangent(place, edges.ends(place)[0][:, None]) for place in edges.senders}
    return _effects(edges, INPUT, start, start.new_ones(1), tangents)


def _along_inputs(asked: _Request) -> Float[Tensor, "pair reader sender"]:
    edges = asked.edges
    changes = {place: edges.stream_changes(place)[:, None] for place in edges.senders}
    return _integrate(asked, INPUT, lambda _: changes, lambda done: asked.advance(done, asked.n_steps))


def _along_senders(asked: _Request) -> Float[Tensor, "pair reader sender"]:
    edges = asked.edges
    parts: list[Tensor] = []
    for i, place in enumerate(edges.senders):

        def tangents(points: Tensor, place: Place = place) -> Mapping[Place, Tensor]:
            return {place: edges.tangent(place, points)}

        parts.append(_integrate(asked, place, tangents))
        asked.advance(i + 1, len(edges.senders))
    return torch.stack(parts).sum(0)


def _integrate(
    asked: _Request,
    path: Place,
    tangents: Callable[[Tensor], Mapping[Place, Tensor]],
    advance: Callable[[int], None] = ignore,
) -> Float[Tensor, "pair reader sender"]:
    """The effects of edges with slopes averaged along the straight path of one place."""
    start, end = (each[:, None] for each in asked.edges.ends(path))
    alphas, weights = gauss_legendre(asked.n_steps, start)

    def part(nodes: Tensor) -> Tensor:
        points = start + alphas[nodes].to(start)[:, None, None, None] * (end - start)
        return _effects(asked.edges, path, points, weights[nodes].to(start), tangents(points))

    done, effects = 0, start.new_zeros(())
    for nodes, some in asked.rows.each(part, torch.arange(asked.n_steps), asked.n_pairs):
        effects, done = effects + some, done + len(nodes)
        advance(done)
    return effects


def _effects(
    edges: Edges,
    path: Place,
    points: Float[Tensor, "pair row pos component d"],
    weights: Float[Tensor, " row"],
    tangents: Mapping[Place, Float[Tensor, "pair #row component pos d_model"]],
) -> Float[Tensor, "pair reader sender"]:
    """What senders move times the slopes of what readers read, where `path` is `points`, summed over rows by weight."""
    readers, senders = edges.rows_of_readers, edges.columns_of_senders
    effects = points.new_zeros(len(points), readers[edges.readers[-1]].stop, senders[edges.senders[-1]].stop)
    for reader, slope in edges.slopes(path, points):
        mean = torch.einsum("r,nrpcm->npcm", weights, slope)
        for sender, moved in tangents.items():
            if edges.reaches(sender, reader):
                if moved.shape[1] == 1:
                    made = torch.einsum("npcm,nspm->ncs", mean, moved[:, 0])
                else:
                    made = torch.einsum("r,nrpcm,nrspm->ncs", weights, slope, moved)
                effects[:, readers[reader], senders[sender]] = made
    return effects


def _patch(asked: _Request) -> Float[Tensor, "pair reader sender"]:
    edges, chosen, readers = asked.edges, set(asked.chosen), asked.edges.rows_of_readers
    moved = torch.cat([edges.stream_changes(place) for place in edges.senders], 1)
    effects = moved.new_zeros(len(moved), readers[edges.readers[-1]].stop, moved.shape[1])
    wanted = edges.between().to(moved.device) & (moved != 0).any(0).any(-1).any(-1)
    with torch.no_grad():
        for reader, rows in readers.items():
            for component, row in enumerate(range(rows.start, rows.stop)):
                if row in chosen:
                    columns = wanted[row].nonzero().flatten()
                    patch = partial(_patch_few, edges, reader, component, moved)
                    for few, values in asked.rows.each(patch, columns, asked.n_pairs):
                        effects[:, row, few] = values
                asked.advance(row + 1, len(wanted))
    return effects


def _patch_few(edges: Edges, reader: Reading, component: int, moved: Tensor, few: Tensor) -> Tensor:
    return edges.patch_reader(reader, moved[:, few], component)


def _shape_of(contrast: Contrast, edges: Edges) -> Shape:
    cfg = contrast.model.cfg
    return Shape(cfg.n_layers, edges.width("q"), edges.width("k"), cfg.d_model, parallel=bool(cfg.parallel_attn_mlp))


def _find_rows(asked: Sequence[str] | None, names: Sequence[str]) -> list[int]:
    """The rows of these readers, in the order of the forward pass; None: all. Raises InputError on others."""
    if asked is None:
        return list(range(len(names)))
    known = {name: row for row, name in enumerate(names)}
    if not asked or (strange := [name for name in asked if name not in known]):
        got = short_repr(strange[0]) if asked else "none"
        raise InputError(
            f"readers: got {got}, wanted queries, keys, values, MLPs of this model or the logits, such as {names[0]}, "
            f"{names[-2]}, {LOGITS}. Name some of these, or leave readers out for all."
        )
    return sorted({known[name] for name in asked})
