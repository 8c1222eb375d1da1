"""The analysis `mib`: CPR and CMD as MIB's public evaluator defines them, and its graph files, of whole nodes.

Nodes are the token embedding, every head and every MLP of the whole model. A circuit of k nodes has those with the
largest scores; every other node gives what it gave in the corrupted run, and what is kept is recomputed from what the
nodes before it give. With F the mean over pairs, f = (F(circuit) - F(x')) / (F(x) - F(x')), at the published shares
of the scored nodes, rounded down; a node without score is in every circuit. CPR is the area under f from the first
share, 0.001, to 1 by trapezoids, CMD that of |1 - f|; nothing is added left of the first share.

A score is -effect: what the patch takes away. `signed` ranks by it, `absolute` by its size; published numbers are of
either. Source: MIB (Mueller et al. 2025, arXiv 2504.13151), github.com/hannamw/MIB-circuit-track, whose `evaluation.py`
at `level=node` gives the same numbers.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64

from igap.analyses.base import Analysis, RunContext, settings_of
from igap.analyses.circuit.recovery import ClassRecovery, class_recovery
from igap.analyses.faithfulness.rankings import SHARES
from igap.attribution.maps import AttributionMap, Progress, scores_exist
from igap.components import Site, component_name, setting_with
from igap.config import Frozen, RunConfig
from igap.engine.baselines import Baseline
from igap.engine.site_sets import set_metrics
from igap.errors import InputError, printable
from igap.inputs.mib import MibGraph, node_names, place_of, read_graph
from igap.inputs.prompts import min_scored_gap
from igap.models.load import Header

SITES: tuple[Site, ...] = ("heads", "resid_pre", "mlp_out")
"""The sites that the nodes are of."""

GRAPH = "graph"
"""The ranking by the scores of the graph that was given, beside those by methods."""

Scores = Float64[np.ndarray, " node"]
"""NaN: no score."""


class Settings(Frozen):
    """What may be set at `analyses.mib`."""

    graph: str | None = None
    """A graph file, whose circuit and scores are measured beside the run's own."""


@dataclass(frozen=True)
class Curve:
    """One ranking's circuits of the published sizes."""

    method: str
    ranking: str
    """signed or absolute."""
    sizes: tuple[int, ...]
    """Scored nodes of each circuit."""
    faithfulness: tuple[float, ...]
    """f of each."""

    @property
    def cpr(self) -> float:
        """Area under f; the larger the better."""
        return float(np.trapezoid(self.faithfulness, SHARES))

    @property
    def cmd(self) -> float:
        """Area of |1 - f|; the smaller the better."""
        return float(np.trapezoid(np.abs(1 - np.array(self.faithfulness)), SHARES))


@dataclass(frozen=True, eq=False)
class MibFinding:
    """What circuits of the run's rankings, and of a graph, are worth on MIB's scale."""

    n_nodes: int
    full: float
    """Mean F(x), in logits."""
    corrupted: float
    """Mean F(x')."""
    curves: tuple[Curve, ...]
    """Empty, with a reason, where F(x) and F(x') are too near."""
    graphs: Mapping[str, MibGraph]
    """By method: the scores, every node in the circuit."""
    reason: str = ""
    circuit: tuple[str, ...] = ()
    """Components of the given graph's circuit, if it leaves some out."""
    circuit_faithfulness: float | None = None
    """f of that circuit."""
    recovery: tuple[ClassRecovery, ...] = field(default=())
    """How well each method's |score| finds it."""

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `mib/METHOD/RANKING/cpr` and `cmd`, and `mib/graph/...` of the graph that was given."""
        flat: dict[str, float | int | str | None] = {"mib/n_nodes": self.n_nodes, "mib/corrupted": self.corrupted}
        for curve in self.curves:
            start = f"mib/{curve.method}/{curve.ranking}"
            flat |= {f"{start}/cpr": curve.cpr, f"{start}/cmd": curve.cmd}
        if self.reason:
            flat |= {"mib/cpr": None, "mib/cpr/reason": self.reason}
        if self.circuit:
            flat |= {"mib/graph/n": len(self.circuit), "mib/graph/components": "+".join(self.circuit)}
            if self.circuit_faithfulness is not None:
                flat["mib/graph/faithfulness"] = self.circuit_faithfulness
            for each in self.recovery:
                flat[f"mib/graph/{each.method}/average_precision"] = each.average_precision
                flat[f"mib/graph/{each.method}/roc_area"] = each.roc_area
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return one row a point of a curve."""
        frames = [
            pd.DataFrame(
                {
                    "method": curve.method,
                    "ranking": curve.ranking,
                    "share": SHARES,
                    "k": curve.sizes,
                    "faithfulness": curve.faithfulness,
                }
            )
            for curve in self.curves
        ]
        return {"mib": pd.concat(frames)} if frames else {}

    def texts(self) -> dict[str, str]:
        """Return `mib_METHOD.json`, a graph with the method's scores, as MIB's evaluator reads it."""
        return {f"mib_{method}.json": graph.to_text() for method, graph in self.graphs.items()}

    def sentences(self) -> tuple[str, ...]:
        """Return a line an area, best method first, and one about the graph that was given."""
        lines = [f"MIB, whole model, {self.n_nodes} nodes: {self.reason}"] if self.reason else []
        for area, ranking in (("cpr", "signed"), ("cmd", "absolute")) if self.curves else ():
            values = {each.method: getattr(each, area) for each in self.curves if each.ranking == ranking}
            ranked = sorted(values, key=lambda method: values[method], reverse=area == "cpr")
            lines.append(
                f"MIB, whole model, {self.n_nodes} nodes, {area.upper()} by {ranking} scores "
                f"({'larger' if area == 'cpr' else 'smaller'} is better): "
                + ", ".join(f"{method} {values[method]:.3f}" for method in ranked)
            )
        if self.circuit:
            faithful = "" if self.circuit_faithfulness is None else f", faithfulness {self.circuit_faithfulness:.3f}"
            precisions = ", ".join(f"{each.method.upper()} {each.average_precision:.3f}" for each in self.recovery)
            lines.append(
                f"MIB, the graph's circuit of {len(self.circuit)} of {self.n_nodes} nodes{faithful}; found with "
                f"average precision {precisions}, by chance about {len(self.circuit) / self.n_nodes:.3f}"
            )
        return tuple(lines)


