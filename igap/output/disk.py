"""A run's folder: the files a result is kept in, written so that a half-written one never looks finished.

Every file is written beside its place and renamed into it: first the numbers, then the record, then the pictures, and
`summary.json`, the mark of a finished run, last. Safetensors, CSV, JSON and PNG only.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from safetensors.torch import save

from igap.analyses.base import WithTexts
from igap.components import Site
from igap.config import TEXTS, RunConfig
from igap.errors import InputError
from igap.errors.failures import Failure, collect_failure, summary_entries
from igap.output.figures import FOLDER, draw, figure_data, parse_names
from igap.output.record import FILE, Record, digests_of
from igap.output.record import Summary as RecordedSummary
from igap.output.record import write as write_record
from igap.output.run_tables import alignment_table, pair_table, table, together_table, top_neurons
from igap.pipeline import Result
from igap.replication.page import page
from igap.replication.study import Study
from igap.statistics.across_pairs import PairStatistics, by_pair
from igap.storage import tables
from igap.storage.atomic import check_writable, write_atomically, write_bytes, write_text
from igap.storage.finished import SCHEMA, failures_of, read_run

_IN_SCORES = ("bias", "limits_low", "limits_high")

Summary = dict[str, float | int | str | None]


def prepare(folder: Path) -> None:
    """A writable folder. Raises InputError where there can be none, or where a finished run lies already."""
    check_unfinished(folder)
    check_writable(folder / FOLDER)


def check_unfinished(folder: Path) -> None:
    """Raises InputError where the folder, or one in it (a multirun's), holds a finished run."""
    if any(folder.glob("summary.json")) or any(folder.glob("*/summary.json")):
        raise InputError(
            f"output: got {folder}, which holds a finished run (summary.json), wanted another folder. Set another "
            "one, or move that run away."
        )


def unfinish(folder: Path) -> None:
    """Takes the mark of a finished run off the folder and those in it, unless it can be read.

    For a run that is done again. One in which something failed counts until what replaces it is written.
    """
    if read_run(folder)[0] is not None:
        return
    for summary in (*folder.glob("summary.json"), *folder.glob("*/summary.json")):
        os.replace(summary, summary.with_name("summary.broken.json"))


def write(result: Result, folder: Path) -> Summary:
    """Write all files of the run, and of those beside it, and return the summary, which is written last.

    A figure that fails costs itself only and is named in the summary, as the analyses that failed are. A summary that
    was there before is replaced last.

    Raises:
        OSError: Another file cannot be written; there is no new summary.
        InputError: The folder of another run of a study cannot be written to; there is no new summary.
    """
    started = time.perf_counter()
    failures = dict(result.failures)
    for name, other in result.beside.items():
        check_writable(folder / name / FOLDER)
        of_other = failures_of(write(other, folder / name))
        failures |= {f"{name}/{part}": Failure(reason, "") for part, reason in of_other.items()}
    record = write_numbers(result, folder, failures)
    failures |= draw(record.data, folder, parse_names(result.config.plots)).failures
    study = result.findings.get("notebook")
    if isinstance(study, Study):
        with collect_failure("page", failures):
            write_text(folder / "page.html", page(result, study, folder))
    return finish(folder, record.summary, failures, time.perf_counter() - started)


def write_numbers(result: Result, folder: Path, failures: dict[str, Failure]) -> Record:
    """Write all files of the run but its pictures and its summary, and return what those are made from.

    The record comes last, and marks that the others are whole. `failures` are those to be told in the summary, and
    gain what no record can hold. Raises OSError.
    """
    (folder / FILE).unlink(missing_ok=True)  # of an earlier try, whose files are replaced from here on
    write_bytes(folder / "attributions.safetensors", save(_tensors(result)))
    for site in result.maps:
        components = top_neurons(result) if site == "neurons" else table(result, site)
        write_atomically(folder / f"{site}.csv", partial(tables.write_csv, frame=components))
        together = together_table(result, site)
        if not together.empty:
            write_atomically(folder / f"{site}_together.csv", partial(tables.write_csv, frame=together))
    aligned = alignment_table(result)
    if not aligned.empty:
        write_atomically(folder / "alignment.csv", partial(tables.write_csv, frame=aligned))
    if result.spread is not None:
        pairs = pair_table(result, result.spread)
        write_atomically(folder / "pairs.csv", partial(tables.write_csv, frame=pairs))
    for finding in result.findings.values():
        for name, frame in finding.tables().items():
            if not len(frame.columns):  # of nothing found: no reader takes an empty file for a table
                continue
            write_atomically(folder / f"{name}.csv", partial(tables.write_csv, frame=frame))
        if isinstance(finding, WithTexts):
            for name, text in finding.texts().items():
                write_text(folder / name, text)
    write_config(result.config, folder)
    summary = summarize(replace(result, failures=failures))
    return write_record(Record(summary, figure_data(result), digests_of(folder)), folder, failures)


def write_config(config: RunConfig, folder: Path) -> None:
    """Write config.json. Raises OSError."""
    write_text(folder / "config.json", json.dumps(config.model_dump(mode="json"), indent=2) + "\n")


def finish(folder: Path, summary: RecordedSummary, failures: Mapping[str, Failure], seconds: float) -> Summary:
    """Write summary.json, which marks the run as finished, and return it; failure.log before it, where there are any.

    Raises OSError.
    """
    stories = "\n".join(f"{name}: {failure.story or failure.reason}" for name, failure in failures.items())
    if stories:
        with suppress(OSError):  # the reasons are in the summary
            write_text(folder / "failure.log", stories)
    whole = {**summary, **summary_entries(failures), "seconds/files": round(seconds, 3)}
    write_text(folder / "summary.json", json.dumps(whole, indent=2, allow_nan=False) + "\n")
    return whole


def summarize(result: Result) -> Summary:
    """Flat names to numbers and strings; a number that is not defined is None, with its reason under NAME/reason."""
    config = result.config
    summary: Summary = {
        **_logit_diffs(result),
        "gap": result.gap,
        "n_pairs": len(result.pairs),
        **({"n_left_out": len(result.left_out)} if config.prompts.skip_invalid else {}),
    }
    if result.spread is not None:
        summary |= _over_pairs(result, result.spread)
    for site in result.maps:
        comparison = result.comparisons[site]
        for name, number in {**comparison.summary(), "max_abs_delta": _delta(result, site)}.items():
            reason = comparison.reasons.get(name)
            if name in _IN_SCORES and not result.has_scores:
                reason = "a score needs a gap of at least prompts.min_gap and a tenth of |F(clean)|"
            defined = reason is None and math.isfinite(number)
            summary[f"{site}/{name}"] = number if defined else None
            if not defined:
                summary[f"{site}/{name}/reason"] = reason or "not finite"
        summary |= _top(result, site)
    if "heads" in result.comparisons and not config.positions.has_axis:
        summary["heads/outliers"] = " ".join(result.comparisons["heads"].outliers("heads"))
    for finding in result.findings.values():
        for name, value in finding.summary().items():
            finite = not isinstance(value, float) or math.isfinite(value)
            summary |= {name: value} if finite else {name: None, f"{name}/reason": "not finite"}
    summary |= summary_entries(result.failures)
    summary |= {f"seconds/{name}": round(value, 3) for name, value in result.seconds.items()}
    summary |= {
        "schema": SCHEMA,
        "key": result.key,
        "seed": config.seed,
        "model": config.model.name,
        "model/fingerprint": result.checkpoint,
        "model/processing": config.model.processing,
        "model/dtype": config.model.dtype,
        "device": result.device,
        "route": result.route,
        "route/reason": result.why_route,
        **_prompts(result),
        "prompts/align": config.prompts.align,
        "prompts/bos": result.tokens[0].leading or "none",
        "prompts/n_unmatched": sum(tokens.alignment.n_unmatched for tokens in result.tokens),
        "sites": config.sites,
        "metric": result.metric,
        "metric/unit": result.unit,
        **_values(result),
        "positions": config.positions.kind,
        **_positions(result),
        "direction": config.direction,
        "baseline": config.baseline.kind,
        "ig/n_steps": config.ig.n_steps,
        "ig/method": config.ig.method,
        "ig/path": config.ig.path,
        **{f"{site}/ig_n_steps": _steps(result, site) for site in result.maps},
        "warnings": "\n".join(result.warnings),
    }
    return summary | {f"version/{name}": version for name, version in result.versions.items()}


def _logit_diffs(result: Result) -> Summary:
    """The logit difference of the prompts, which answers of several tokens do not have."""
    names = ("clean_logit_diff", "corrupted_logit_diff")
    if result.has_logit_diffs:
        return {name: getattr(result, name) for name in names}
    reason = "an answer or distractor is several tokens, whose logits cannot be compared"
    return {key: value for name in names for key, value in ((name, None), (f"{name}/reason", reason))}


def _top(result: Result, site: Site) -> Summary:
    """What AP with `ap.top` leaves out, and what that may be at most."""
    top = result.maps[site]["ap"].top
    if top is None:
        return {}
    numbers = {field.name: getattr(top, field.name) for field in fields(top)}
    return {f"{site}/ap_top/{name}": number for name, number in {**numbers, "certain": int(top.is_certain)}.items()}


def _over_pairs(result: Result, spread: PairStatistics) -> Summary:
    """The spread of the gap, and the agreement of IG and AP pair by pair."""
    gaps = np.array(result.gaps)
    summary: Summary = {
        "n_unscored": result.n_unscored,
        "gap_low": float(spread.gap.low[0]),
        "gap_high": float(spread.gap.high[0]),
        "gap_sd": float(gaps.std(ddof=1)),
        "gap_min": float(gaps.min()),
        "gap_max": float(gaps.max()),
    }
    for site in result.maps:
        name = f"{site}/pearson_pairs_mean"
        numbers = spread.pearson_mean(site, result.config.prompts.seed)
        for end, number in zip(("", "_low", "_high"), numbers, strict=True):
            defined = math.isfinite(number)
            summary[name + end] = number if defined else None
            if not defined:
                known = int(np.isfinite(spread.pearson[site]).sum())
                summary[f"{name}{end}/reason"] = f"r is defined for {known} of {len(gaps)} pairs"
    return summary


def _values(result: Result) -> Summary:
    """F of the prompts, where that is another than the logit difference, which stands above."""
    if result.config.metric.is_default:
        return {}
    return {"clean_value": fmean(result.clean_values), "corrupted_value": fmean(result.corrupted_values)}


def _positions(result: Result) -> Summary:
    """What the maps say of their positions, as JSON: names of the axis, positions, and whether all are covered."""
    if result.config.positions.is_default:
        return {}
    maps = {f"{method}.{site}": each for site, of in result.maps.items() for method, each in of.items()}
    first = next(iter(maps.values()))
    known = {
        "names": first.spans,
        "where": first.where,
        "pairs": [each.where for each in first.pairs],
        "covers": {name: each.covers for name, each in maps.items()},
    }
    return {"positions/spans": json.dumps(known)}


def _prompts(result: Result) -> Summary:
    """The text of one pair; of several, where they come from: pairs.csv holds their texts."""
    prompts = result.config.prompts
    source: Summary = {} if prompts.file is None else {"prompts/file": prompts.file}
    if prompts.n is not None:
        source = {"prompts/n": prompts.n}
    if len(result.pairs) > 1:
        return {**source, "prompts/seed": prompts.seed}
    (pair,), (tokens,) = result.pairs, result.tokens
    return {
        **source,
        **{f"prompts/{name}": text for name, text in zip(TEXTS, pair.cells, strict=True)},
        "n_tokens": tokens.n_prompt,
        "n_tokens_corrupted": tokens.n_prompt_corrupted,
        **({"n_answer_tokens": tokens.n_read} if tokens.forced else {}),
        "first_difference": tokens.first_difference,
    }


def _delta(result: Result, site: Site) -> float:
    delta = result.maps[site]["ig"].delta
    assert delta is not None
    return float(delta.abs().max())


def _steps(result: Result, site: Site) -> str:
    """Quadrature nodes of each layer, first to last."""
    n_steps = result.maps[site]["ig"].n_steps
    assert n_steps is not None
    return " ".join(map(str, n_steps.tolist()))


def _tensors(result: Result) -> dict[str, torch.Tensor]:
    tensors = {}
    for site, maps in result.maps.items():
        for method, attribution in maps.items():
            tensors[f"{method}.{site}"] = attribution.score
            tensors[f"effect.{method}.{site}"] = attribution.effect
            if attribution.together is not None:
                tensors[f"together.{method}.{site}"] = attribution.together
            if attribution.delta is not None and attribution.layer_effect is not None:
                tensors[f"delta.{method}.{site}"] = attribution.delta
                tensors[f"layer_effect.{method}.{site}"] = attribution.layer_effect
            if result.spread is not None:
                ends = result.spread.intervals[site][method]
                for name, end in (("low", ends.low), ("high", ends.high)):
                    tensors[f"{name}.{method}.{site}"] = (
                        torch.from_numpy(end).to(attribution.score).view_as(attribution.score)
                    )
                tensors[f"pairs.{method}.{site}"] = by_pair(attribution, "score")
                tensors[f"pairs.effect.{method}.{site}"] = by_pair(attribution, "effect")
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
