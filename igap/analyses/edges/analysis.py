"""The analysis `edges`: the effect of every edge, and greedy circuits; `analyses=edges` asks for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from igap.analyses.base import Analysis, RunContext, settings_of
from igap.analyses.edges.effects import SENDERS, circuit_values, effects_of_edges
from igap.analyses.edges.results import LOGITS, EdgeEffects, EdgeMethod
from igap.attribution.attribution_patching import no_gradient
from igap.attribution.maps import Progress, scores_exist
from igap.components import locate
from igap.config import Frozen, RunConfig
from igap.engine.backend import no_weights
from igap.engine.edges import READERS
from igap.engine.open_pairs import open_pairs
from igap.errors import InputError
from igap.inputs.prompts import min_scored_gap
from igap.models.load import Header

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ITEM = "analyses.edges.readers"


class Settings(Frozen):
    """What may be set at `analyses.edges`."""

    methods: Annotated[tuple[EdgeMethod, ...], Field(min_length=1)] = ("atp", "ig_inputs")
    readers: tuple[str, ...] = ()
    """Components whose edges are patched exactly as well."""
    n_edges: int = Field(100, ge=1, le=100_000)
    """Edges of the greedy circuits."""
    n_steps: int = Field(50, ge=1, le=2000)
    """Nodes of the mean slope."""

    @field_validator("methods", "readers", mode="before")
    @classmethod
    def _to_tuple(cls, names: object) -> object:
        return tuple(names) if isinstance(names, list) else names  # YAML has no tuples


@dataclass(frozen=True, eq=False)
class Circuit:
    """A greedy circuit of one method."""

    n_edges: int
    """Edges that it has."""
    faithfulness: float | None
    """(F(circuit) - F(x')) / (F(x) - F(x')), F the mean over pairs; None, with a reason, where it is not defined."""
    reason: str = ""


@dataclass(frozen=True, eq=False)
class EdgesFinding:
    """The edges of a run."""

    maps: Mapping[str, EdgeEffects]
    """By method, all edges."""
    exact: EdgeEffects | None
    """AP of the readers that were asked for."""
    n_edges: int
    """Edges that circuits were grown to."""
    circuits: Mapping[str, Circuit]

    def to_frame(self) -> pd.DataFrame:
        """Return one row an edge, the largest by the first method first: `sender`, `reader`, `effect_METHOD`."""
        frames = [*self.maps.items(), *([] if self.exact is None else [("ap", self.exact)])]
        whole: pd.DataFrame | None = None
        for method, effects in dict(frames).items():
            frame = effects.to_frame().rename(columns={"effect": f"effect_{method}"})
            whole = frame if whole is None else whole.merge(frame, "left", on=["sender", "reader"])
        assert whole is not None
        return whole

    def agreement(self, method: str) -> float | None:
        """Return Pearson's r of a method's effects with AP, over the edges that were patched; None without any."""
        if self.exact is None or method == "ap":
            return None
        frame = self.to_frame()[[f"effect_{method}", "effect_ap"]].dropna().to_numpy()
        return None if len(frame) < 3 or not frame.std(0).all() else float(np.corrcoef(frame.T)[0, 1])

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `edges/n`, and by method the largest edge, its circuit, and its agreement with AP."""
        flat: dict[str, float | int | str | None] = {"edges/n": next(iter(self.maps.values())).n_edges}
        for method, effects in self.maps.items():
            start, circuit = f"edges/{method}", self.circuits[method]
            sender, reader, effect = effects.largest(1)[0]
            flat |= {
                f"{start}/first": f"{sender}->{reader}",
                f"{start}/first/effect": effect,
                f"{start}/circuit/n": circuit.n_edges,
                f"{start}/circuit/faithfulness": circuit.faithfulness,
            }
            if circuit.reason:
                flat[f"{start}/circuit/faithfulness/reason"] = circuit.reason
            if (r := self.agreement(method)) is not None:
                flat[f"{start}/pearson_ap"] = r
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return one row an edge."""
        return {"edges": self.to_frame()}

    def texts(self) -> dict[str, str]:
        """Return `edges_METHOD.json`, MIB's graph with the method's scores and its greedy circuit."""
        return {f"edges_{method}.json": effects.to_mib(self.n_edges) for method, effects in self.maps.items()}

    def sentences(self) -> tuple[str, ...]:
        """Return a line or two a method."""
        lines: list[str] = []
        for method, effects in self.maps.items():
            circuit, r = self.circuits[method], self.agreement(method)
            worth = circuit.reason if circuit.faithfulness is None else f"{circuit.faithfulness:.3f}"
            lines += effects.sentences()
            lines.append(
                f"greedy circuit of {circuit.n_edges} edges by {method}: faithfulness {worth}"
                + ("" if r is None else f"; r with AP {r:.3f} over {_n_patched(self.exact)} edges")
            )
        return tuple(lines + list(self.exact.sentences() if self.exact is not None else ()))


def _n_patched(exact: EdgeEffects | None) -> str:
    return "0" if exact is None else f"{exact.n_edges:,}"


class EdgesAnalysis(Analysis[EdgesFinding]):
    """What each component does through each later one that reads it."""

    name = "edges"
    any_metric = True
    settings = Settings

    def check(self, config: RunConfig, header: Header) -> Mapping[str, str]:
        """Refuse readers that the model does not have, and models whose F is not computed from their weights."""
        if self.is_requested(config):
            if reason := no_weights(config, header):
                raise InputError(
                    f"analyses: got edges of model.name={config.model.name}, wanted a model whose blocks the "
                    f"engine computes from their weights: {reason}. Leave edges out, or use another model."
                )
            if "atp" in settings_of(config, self.name, Settings).methods and (reason := no_gradient(config)):
                raise InputError(
                    f"analyses.edges.methods: got atp with metric={config.metric.name}, but it is {reason}. Set "
                    "analyses.edges.methods=[ig_inputs], or direction=denoising."
                )
            for reader in settings_of(config, self.name, Settings).readers:
                if reader != LOGITS:
                    locate(reader, header.n_layers, header.widths, item=ITEM, sites=READERS)
        return {}

    def run(self, context: RunContext, on_progress: Progress | None) -> EdgesFinding:
        """Return the edges of the run's pairs."""
        config, asked = context.config, settings_of(context.config, self.name, Settings)
        budget: Any = {"batch_size": config.batch_size, "memory_gib": config.memory_gib}
        parts = len(asked.methods) + bool(asked.readers)

        def report_part(part: int) -> Progress:
            def advance(done: int, total: int) -> None:
                if on_progress:
                    on_progress(part * total + done, parts * total)

            return advance

        metric = context.opened.metrics[0]
        with open_pairs(context.model, context.pairs, sites=SENDERS, metric=metric, kept_bytes=2.0**30) as opened:
            maps: dict[str, EdgeEffects] = {
                method: effects_of_edges(
                    opened,
                    method,
                    direction=config.direction,
                    n_steps=asked.n_steps,
                    on_progress=report_part(part),
                    **budget,
                )
                for part, method in enumerate(asked.methods)
            }
            exact = None
            if asked.readers:
                exact = effects_of_edges(
                    opened,
                    "ap",
                    readers=asked.readers,
                    direction=config.direction,
                    on_progress=report_part(len(maps)),
                    **budget,
                )
            circuits = {method: each.circuit(asked.n_edges) for method, each in maps.items()}
            values = circuit_values(opened, list(circuits.values()))
        least = min_scored_gap(config.prompts.min_gap, values.full if config.metric.is_default else 0.0)
        worth: dict[str, Circuit] = {}
        for (method, mask), value in zip(circuits.items(), values.circuits, strict=True):
            reason, gap = values.reason, values.full - values.corrupted
            if not reason and not scores_exist(gap, least):
                reason = f"not defined, F(clean) is {values.full:.4g} and F(corrupted) {values.corrupted:.4g}"
            f = None if reason else (value - values.corrupted) / gap
            worth[method] = Circuit(int(mask.sum()), f, reason)
        return EdgesFinding(maps, exact, asked.n_edges, worth)

    def figures(self, finding: EdgesFinding, title: str) -> "Mapping[str, Figure]":
        """Draw `edges`: the greedy circuit of the first method."""
        from igap.analyses.edges.plots import draw_circuit

        return {"edges": draw_circuit(next(iter(finding.maps.values())), finding.n_edges, title=title)}
