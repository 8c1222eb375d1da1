"""A search's folder: trials and validation as CSV and JSON, and plots; `search_summary.json` comes last."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from igap.counterfactual.config import SearchConfig
from igap.counterfactual.output.flatten import Summary, flatten, flatten_optimality, tables
from igap.counterfactual.output.plots import (
    search_curves,
    search_front,
    search_heads,
    search_history,
    search_ordinary,
    search_single_edits,
)
from igap.counterfactual.search import SearchResult
from igap.counterfactual.trials.study import SCHEMA
from igap.errors.failures import Failure, collect_failure, summary_entries
from igap.inputs.answers import to_cell
from igap.plots import Figure, write_png
from igap.storage.atomic import write_atomically, write_text
from igap.storage.tables import write_csv as write_table
from igap.storage.versions import versions


def write(result: SearchResult, config: SearchConfig, folder: Path) -> Summary:
    """Write everything into `folder` and return the summary, which is written last.

    A figure that fails costs itself only.

    Raises:
        OSError: the disk does not take a file.
    """
    terms, validation, unit, error = (
        result.objective.terms, result.validation, result.objective.unit, result.validation.error,
    )  # fmt: skip
    head = config.head if error is None else error.component
    frames = {"trials": result.to_frame()} | {
        name: pd.DataFrame(rows) for name, rows in tables(validation, terms).items() if rows
    }
    for name, frame in frames.items():
        write_atomically(folder / f"{name}.csv", partial(write_table, frame=frame))
    (folder / "plots").mkdir(exist_ok=True)
    plots: dict[str, Callable[[], Figure]] = {
        "history": lambda: search_history(
            frames["trials"],
            head,
            terms[0],
            random=validation.random,
            reference=validation.reference.value,
            neutral=validation.neutral,
            unit=unit,
        ),
        "heads": lambda: search_heads(frames["heads"], head, unit),
        "curves": lambda: search_curves(validation.reference_curve, validation.best_curve, head),
    }
    if "single_edits" in frames:
        plots["single_edits"] = lambda: search_single_edits(frames["single_edits"], validation.best.value, head, unit)
    if error is not None:
        plots["ordinary"] = lambda: search_ordinary(
            error.ordinary,
            validation.best.value,
            head,
            error.estimator,
            reference=validation.reference.value,
            unit=unit,
        )
    if len(terms) > 1:
        plots["front"] = lambda: search_front(frames["trials"], frames["front"], terms, head, unit)
    failures: dict[str, Failure] = {}
    for name, draw in plots.items():
        with collect_failure(f"plots/{name}", failures):
            write_atomically(folder / "plots" / f"{name}.png", partial(write_png, draw()))
    write_text(folder / "config.json", json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
    summary = summarize(result, config) | summary_entries(failures)
    write_text(folder / "search_summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def summarize(result: SearchResult, config: SearchConfig) -> Summary:
    """The validation's numbers beside what was asked for, by their written names.

    `key` is the study's: it stays the same with more trials or other workers, so that W&B has the study once.
    """
    best = result.best
    return {
        "verdict": result.verdict.replace("\n", " "),
        **flatten(result.validation),
        "best/clean": best.clean,
        "best/corrupted": best.corrupted,
        "answer": to_cell(best.answer),
        "distractor": to_cell(best.distractor),
        "head": config.head,
        "objective": ",".join(config.objective),
        **({"estimator": config.estimator} if "error" in config.objective else {}),
        **({} if config.metric.is_default else {"metric": config.metric.name, "metric/unit": result.objective.unit}),
        "sign": config.sign,
        "aggregate": config.aggregate,
        "sampler": result.sampler,
        "n_trials": len(result.trials),
        "n_failed": sum(trial.is_failed for trial in result.trials),
        "n_out_of_bounds": sum(bool(trial.violated) for trial in result.trials),
        "n_from_disk": result.n_cached,
        "n_clean": len(result.clean),
        "space/size": float(result.space.size),
        "space/digest": result.space.digest,
        **({"space/tried": result.n_tried} if any(trial.chunk for trial in result.trials) else {}),
        **({"space/exact": 1} if result.is_exact else {}),
        **flatten_optimality(result.optimality),
        "route": result.route,
        "route/reason": result.why_route,
        "seconds": round(result.seconds, 3),
        "forward_equivalents": round(result.cost, 1),
        "interrupted": int(result.interrupted),
        "model": config.model.name,
        "seed": config.seed,
        "schema": SCHEMA,
        "key": result.id,
        **{f"version/{name}": version for name, version in versions().items()},
    }
