"""`igap bench`: the exam on the terminal, and its files bench.csv, bench.json and a picture of every circuit."""

import json
from collections.abc import Sequence
from pathlib import Path

from igap.bench.circuits import circuits as every_circuit
from igap.bench.exam import PARTS, Bench, Marks, choose, run_bench
from igap.console import folding_table, show_stage, terminal_console
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
    console = terminal_console()
    with show_stage(console, "bench") as progress:
        bench = run_bench(names, on_progress=progress)
    _show(bench)
    write_csv(output / "bench.csv", bench.to_frame())
    write_text(output / "bench.json", json.dumps(_record(bench), indent=1) + "\n")
    drawn = _draw(bench, output) if plots else ""
    console.print(f"bench.csv, bench.json{drawn} in {output}", markup=False, highlight=False, soft_wrap=True)


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
            "prompts": list(circuit.pair.texts),
            "gap": circuit.truth.gap,
            "matters": list(circuit.truth.matters),
            "truth": {direction: circuit.truth.effects(direction) for direction in directions},
            "verdict": bench.verdict(name),
            "estimators": {
                estimator: {
                    "signed": estimate.signed,
                    "effects": dict(estimate.effects),
                    "marks": {part: _finite(bench.marks(name, estimator, part)) for part in PARTS},
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
    return f" and {len(bench.estimates)} pictures"