def kept_nodes(scores: Scores, k: int, *, absolute: bool) -> Bool[np.ndarray, " node"]:
    """Return the circuit of the k nodes with the largest scores; equal ones go to the earlier node."""
    kept = np.isnan(scores)
    order = np.argsort(-np.where(kept, -np.inf, np.abs(scores) if absolute else scores), kind="stable")
    kept[order[:k]] = True
    return np.asarray(kept)


def node_scores(maps: Mapping[Site, AttributionMap], nodes: Sequence[str]) -> Scores:
    """Return one method's score of every node, -effect in logits."""
    places = map(place_of, nodes)
    return np.array([-float(maps[site].effect[layer, index]) for site, layer, index in places])


def _measure(
    context: RunContext, nodes: Sequence[str], kept: Bool[np.ndarray, "circuit node"], on_progress: Progress | None
) -> Float64[np.ndarray, " circuit"]:
    """Mean F over the pairs of each circuit."""
    by_site = {site: torch.ones(len(kept), *context.maps[site]["ap"].effect.shape, dtype=torch.bool) for site in SITES}
    for i, node in enumerate(nodes):
        site, layer, index = place_of(node)
        by_site[site][:, layer, index] = torch.from_numpy(kept[:, i])
    values = set_metrics(
        context.opened,
        by_site,
        baseline=Baseline("corrupted"),
        batch_size=context.config.batch_size,
        memory_gib=context.config.memory_gib,
        on_progress=on_progress,
    )
    return np.asarray(values.numpy().mean(0))


