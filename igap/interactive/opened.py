"""Finished runs, opened from disk: maps, comparisons, tables, summary and config, each as its own type.

Anybody may have written what lies in a folder: it is read with distrust, and held against the digests that the run has
left of its files, so that what is opened is what was measured.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from safetensors import safe_open
from torch import Tensor

from igap.attribution.maps import AttributionMap, Top
from igap.attribution.methods import METHODS
from igap.components import Site
from igap.config import RunConfig, parse
from igap.display import markup
from igap.display.binding import Axes, draw
from igap.errors import InputError, one_line, printable
from igap.errors.arguments import checks_arguments
from igap.output import record
from igap.statistics.comparison import Comparison, compare
from igap.statistics.warnings import least_gaps
from igap.storage.finished import failures_of, read_run
from igap.storage.tables import TEXTS, read_csv
from igap.storage.untrusted import LARGEST_TABLE, check_file, parse_json, read_json_object

TENSORS = "attributions.safetensors"


@checks_arguments
@dataclass(frozen=True, eq=False)
class Run:
    """A finished run, as `run` gives it and `open_run` opens it.

    Example:
        >>> finished = open_run("runs/first")
        >>> finished.summary["heads/outliers"], finished.config.baseline.kind, sorted(finished.tables)[:2]
        ('0.3 0.5 0.2 0.6', 'corrupted', ['curves', 'curves_components'])
    """

    folder: Path
    config: RunConfig
    """The settings, as checked."""
    summary: Mapping[str, int | float | str | None]
    """The values of summary.json by name; an undefined one is None, with its reason under NAME/reason."""
    maps: Mapping[Site, Mapping[str, AttributionMap]]
    """By site, then method: `maps["heads"]["ap"]`. Of several pairs the mean, with the map of each in its `pairs`."""

    @cached_property
    def comparisons(self) -> Mapping[Site, Comparison]:
        """IG against AP, by site."""
        return {site: compare(maps["ig"], maps["ap"]) for site, maps in self.maps.items()}

    @cached_property
    def tables(self) -> Mapping[str, pd.DataFrame]:
        """The run's CSV files as pandas DataFrames, by file name without suffix: `tables["heads"]`.

        Raises InputError on one that cannot be read.
        """
        return {path.stem: _table(path) for path in sorted(self.folder.glob("*.csv"))}

    @property
    def failures(self) -> dict[str, str]:
        """The analyses and figures that failed, with their reasons; empty for a run that has all it should."""
        return failures_of(self.summary)

    @checks_arguments
    def plot(self, name: str = "heads_scatter") -> Axes:
        """Return the axes of a figure by its name, drawn anew; a notebook shows it as a picture.

        Also of a run with `plots=none`. `.figure.savefig("x.png")` writes a file.

        Raises InputError on a name that the run has no figure of, with all names that it has.
        """
        return draw("record", self.folder, name)

    def __repr__(self) -> str:
        return f"Run({'; '.join(self._facts())})"

    def _repr_html_(self) -> str:
        heading, *lines = self._facts()
        return markup.block(heading, lines) + "".join(each._repr_html_() for each in self.comparisons.values())

    def _facts(self) -> list[str]:
        config, summary, ap = self.config, self.summary, next(iter(self.maps.values()))["ap"]
        pairs = f", {len(ap.pairs)} pairs" if ap.pairs else ""
        agree = [
            f"{site} r {r:.3f}"
            if isinstance(r := summary.get(f"{site}/pearson"), float | int)
            else f"{site} r undefined"
            for site in self.maps
        ]
        failed = [f"failed: {', '.join(self.failures)}"] if self.failures else []
        return [
            f"{config.model.short_name}, {config.direction}, {config.baseline.kind} baseline{pairs}",
            f"gap {ap.gap:+.3f} {ap.unit}, {', '.join(agree)}",
            *failed,
            format_path(self.folder),
        ]


@checks_arguments
def open_run(folder: str | Path) -> Run:
    """A finished run, read from its folder.

    Args:
        folder: The run's, which holds `summary.json`: as `igap run` has written it, or a job of a sweep.

    Returns:
        Its maps, comparisons, tables, summary and config. Tables are read when they are asked for.

    Raises:
        InputError: There is no finished run in the folder, another igap has written it, or one of its files is not as
            the run has left it.

    Example:
        >>> finished = open_run("runs/first")
        >>> finished.maps["heads"]["ap"].score.allclose(ap.score), finished.comparisons["heads"].outliers("heads")
        (True, ['0.3', '0.5', '0.2', '0.6'])
    """
    place, folder = printable(folder), absolute(folder)
    _check_folder(folder, place)
    finished, problem = read_run(folder)
    if problem is not None or finished is None:
        raise InputError(f"folder: {problem} Run it again, or open another.")
    try:
        _check_digests(folder)
        config = parse(read_json_object(folder / "config.json"))
        maps = {site: _maps(folder, config, finished.summary, site) for site in config.asked_sites}
    except Exception as error:  # of files that anybody may have written
        reason = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        raise InputError(
            f"folder: got {place}, whose files are not as a run leaves them ({reason}). Run it again."
        ) from error
    return Run(folder, config, finished.summary, maps)


def absolute(folder: str | Path) -> Path:
    """The folder wherever the working folder goes: tables are read later."""
    return Path(os.path.abspath(os.path.expanduser(folder)))


def format_path(folder: Path) -> str:
    """The folder as it is called from the working folder, where it lies in that."""
    return printable(os.path.relpath(folder) if folder.is_relative_to(os.getcwd()) else folder)


def _check_folder(folder: Path, place: str) -> None:
    """Raises InputError on a folder that is none, or holds no finished run of its own."""
    if not os.path.isdir(folder):
        raise InputError(
            f"folder: got {place}, which is no folder, wanted a run's. igap compare FOLDER lists the runs in a folder."
        )
    if os.path.lexists(folder / "summary.json"):
        return
    try:
        names = set(os.listdir(folder))
    except OSError as error:
        raise InputError(f"folder: got {place}, which cannot be read ({error.strerror}). Open another.") from error
    if "search_summary.json" in names:
        why = "which is a search's: its prompts and numbers are in search_summary.json and trials.csv"
    elif names & {".hydra", "config.json", record.FILE}:
        why = "a run that is not finished (no summary.json)"
    elif "sweep.json" in names or any(folder.glob("*/summary.json")):
        why = "which holds several runs"
    else:
        why = "which is no run's (no summary.json)"
    remedy = "Use igap.open_sweep." if why.endswith("runs") else "Open another, or run it again."
    raise InputError(f"folder: got {place}, {why}, wanted the folder of one finished run. {remedy}")


def _check_digests(folder: Path) -> None:
    """Raises ValueError on a table or tensors that are not as the run wrote them. Older runs have no record."""
    if not os.path.lexists(folder / record.FILE):
        return
    for path in (*folder.glob("*.csv"), folder / TENSORS):
        _check_file(path)  # before its bytes are read: a pipe would never end
    written, present = record.read(folder).digests, record.digests_of(folder)
    changed = sorted(name for name in written.keys() | present.keys() if written.get(name) != present.get(name))
    if changed:
        raise ValueError(f"{printable(', '.join(changed))} changed since the run")


def _check_file(path: Path) -> None:
    """Raises ValueError with name and reason on what is no file."""
    try:
        check_file(path)
    except ValueError as error:
        raise ValueError(f"{printable(path.name)}: {error}") from None


def _maps(folder: Path, config: RunConfig, summary: Mapping[str, Any], site: Site) -> dict[str, AttributionMap]:
    """The maps of a site by method. Raises ValueError and others where the file does not hold them."""
    path = folder / TENSORS
    _check_file(path)
    with safe_open(path, framework="pt") as file:
        names, tensor = set(file.keys()), cast("Callable[[str], Tensor]", file.get_tensor)
        methods = [method for method in METHODS if f"effect.{method}.{site}" in names]
        if not {"ig", "ap"} <= set(methods):
            raise ValueError(f"{TENSORS} has no ig and ap of {site}")
        pairs = _pairs(folder, config, summary)
        return {method: _map(method, site, config, summary, pairs, names, tensor) for method in methods}


def _map(
    method: str,
    site: Site,
    config: RunConfig,
    summary: Mapping[str, Any],
    pairs: Sequence[tuple[float, float]],
    names: set[str],
    tensor: Callable[[str], Tensor],
) -> AttributionMap:
    """The map of a method. Raises ValueError where its scores are not its effects over the gap."""
    known: dict[str, Any] = {
        "baseline": METHODS[method].baseline(config).kind,
        "direction": config.direction,
        "signed": METHODS[method].signed,
        "metric": str(summary.get("metric", "logit_diff")),
        "unit": str(summary.get("metric/unit", "logits")),
    }
    places = _spans(f"{method}.{site}", summary)
    of_pairs = places.pop("pairs", [None] * len(pairs))
    known |= places
    each: tuple[AttributionMap, ...] = ()
    if len(pairs) > 1:
        effects = tensor(f"pairs.effect.{method}.{site}")
        if not len(effects) == len(of_pairs) == len(pairs):
            raise ValueError(f"{TENSORS} has {len(effects)} pairs, pairs.csv {len(pairs)}")
        each = tuple(
            AttributionMap(method, site, effect, gap, least, **{**known, **({"where": where} if places else {})})
            for effect, (gap, least), where in zip(effects, pairs, of_pairs, strict=True)
        )
    if f"delta.{method}.{site}" in names:
        known["delta"] = tensor(f"delta.{method}.{site}")
        known["layer_effect"] = tensor(f"layer_effect.{method}.{site}")
        known["n_steps"] = torch.tensor([int(n) for n in str(summary[f"{site}/ig_n_steps"]).split()])
    if method == "ap" and f"{site}/ap_top/k" in summary:
        known["top"] = Top(**{each.name: summary[f"{site}/ap_top/{each.name}"] for each in fields(Top)})
        each = tuple(replace(of_pair, top=known["top"]) for of_pair in each)
    if f"together.{method}.{site}" in names:
        known["together"] = tensor(f"together.{method}.{site}")
    effect = tensor(f"effect.{method}.{site}")
    shown = AttributionMap(method, site, effect, float(summary["gap"]), pairs[0][1], pairs=each, **known)
    saved = tensor(f"{method}.{site}")
    # The means over pairs may have been taken on another device, in another order.
    if saved.shape != shown.score.shape or not torch.allclose(shown.score, saved, rtol=1e-4, atol=1e-7, equal_nan=True):
        raise ValueError(f"the scores {method}.{site} are not the effects over the gap")
    return shown


def _spans(name: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the summary says of a map's positions. Raises ValueError and others on what no run has written."""
    if "positions/spans" not in summary:
        return {}
    tree = parse_json(str(summary["positions/spans"]))
    names = tree["names"]
    return {
        "spans": None if names is None else tuple(map(str, names)),
        "where": _places(tree["where"]),
        "pairs": [_places(where) for where in tree["pairs"]],
        "covers": bool(tree["covers"][name]),
    }


