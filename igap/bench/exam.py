"""The exam: every estimator on every circuit, against the truth."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from igap.attribution.estimators import Estimator, estimators
from igap.attribution.maps import AttributionMap, Progress
from igap.attribution.over_pairs import attribute_pairs
from igap.bench.circuit import Circuit
from igap.bench.circuits import circuits as every_circuit
from igap.bench.cost import count_operations
from igap.bench.subject import Subject
from igap.components import SITES, Site, component_names, parse_component
from igap.config import RunConfig
from igap.engine.open_pairs import OpenPairs, open_pairs
from igap.errors import InputError, did_you_mean, printable, short_repr
from igap.errors.arguments import checks_arguments
from igap.statistics import detection
from igap.vocabulary import Direction

Part = Literal["all"] | Site
"""All components in one ranking, or those of a site."""

NOTHING = 1e-6
"""Effects that are smaller count as 0, in logits: Captum keeps its step sizes in float32."""


@dataclass(frozen=True)
class Estimate:
    """What an estimator says of a circuit."""

    effects: Mapping[str, float]
    """The effect of every component, in logits; of a method without sign magnitudes."""
    signed: bool
    passes: Mapping[Site, float]
    """Cost of each site beyond the pair's two runs: multiplications, in those of one forward pass of the clean prompt.
    A pass forward and backward is about 3."""


@dataclass(frozen=True)
class Marks:
    """An estimator's marks on some of a circuit's components."""

    n: int
    """Components, of which `k` matter."""
    k: int
    roc_area: float
    """Chance that |effect| is larger of one that matters than of one that does not. NaN where either is missing."""
    average_precision: float
    """Area under precision over recall of the ranking by |effect|. NaN where none matters."""
    missed: tuple[str, ...]
    """Those that matter and are not among the k largest |effect|."""
    wrong_sign: tuple[str, ...] | None
    """Those that matter and have the other sign than their true effect; None without signs."""
    largest_error: float
    """Largest |effect - true effect|, and `mean_error` the mean, in logits; without signs of the magnitudes."""
    mean_error: float
    farthest: str
    """The component with the largest error."""
    passes: float


@dataclass(frozen=True, eq=False)
class Bench:
    """The results of the exam: estimates and marks by circuit and estimator."""

    circuits: Mapping[str, Subject]
    """The circuits, or a model of one's own, by name."""
    estimates: Mapping[str, Mapping[str, Estimate]]

    def parts(self, circuit: str) -> tuple[Part, ...]:
        """Return what there are marks of: all components in one ranking, and the sites if there are several."""
        sites: dict[Part, None] = dict.fromkeys(_site(name) for name in self.circuits[circuit].truth.names)
        return ("all", *(sites if len(sites) > 1 else ()))

    def marks(self, circuit: str, estimator: str, part: Part = "all") -> Marks:
        """The marks of an estimator on a circuit: over all components, or those of a site.

        Ranking is judged against the components that matter (`Truth.matters`), values against the exact single effects.
        """
        truth, estimate = self.circuits[circuit].truth, self.estimates[circuit][estimator]
        names = [name for name in truth.names if part in ("all", _site(name))]
        effects = np.array([estimate.effects[name] for name in names])
        true_effects = truth.effects()
        exact = np.array([true_effects[name] for name in names])
        effects, exact = (np.where(np.abs(each) < NOTHING, 0.0, each) for each in (effects, exact))
        matters = np.isin(names, truth.matters)
        missed = detection.find_missed(np.abs(effects), matters)
        error = np.abs(effects - (exact if estimate.signed else np.abs(exact)))
        turned = (effects * exact < 0) & matters
        return Marks(
            n=len(names),
            k=int(matters.sum()),
            roc_area=detection.roc_area(np.abs(effects), matters),
            average_precision=detection.average_precision(np.abs(effects), matters),
            missed=_choose(names, missed),
            wrong_sign=_choose(names, turned) if estimate.signed else None,
            largest_error=float(error.max()),
            mean_error=float(error.mean()),
            farthest=names[int(np.argmax(error > error.max() - NOTHING))],
            passes=sum(cost for site, cost in estimate.passes.items() if part in ("all", site)),
        )

    def verdict(self, circuit: str) -> str:
        """What goes wrong on a circuit, in one line: who misses what, wrong signs, and else the farthest number.

        Numbers are those of estimators with signs: a magnitude is for ranking.
        """
        by_missed: dict[tuple[str, ...], list[str]] = {}
        signs, farthest = [], ("", 0.0)
        for name in self.estimates[circuit]:
            marks = self.marks(circuit, name)
            by_missed.setdefault(marks.missed, []).append(name)
            if marks.wrong_sign:
                signs.append(f"{name} turns {', '.join(marks.wrong_sign)}")
            if marks.wrong_sign is not None and marks.largest_error > farthest[1] + NOTHING:
                farthest = name, marks.largest_error
        by_missed.pop((), None)
        every = list(self.estimates[circuit])
        parts = [f"{_in_words(who, every)} {', '.join(what)}" for what, who in by_missed.items()] + signs
        if parts:
            return "; ".join(parts)
        name, _ = farthest
        if not name:
            return "all find what matters"
        component = self.marks(circuit, name).farthest
        exact = self.circuits[circuit].truth.effects()[component]
        estimated = self.estimates[circuit][name].effects[component]
        return f"all find what matters; farthest: {name} {component} {estimated:+.2f}, true {exact:+.2f}"

    def to_frame(self) -> pd.DataFrame:
        """Return one row a circuit, estimator and site ("all": both in one ranking), with the columns of `Marks`.

        Names of components are joined by spaces.
        """
        rows = []
        for circuit, estimates in self.estimates.items():
            for estimator in estimates:
                for part in self.parts(circuit):
                    marks = self.marks(circuit, estimator, part)
                    row: dict[str, object] = {"circuit": circuit, "estimator": estimator, "site": part}
                    row |= {
                        "n": marks.n,
                        "k": marks.k,
                        "roc_area": marks.roc_area,
                        "average_precision": marks.average_precision,
                        "n_missed": len(marks.missed),
                        "missed": " ".join(marks.missed),
                        "n_wrong_sign": None if marks.wrong_sign is None else len(marks.wrong_sign),
                        "wrong_sign": " ".join(marks.wrong_sign or ()),
                        "largest_error": marks.largest_error,
                        "mean_error": marks.mean_error,
                        "farthest": marks.farthest,
                        "passes": marks.passes,
                    }
                    rows.append(row)
        return pd.DataFrame(rows).astype({"n_wrong_sign": "Int64"})

    def __repr__(self) -> str:
        lines = [f"{name}: {self.verdict(name)}" for name in self.estimates]
        return "\n".join(["Bench", *(f"  {line}" for line in lines)])


