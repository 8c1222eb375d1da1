"""A search's folder: trials and certificate as CSV and JSON, plots; `search_summary.json` comes last."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from igap import tables
from igap.counterfactual.config import SearchConfig
from igap.counterfactual.output.plots import (
    search_curves,
    search_front,
    search_heads,
    search_history,
    search_single_edits,
)
from igap.counterfactual.search import SearchResult
from igap.counterfactual.trials.study import SCHEMA
from igap.disk import atomically, write_text
from igap.failures import Failure, recorded, surviving
from igap.plots import Figure
from igap.versions import versions

Summary = dict[str, float | int | str | None]


def write(result: SearchResult, config: SearchConfig, folder: Path) -> Summary:
    """The summary, after all other files are in `folder`; a figure that fails costs itself only. Raises OSError."""
    frames = {"trials": trials(result)} | {
        name: pd.DataFrame(list(rows)) for name, rows in result.certificate.tables.items() if rows
    }
    for name, frame in frames.items():
        atomically(folder / f"{name}.csv", partial(tables.write, frame=frame))
    (folder / "plots").mkdir(exist_ok=True)
    summary, head, terms = result.certificate.summary, config.head, result.objective.terms
    plots: dict[str, Callable[[], Figure]] = {
        "history": lambda: search_history(frames["trials"], summary, head, terms[0]),
        "heads": lambda: search_heads(frames["heads"], head),
        "curves": lambda: search_curves(result.certificate.curves, head),
    }
    if "single_edits" in frames:
        plots["single_edits"] = lambda: search_single_edits(frames["single_edits"], summary, head)
    if len(terms) > 1:
        plots["front"] = lambda: search_front(frames["trials"], frames["front"], terms, head)
    failures: dict[str, Failure] = {}
    for name, draw in plots.items():
        with surviving(f"plots/{name}", failures):
            atomically(folder / "plots" / f"{name}.png", partial(draw().savefig, format="png", dpi=150))
    write_text(folder / "config.json", json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
    found = summarize(result, config) | recorded(failures)
    write_text(folder / "search_summary.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    return found


def trials(result: SearchResult) -> pd.DataFrame:
    """A row a trial, in order: who proposed it, its terms, its option in each slot, effects, why it failed."""
    names = [f"slot/{slot.name}" for slot in result.space.slots]
    rows: list[dict[str, object]] = []
    for number, one in enumerate(result.tried):
        row: dict[str, object] = {"trial": number, "source": one.proposal.source}
        row |= dict(zip(result.objective.terms, one.values, strict=True))
        row |= {"counts": one.counts}
        row |= dict(zip(names, result.space.words(one.proposal.candidate), strict=True))
        row |= {f"effect/{i}": effect for i, effect in enumerate(one.effects)}
        row |= {f"violation/{name}": by for name, by in one.violations.items()}
        rows.append({**row, "reason": one.reason})
    return pd.DataFrame(rows)


def summarize(result: SearchResult, config: SearchConfig) -> Summary:
    """The certificate's numbers beside what was asked for, flat.

    `key` is the study's: the same when it goes on with more trials or other workers, so that W&B has it once.
    """
    best = result.best
    return {
        **result.certificate.summary,
        "best/clean": best.clean,
        "best/corrupted": best.corrupted,
        "answer": best.answer,
        "distractor": best.distractor,
        "head": config.head,
        "objective": ",".join(config.objective),
        "sign": config.sign,
        "aggregate": config.aggregate,
        "sampler": result.sampler,
        "n_trials": len(result.tried),
        "n_failed": sum(one.value != one.value for one in result.tried),
        "n_out_of_bounds": sum(bool(one.broken) for one in result.tried),
        "n_from_disk": result.n_found,
        "n_clean": len(result.clean),
        "space/size": float(result.space.size),
        "space/digest": result.space.digest,
        "route": result.route,
        "seconds": round(result.seconds, 3),
        "forward_equivalents": round(result.cost, 1),
        "interrupted": int(result.interrupted),
        "model": config.model.name,
        "seed": config.seed,
        "schema": SCHEMA,
        "key": result.id,
        **{f"version/{name}": version for name, version in versions().items()},
    }