def _places(where: Any) -> tuple[tuple[int, ...], ...] | None:
    """The positions of each span. Raises TypeError and others on what is none."""
    return None if where is None else tuple(tuple(map(int, each)) for each in where)


def _pairs(folder: Path, config: RunConfig, summary: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Gap of each pair, and the least gap for scores, in logits."""
    if summary["n_pairs"] == 1:
        clean = summary["clean_logit_diff"]
        rows = [(float(summary["gap"]), float("nan") if clean is None else float(clean))]
    else:
        frame = _table(folder / "pairs.csv").astype({"gap": float, "clean_logit_diff": float})
        rows = list(zip(frame["gap"].tolist(), frame["clean_logit_diff"].tolist(), strict=True))
        if len(rows) != summary["n_pairs"]:
            raise ValueError(f"pairs.csv has {len(rows)} rows, n_pairs is {printable(summary['n_pairs'], 20)}")
    return list(zip((gap for gap, _ in rows), least_gaps(config, [clean for _, clean in rows]), strict=True))


def _table(path: Path) -> pd.DataFrame:
    """A table of a run. Raises InputError with the file and the reason where it cannot be read."""
    try:
        check_file(path, LARGEST_TABLE)
        return read_csv(path, TEXTS, exact=True)
    except Exception as error:  # of a file that anybody may have written pandas raises whatever it stumbles over
        raise InputError(f"folder: {printable(path)} cannot be read ({one_line(error)}). Run it again.") from error
