"""A search's folder: trials and certificate as CSV and JSON, plots; `search_summary.json` comes last."""

import json
from functools import partial
from pathlib import Path

import pandas as pd

from igap.counterfactual.config import SearchConfig
from igap.counterfactual.search import SearchResult
from igap.counterfactual.study import SCHEMA
from igap.disk import atomically, write_text
from igap.plots import search_history, search_single_edits
from igap.versions import versions

Summary = dict[str, float | int | str | None]


def write(result: SearchResult, config: SearchConfig, folder: Path) -> Summary:
    """The summary, after all other files are in `folder`. Raises OSError."""
    tables = {"trials": trials(result)} | {
        name: pd.DataFrame(list(rows)) for name, rows in result.certificate.tables.items()
    }
    for name, table in tables.items():
        atomically(folder / f"{name}.csv", partial(table.to_csv, index=False))
    (folder / "plots").mkdir(exist_ok=True)
    plots = {
        "history": search_history(tables["trials"], result.certificate.summary, config.head),
        "single_edits": search_single_edits(tables["single_edits"], result.certificate.summary, config.head),
    }
    for name, figure in plots.items():
        atomically(folder / "plots" / f"{name}.png", partial(figure.savefig, format="png", dpi=150))
    write_text(folder / "config.json", json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
    summary = summarize(result, config)
    write_text(folder / "search_summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def trials(result: SearchResult) -> pd.DataFrame:
    """A row a trial, in order: words, value and effects in logits, who proposed it."""
    rows = []
    for number, one in enumerate(result.tried):
        words = dict(
            zip((slot.name for slot in result.space.slots), result.space.words(one.proposal.candidate), strict=True)
        )
        effects = {f"effect/{i}": effect for i, effect in enumerate(one.effects)}
        rows.append(
            {
                "trial": number,
                "source": one.proposal.source,
                "value": one.value,
                **words,
                **effects,
                "reason": one.reason,
            }
        )
    return pd.DataFrame(rows)


def summarize(result: SearchResult, config: SearchConfig) -> Summary:
    """The certificate's numbers beside what was asked for, flat."""
    best = result.best
    return {
        **result.certificate.summary,
        "best/clean": best.clean,
        "best/corrupted": best.corrupted,
        "answer": best.answer,
        "distractor": best.distractor,
        "head": config.head,
        "objective": config.objective,
        "sign": config.sign,
        "aggregate": config.aggregate,
        "sampler": config.search.sampler,
        "n_trials": len(result.tried),
        "n_failed": sum(one.value != one.value for one in result.tried),
        "n_clean": len(result.clean),
        "space/size": float(result.space.size),
        "space/digest": result.space.digest,
        "route": result.route,
        "seconds": round(result.seconds, 3),
        "forward_equivalents": round(result.cost, 1),
        "model": config.model.name,
        "seed": config.seed,
        "schema": SCHEMA,
        **{f"version/{name}": version for name, version in versions().items()},
    }
