"""All runs as one HTML file: the data as one JSON block, drawn by the page's own script. Needs no other file."""

import base64
import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from igap.output.dashboard import prompt_labels
from igap.output.dashboard.head_maps import Heads
from igap.output.dashboard.table import Table, differing, is_number, metric, setting
from igap.storage.finished import FinishedRun

MAX_MAPS = 7_000_000
"""Characters of IG and AP over all runs; what comes after is left out, so that the page stays below 10 MB."""
_HERE = Path(__file__).parent
_SCRIPTS = ("page.js", "plots.js", "views.js")


def page(table: Table, maps: Mapping[Path, Heads], problems: Sequence[str] = ()) -> str:
    """The page of these runs, in the table's order; `problems` are quoted on it."""
    script = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":"), "ensure_ascii": False}
    return environment.get_template("page.html").render(
        data=_data(table, maps),
        notes=[*table.notes(), *problems],
        script=Markup(script),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _data(table: Table, maps: Mapping[Path, Heads]) -> dict[str, object]:
    """Column by column, a value a run."""
    runs, size = table.runs, 0
    drawn: list[dict[str, object] | None] = []
    for run in runs:
        packed = _packed(maps[run.folder]) if run.folder in maps else None
        size += 0 if packed is None else len(str(packed["numbers"]))
        drawn.append(packed if size <= MAX_MAPS else None)
    return {
        "runs": [
            {
                "label": label,
                "key": run.key,
                "model": str(run.summary.get("model", "")),
                "known": bool(run.settings),
                "n_steps": _steps(run),
                "heads": packed,
                "no_heads": "" if packed is not None else _why(run, maps),
            }
            for run, label, packed in zip(runs, table.labels, drawn, strict=True)
        ],
        "settings": _settings(table),
        "metrics": [
            {
                "name": name,
                "shown": name in table.metrics,
                "values": [_rounded(metric(run, name)) for run in runs],
                "reasons": {
                    index: str(run.summary[f"{name}/reason"])
                    for index, run in enumerate(runs)
                    if metric(run, name) is None and f"{name}/reason" in run.summary
                },
            }
            for name in dict.fromkeys([*table.metrics, *table.every_metric])
        ],
    }


def _settings(table: Table) -> list[dict[str, object]]:
    """Every setting that differs; before the first text of prompts, their labels where the table shows these."""
    runs, shown = table.runs, table.shown_settings
    keys = differing(runs, all_keys=True)
    labelled = [key for key in keys if key in prompt_labels.KEYS] if prompt_labels.NAME in shown else []
    columns: list[dict[str, object]] = []
    for key in keys:
        if key in labelled[:1]:
            labels = [text or None for text in shown[prompt_labels.NAME]]
            columns.append(
                {"name": prompt_labels.NAME, "shown": True, "numeric": False, "label": True, "values": labels}
            )
        columns.append(
            {
                "name": key,
                "shown": key in shown,
                "numeric": all(is_number(run.settings[key]) for run in runs if key in run.settings),
                "values": [setting(run, key) if key in run.settings else None for run in runs],
            }
        )
    return columns


def _packed(heads: Heads) -> dict[str, object]:
    """IG, then AP, as little-endian floats in base64: exact, shorter than digits. Four bytes each where that does."""
    numbers = heads.ig + heads.ap
    try:
        four = struct.pack(f"<{len(numbers)}f", *numbers)
    except OverflowError:  # too large for four bytes
        four = bytes(4 * len(numbers))
    exact = all(a == b or math.isnan(a) for a, b in zip(numbers, struct.unpack(f"<{len(numbers)}f", four), strict=True))
    return {
        "unit": heads.unit,
        "shape": [heads.n_layers, heads.n_heads],
        "bytes": 4 if exact else 8,
        "numbers": base64.b64encode(four if exact else struct.pack(f"<{len(numbers)}d", *numbers)).decode(),
    }


def _why(run: FinishedRun, maps: Mapping[Path, Heads]) -> str:
    if run.folder in maps:
        return f"left out: the maps of the runs above it take {MAX_MAPS / 1e6:.0f} MB already. Compare fewer runs."
    return "its heads could not be read" if run.has_heads else "it was asked about neurons only (sites=neurons)"


def _steps(run: FinishedRun) -> int | None:
    """ig.n_steps where it is a number: of auto each layer has its own."""
    value = run.settings.get("ig.n_steps")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _rounded(number: int | float | None) -> int | float | None:
    """To 7 digits: the CSV has them in full."""
    return number if number is None or isinstance(number, int) else float(f"{number:.7g}")
