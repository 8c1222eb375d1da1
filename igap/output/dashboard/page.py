"""All runs and searches as one HTML file: the data of runs as one JSON block, drawn by the page's own script.

Needs no other file."""

import base64
import hashlib
import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from igap.components import PLACES, Site, kind_of
from igap.output.dashboard import prompt_labels
from igap.output.dashboard.searches import Searches
from igap.output.dashboard.site_maps import SiteMap, mapped_sites
from igap.output.dashboard.table import Table, differing_keys, is_number, metric, setting
from igap.storage.finished import FinishedRun

MAX_MAPS = 7_000_000
"""Characters of the maps of all runs; what comes after is left out, so that the page stays below 10 MB."""
_LEFT_OUT = f"left out: the maps of the runs above it and its own take over {MAX_MAPS / 1e6:.0f} MB. Compare fewer runs"
_HERE = Path(__file__).parent
_SCRIPTS = ("page.js", "plots.js", "views.js")

IN_UNIT = re.compile(
    r"gap(_\w+)?|(clean|corrupted)_value|.*/max_abs_delta|.*/ap_top/(tolerance|least|bound)|(explain|direct_effect)/.*/mean_abs|curves/max_abs_bend"
    r"|ablation/.*/value(_change)?|faithfulness/.*/(full|empty)|both_directions/.*/mean_abs_asymmetry"
    r"|self_repair/effect|direct_effect/.*/effect|sets/.*/(effect(_low|_high)?|sum_alone|(largest_)?interaction|ig_delta)"
)
"""Names of numbers in the unit of a run's metric: of runs whose units differ they share no axis."""

RunMaps = Mapping[Site, SiteMap]
"""The maps of one run."""


def page(
    table: Table | None,
    maps: Mapping[Path, RunMaps],
    problems: Sequence[str] = (),
    searches: Searches | None = None,
) -> str:
    """The page of these runs, in the table's order, and of these searches; `problems` are quoted on it."""
    script = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":"), "ensure_ascii": False}
    runs = table.runs if table else ()
    return environment.get_template("page.html").render(
        data=_data(table, maps) if table else None,
        only_heads=all(site == "heads" for run in runs for site in mapped_sites(run)),
        only_default=not any(_metric(run) for run in runs),
        notes=[*(table.notes() if table else ()), *problems],
        searches=searches if searches and searches.searches else None,
        script=Markup(script),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _data(table: Table, maps: Mapping[Path, RunMaps]) -> dict[str, object]:
    """Column by column, a value a run."""
    runs, size = table.runs, 0
    drawn: list[dict[Site, object]] = []
    for run in runs:
        packed: dict[Site, object] = {site: _pack(values) for site, values in maps.get(run.folder, {}).items()}
        if size + len(str(packed)) > MAX_MAPS:
            packed = dict.fromkeys(packed, _LEFT_OUT)
        size += len(str(packed))
        drawn.append(_describe_maps(run, packed))
    return {
        "runs": [
            {
                "label": label,
                "key": run.key,
                "model": str(run.summary.get("model", "")),
                "known": bool(run.settings),
                "n_steps": _steps(run),
                "metric": _metric(run),
                "unit": str(run.summary.get("metric/unit", "logits")),
                "about": _about(run, table),
                "maps": shown,
            }
            for run, label, shown in zip(runs, table.labels, drawn, strict=True)
        ],
        "settings": _settings(table),
        "metrics": [
            {
                "name": name,
                "shown": name in table.metrics,
                "in_unit": IN_UNIT.fullmatch(name) is not None,
                "values": [_round(metric(run, name)) for run in runs],
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
    keys = differing_keys(runs, all_keys=True)
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


def _metric(run: FinishedRun) -> str:
    """F's name where it is another than the logit difference, which it was before there was a choice."""
    name = str(run.summary.get("metric", "logit_diff"))
    return "" if name == "logit_diff" else name


def _about(run: FinishedRun, table: Table) -> list[str]:
    """What the run's numbers are about beside the usual, where no column of the table says it."""
    positions = str(run.summary.get("positions", "all"))
    usual = {"metric": (_metric(run), ""), "positions": (positions, "all")}
    return [
        f"{name}={got}"
        for name, (got, default) in usual.items()
        if got != default and not any(key.startswith(f"{name}.") for key in table.settings)
    ]


def _describe_maps(run: FinishedRun, packed: Mapping[Site, object]) -> dict[Site, object]:
    """The map of each site, or a text that says why there is none."""
    sites = mapped_sites(run)
    if not sites:
        return {"heads": f"it was asked about {run.settings.get('sites')} only (sites={run.settings.get('sites')})"}
    return {site: packed.get(site, f"its {site} could not be read") for site in sites}


def _pack(values: SiteMap) -> dict[str, object]:
    """IG, then AP, as little-endian floats in base64: exact, shorter than digits. Four bytes each where that does."""
    numbers = values.ig + values.ap
    try:
        four = struct.pack(f"<{len(numbers)}f", *numbers)
    except OverflowError:  # too large for four bytes
        four = bytes(4 * len(numbers))
    exact = all(a == b or math.isnan(a) for a, b in zip(numbers, struct.unpack(f"<{len(numbers)}f", four), strict=True))
    return {
        "unit": values.unit,
        "kind": "" if PLACES[values.site].is_vector else kind_of(values.site),
        "rows": values.rows,
        "columns": values.columns,
        "row": values.row,
        "column": values.column,
        "name": values.name,
        "bytes": 4 if exact else 8,
        "numbers": base64.b64encode(four if exact else struct.pack(f"<{len(numbers)}d", *numbers)).decode(),
    }


def _steps(run: FinishedRun) -> int | None:
    """ig.n_steps where it is a number: of auto each layer has its own."""
    value = run.settings.get("ig.n_steps")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _round(number: int | float | None) -> int | float | None:
    """To 7 digits: the CSV has them in full."""
    return number if number is None or isinstance(number, int) else float(f"{number:.7g}")