@checks_arguments
def run_bench(circuits: Sequence[str] | None = None, *, on_progress: Progress | None = None) -> Bench:
    """Every attribution method on models whose right answer is known, and how right each is.

    Args:
        circuits: Names of `igap.bench.circuits()`. None (default): all of them.
        on_progress: Called with (estimates done, estimates in all).

    Returns:
        The exam's results: `marks` of each estimator on each circuit, `verdict`, `to_frame()`.

    Raises:
        InputError: An unknown name, or no name.

    Example:
        >>> from igap import run_bench
        >>> bench = run_bench(["or"])
        >>> bench.marks("or", "ap").missed, bench.marks("or", "ig").missed
        (('0.0', '0.1'), ())
    """
    chosen = choose(circuits)
    every = estimators()
    done, estimates = 0, dict[str, dict[str, Estimate]]()
    for name, circuit in chosen.items():

        def advance(within: int, before: int = done) -> None:
            if on_progress:
                on_progress(before + within, len(chosen) * len(every))

        estimates[name] = _examine(circuit, every, advance)
        done += len(every)
    return Bench(chosen, estimates)


def choose(names: Sequence[str] | None) -> dict[str, Circuit]:
    """The circuits of these names, each once, in the exam's order; None: all. Raises InputError on another name."""
    every = every_circuit()
    if names is None:
        return every
    wanted = f"wanted names of {', '.join(every)}"
    if not names:
        raise InputError(f"circuits: got none, {wanted}. Leave it out for all.")
    for name in names:
        if name not in every:
            raise InputError(
                f"circuits: got {printable(short_repr(name))}, {wanted}.{did_you_mean(name, list(every))} "
                "igap bench list says what each is."
            )
    return {name: circuit for name, circuit in every.items() if name in names}


