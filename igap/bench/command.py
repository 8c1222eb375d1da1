"""`igap bench`: the exam on the terminal, and its files bench.csv, bench.json and a picture of every circuit."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from igap.attribution.estimators import estimators
from igap.bench.circuits import circuits as every_circuit
from igap.bench.exam import Bench, Marks, choose, run_bench
from igap.bench.own_model import check_exam, examine_model
from igap.config import RunConfig
from igap.console import folding_table, show_stage, terminal_console
from igap.engine.batching import budget_bytes
from igap.engine.open_pairs import open_pairs
from igap.engine.user_metrics import metric_of
from igap.models.cached import resolve_device, run_model
from igap.pipeline.prepare import check
from igap.storage.atomic import check_writable, write_atomically, write_text
from igap.storage.tables import write_csv
from igap.vocabulary import Direction


def list_circuits() -> None:
    """Prints what every circuit computes and what it teaches."""
    table = folding_table("Circuits whose truth is known", "circuit", "computes", "teaches")
    for circuit in every_circuit().values():
        table.add_row(circuit.name, circuit.meaning, circuit.lesson)
    terminal_console().print(table)


def examine(names: Sequence[str] | None, output: Path, *, plots: bool) -> None:
    """Holds the exam, prints its table and writes its files.

    Args:
        names: of circuits; None: all of them.
        output: the folder of the files.
        plots: whether a picture of every circuit is drawn.

    Raises:
        InputError: An unknown circuit, or a folder that cannot be written to.
    """
    choose(names)
    check_writable(output)
    with show_stage(Console(stderr=True), "bench") as progress:
        bench = run_bench(names, on_progress=progress)
    _show(bench)
    _write(bench, output, plots=plots)


def examine_own(config: RunConfig, top: int, *, plots: bool) -> None:
    """Holds the exam on the model and prompts of a run, prints its table and writes its files.

    Args:
        config: of the run; its files go to `bench` in the run's output folder.
        top: components that count as those that matter.
        plots: whether a picture is drawn.

    Raises:
        InputError: What a run refuses before its model loads, settings that the exam does not have, or a folder that
            cannot be written to.
    """
    check_exam(config)
    checked, output = check(config), Path(config.output) / "bench"
    check_writable(output)
    console = Console(stderr=True)
    with show_stage(console, "load model"):
        model = run_model(config, checked.checkpoint)
    kept = budget_bytes(torch.device(resolve_device(config.device)), config.memory_gib)
    about: Any = {"sites": config.asked_sites, "metric": metric_of(config.metric), "kept_bytes": kept}
    with open_pairs(model, checked.pairs, **about) as opened:
        bench = examine_model(opened, Path(config.model.name).name, config, top, partial(show_stage, console))
    _show_own(bench)
    _write(bench, output, plots=plots)


def _write(bench: Bench, output: Path, *, plots: bool) -> None:
    write_csv(output / "bench.csv", bench.to_frame())
    write_text(output / "bench.json", json.dumps(_record(bench), indent=1) + "\n")
    drawn = _draw(bench, output) if plots else ""
    terminal_console().print(f"bench.csv, bench.json{drawn} in {output}", markup=False, highlight=False, soft_wrap=True)


def _show_own(bench: Bench) -> None:
    """The table of one model: a row a site and estimator."""
    ((name, subject),) = bench.circuits.items()
    title = f"{name}: {subject.meaning} {subject.lesson} Effects and errors in {subject.unit}, cost in forward passes"
    columns = ("ROC area", "precision", "missed", "wrong signs", "largest error", "mean error", "cost")
    table = folding_table(title, "components", "estimator", *columns)
    for part in bench.parts(name):
        for estimator in bench.estimates[name]:
            marks = bench.marks(name, estimator, part)
            table.add_row(
                part,
                estimator,
                f"{marks.roc_area:.3f}",
                f"{marks.average_precision:.2f}",
                f"{len(marks.missed)} of {marks.k}",
                "-" if marks.wrong_sign is None else str(len(marks.wrong_sign)),
                f"{marks.largest_error:.3g} ({marks.farthest})",
                f"{marks.mean_error:.2g}",
                f"{marks.passes:.3g}",
            )
    terminal_console().print(table)
    absent = [each for each in estimators() if each not in bench.estimates[name]]
    if absent:
        terminal_console().print(f"left out, not to be had of this model with these settings: {', '.join(absent)}")


def _show(bench: Bench) -> None:
    names = list(next(iter(bench.estimates.values())))
    title = (
        "ROC area of |effect| over all heads and neurons; -N: N that matter not among the k largest; ±: a wrong sign"
    )
    table = folding_table(title, "circuit", *names, "what goes wrong")
    for circuit, estimates in bench.estimates.items():
        cells = [_cell(bench.marks(circuit, name)) if name in estimates else "-" for name in names]
        table.add_row(circuit, *cells, bench.verdict(circuit))
    terminal_console().print(table)


def _cell(marks: Marks) -> str:
    """As 0.74 -2: the ROC area, and what is missed; ± where signs are wrong."""
    missed = f" -{len(marks.missed)}" if marks.missed else ""
    return f"{marks.roc_area:.2f}{missed}{' ±' if marks.wrong_sign else ''}"


def _record(bench: Bench) -> dict[str, object]:
    """The exam as JSON: of every circuit the prompts, the truth, and of every estimator effects and marks."""
    directions: tuple[Direction, ...] = ("noising", "denoising")
    return {
        name: {
            "computes": circuit.meaning,
            "teaches": circuit.lesson,
            "prompts": [pair.texts for pair in circuit.prompts],
            "gap": circuit.truth.gap,
            "matters": list(circuit.truth.matters),
            "truth": {direction: circuit.truth.effects(direction) for direction in directions},
            "verdict": bench.verdict(name),
            "estimators": {
                estimator: {
                    "signed": estimate.signed,
                    "effects": dict(estimate.effects),
                    "marks": {part: _finite(bench.marks(name, estimator, part)) for part in bench.parts(name)},
                }
                for estimator, estimate in bench.estimates[name].items()
            },
        }
        for name, circuit in bench.circuits.items()
    }


def _finite(marks: Marks) -> dict[str, object]:
    """The marks, with null for NaN, which JSON does not have."""
    return {name: None if value != value else value for name, value in vars(marks).items()}


def _draw(bench: Bench, output: Path) -> str:
    from igap.bench.plots import effects_bars
    from igap.plots.canvas import write_png

    for circuit in bench.estimates:
        figure = effects_bars(bench, circuit)
        write_atomically(output / f"{circuit}.png", lambda path, figure=figure: write_png(figure, path))  # type: ignore[misc]
    return f" and {len(bench.estimates)} pictures" if len(bench.estimates) > 1 else f" and {circuit}.png"