def measure_mib(context: RunContext, graph: MibGraph | None = None, on_progress: Progress | None = None) -> MibFinding:
    """Return CPR and CMD of every method's ranking, and of a graph's scores and circuit."""
    cfg = context.model.cfg
    nodes = node_names(cfg.n_layers, cfg.n_heads)
    methods = {
        method: node_scores({site: context.maps[site][method] for site in SITES}, nodes)
        for method in context.maps["heads"]
        if all(method in context.maps[site] and context.maps[site][method].signed for site in SITES)
    }
    graphs = {
        method: MibGraph(
            n_layers=cfg.n_layers,
            n_heads=cfg.n_heads,
            d_model=cfg.d_model,
            parallel=bool(cfg.parallel_attn_mlp),
            in_graph=dict.fromkeys(nodes, True),
            scores=dict(zip(nodes, scores.tolist(), strict=True)),
            edges={},
        )
        for method, scores in methods.items()
    }
    rankings, circuit = dict(methods), np.ones(len(nodes), dtype=bool)
    if graph is not None:
        circuit = np.array([graph.in_graph[node] for node in nodes])
        if graph.scores:
            rankings[GRAPH] = np.array([graph.scores.get(node, np.nan) for node in nodes])
    curves = [
        (method, ranking, [int(share * np.count_nonzero(~np.isnan(scores))) for share in SHARES])
        for method, scores in rankings.items()
        for ranking in ("signed", "absolute")
    ]
    kept = [kept_nodes(rankings[m], k, absolute=r == "absolute") for m, r, sizes in curves for k in sizes]
    ends = [np.ones(len(nodes), dtype=bool), np.zeros(len(nodes), dtype=bool), circuit]
    unique, row = np.unique(np.stack([*ends, *kept]), axis=0, return_inverse=True)
    full, corrupted, *values = _measure(context, nodes, unique, on_progress)[row.ravel()].tolist()
    is_whole = bool(circuit.all())
    names = tuple(component_name(*place_of(node)) for node, is_kept in zip(nodes, circuit, strict=True) if is_kept)
    recovery = tuple(class_recovery(m, GRAPH, np.abs(s), circuit) for m, s in methods.items())
    known: dict[str, Any] = {"circuit": names, "recovery": recovery} if not is_whole and circuit.any() else {}
    reason = ""
    if not scores_exist(full - corrupted, min_scored_gap(context.config.prompts.min_gap, full)):
        reason = f"not defined, F(clean) is {full:.4g} and F(corrupted) {corrupted:.4g}, too near to divide by"
        return MibFinding(len(nodes), full, corrupted, (), graphs, reason, **known)
    of_circuit, *shares = [(value - corrupted) / (full - corrupted) for value in values]
    return MibFinding(
        n_nodes=len(nodes),
        full=full,
        corrupted=corrupted,
        curves=tuple(
            Curve(method, ranking, tuple(sizes), tuple(shares[i * len(SHARES) : (i + 1) * len(SHARES)]))
            for i, (method, ranking, sizes) in enumerate(curves)
        ),
        graphs=graphs,
        circuit_faithfulness=None if is_whole else of_circuit,
        **known,
    )


def _given_graph(config: RunConfig, n_layers: int | None, n_heads: int | None) -> MibGraph | None:
    """The graph of the settings; None where they name none. Raises InputError if there is nothing in it to measure."""
    file, item = settings_of(config, MibAnalysis.name, Settings).graph, f"analyses.{MibAnalysis.name}.graph"
    if file is None:
        return None
    graph = read_graph(file, item=item, n_layers=n_layers, n_heads=n_heads)
    if not graph.scores and len(set(graph.in_graph.values())) == 1:
        raise InputError(
            f"{item}: got {printable(file)}, whose nodes have no scores and make no circuit, wanted one of the two: "
            "edges are not measured. Name a graph of nodes (MIB's level=node)."
        )
    return graph


class MibAnalysis(Analysis[MibFinding]):
    """CPR and CMD on MIB's scale, and graph files; `analyses=mib` asks for it."""

    name = "mib"
    settings = Settings

    def check(self, config: RunConfig, header: Header) -> Mapping[str, str]:
        """Refuse another direction or baseline, too few sites, and a graph that is none of this model."""
        if not self.is_requested(config):
            return {}
        wanted = {"direction": (config.direction, "noising"), "baseline": (config.baseline.kind, "corrupted")}
        for key, (got, needed) in wanted.items():
            if got != needed:
                raise InputError(
                    f"{key}: got {got} with analyses=mib, wanted {needed}, as MIB has it. Leave {key} out, or mib."
                )
        if missing := [site for site in SITES if site not in config.asked_sites]:
            sites = config.asked_sites
            for site in missing:
                sites = (*sites, site)
            raise InputError(
                f"sites: got {config.sites} with analyses=mib, wanted {', '.join(missing)} too: its nodes are heads, "
                f"MLPs and the embedding. Set sites=[{setting_with(sites, missing[0])}]."
            )
        graph = _given_graph(config, header.n_layers, header.n_heads)
        return {} if graph is None else {self.name: hashlib.sha256(graph.to_text().encode()).hexdigest()}

    def run(self, context: RunContext, on_progress: Progress | None) -> MibFinding:
        """Return CPR and CMD of the run's rankings and of the graph."""
        for tokens, pair in zip(context.opened.tokens, context.pairs, strict=True):
            if not tokens.alignment.is_plain:
                raise InputError(
                    f"{pair.place}corrupted: got another number of tokens than clean has, with analyses=mib, wanted "
                    "prompts of one length, as MIB has them. Reword one."
                )
        cfg = context.model.cfg
        return measure_mib(context, _given_graph(context.config, cfg.n_layers, cfg.n_heads), on_progress)