def _examine(circuit: Circuit, every: Mapping[str, Estimator], advance: Callable[[int], None]) -> dict[str, Estimate]:
    def stage(_: str, n_done: int) -> AbstractContextManager[None]:
        advance(n_done)
        return nullcontext()

    configs = {name: estimator.config for name, estimator in every.items()}
    with open_pairs(circuit.load(), circuit.pair, kept_bytes=math.inf) as opened:
        estimates = estimate(opened, every, configs, SITES, stage)
    advance(len(every))
    return estimates


def estimate(
    opened: OpenPairs,
    every: Mapping[str, Estimator],
    configs: Mapping[str, RunConfig],
    sites: Sequence[Site],
    stage: Callable[[str, int], AbstractContextManager[Progress | None]],
) -> dict[str, Estimate]:
    """What every estimator says of the components of these sites, and what it costs.

    Args:
        opened: the open prompt pairs, over which effects are means.
        every: estimators by name.
        configs: the settings of each.
        sites: whose components are asked for.
        stage: opens the stage of an estimator and site by name, with how many estimators are done.
    """
    estimates: dict[str, Estimate] = {}
    n_layers = int(opened.model.cfg.n_layers)
    _, first = next(opened.contrasts())
    one_pass = sum(count_operations(partial(opened.model, pair.clean))[0] for pair in opened.tokens)
    for place, (name, estimator) in enumerate(every.items()):
        unfit = estimator.method.needs_weights and first.backend.decoder is None
        if unfit or any(estimator.method.missing(configs[name], site, n_layers) for site in sites):
            continue
        list(opened.contrasts(estimator.baseline))  # the runs that all estimators share
        effects, passes, signed = dict[str, float](), dict[Site, float](), True
        for site in sites:
            with stage(f"{name} {site}", place) as progress:
                compute = partial(attribute, opened, estimator, configs[name], site, progress)
                cost, attributed = count_operations(compute)
            passes[site], signed = cost / one_pass, attributed.signed
            own = component_names(site, *attributed.effect.shape)
            effects |= dict(zip(own, attributed.effect.flatten().tolist(), strict=True))
        estimates[name] = Estimate(effects, signed, passes)
    return estimates


def attribute(
    opened: OpenPairs,
    estimator: Estimator,
    config: RunConfig,
    site: Site,
    progress: Progress | None,
    direction: Direction = "noising",
) -> AttributionMap:
    """The estimator's map of a site: the mean over the open pairs."""
    return attribute_pairs(
        lambda contrast, advance: estimator.method.attribute(contrast, site, config, advance),
        opened,
        site,
        progress,
        baseline=estimator.baseline,
        direction=direction,
    )


def _site(name: str) -> Site:
    return parse_component(name)[0]


def _choose(names: Sequence[str], which: Any) -> tuple[str, ...]:
    return tuple(name for name, own in zip(names, which, strict=True) if own)


def _in_words(who: Sequence[str], every: Sequence[str]) -> str:
    """Who misses something; of nearly all of them, who does not."""
    if len(who) == 1:
        return f"{who[0]} misses"
    others = [name for name in every if name not in who]
    named = ", ".join(who) if len(others) > 1 else "all" if not others else f"all but {others[0]}"
    return f"{named} miss"
