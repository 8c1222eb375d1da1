"""An atlas on disk: tables, a picture, one page that holds all of it; `atlas_summary.json` comes last."""

import base64
import json
from functools import partial
from html import escape
from pathlib import Path

import pandas as pd

from igap.counterfactual.atlas.atlas import Atlas
from igap.counterfactual.atlas.plots import draw_atlas
from igap.counterfactual.config import SearchConfig
from igap.counterfactual.validation.verdict import format_signed
from igap.plots import write_png
from igap.storage.atomic import write_atomically, write_text
from igap.storage.finished import SCHEMA
from igap.storage.tables import write_csv
from igap.storage.versions import versions

FOLDER = "atlas"
"""In the folder of the searches."""

_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0;font-size:13px}td,th{padding:3px 8px;text-align:left;"
    "border-bottom:1px solid #ddd;vertical-align:top}th{background:#f4f4f4;position:sticky;top:0}"
    "img{max-width:100%}details{margin:1em 0}pre{white-space:pre-wrap;background:#f7f7f7;padding:1em}"
)


def write(atlas: Atlas, config: SearchConfig, parent: Path, key: str) -> None:
    """Write an atlas into `atlas/` in the folder of the searches; `key` tells it from others. Raises OSError."""
    folder = parent / FOLDER
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    frames = {"heads": atlas.head_frame(), "prompts": atlas.prompt_frame(), "clusters": atlas.cluster_frame()}
    for name, frame in frames.items():
        write_atomically(folder / f"{name}.csv", partial(write_csv, frame=frame))
    matrices = {"matrix": atlas.effects} | ({} if atlas.heldout is None else {"heldout": atlas.heldout})
    for name, values in matrices.items():
        matrix = pd.DataFrame(values, index=pd.Index(atlas.heads, name="head"), columns=list(atlas.prompts))
        write_atomically(folder / f"{name}.csv", partial(write_csv, frame=matrix, index=True))
    picture = draw_atlas(atlas, title=f"{config.model.name}")
    image = folder / "plots" / "atlas.png"
    write_atomically(image, partial(write_png, picture))
    write_text(folder / "atlas.html", _page(atlas, frames, image.read_bytes(), str(config.model.name)))
    write_text(folder / "config.json", config.model_dump_json(indent=2) + "\n")
    summary = {"schema": SCHEMA, "key": key, "model": config.model.name, **atlas.summary(), **versions()}
    write_text(folder / "atlas_summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def _page(atlas: Atlas, frames: dict[str, pd.DataFrame], image: bytes, model: str) -> str:
    """One file, with the picture and the tables in it."""
    titles = {
        "prompts": "The few prompts", "clusters": "Clusters: prompts that show the same heads", "heads": "Heads",
    }  # fmt: skip
    notes = {
        "prompts": "The fewest of the prompts that the searches ended with, not of their whole space. share: what they "
        "show so far; shows_most: heads that no other prompt shows more.",
        "clusters": f"Edits that four in five of a cluster's prompts share. Effects in {atlas.unit}.",
        "heads": f"AP effects in {atlas.unit}, means over clean prompts: with the pairs made by hand, in the prompt "
        "that shows the head most, and in the one of the few that does."
        + (
            ""
            if atlas.alone is None
            else " effect_alone: in rule_alone, the head's own best prompt of one search for all."
        ),
    }
    few = frames["prompts"].dropna(subset="chosen").sort_values("chosen")
    shown = {**frames, "prompts": few}
    parts = [
        f"<h2>{titles[name]}</h2><p>{escape(notes[name])}</p>{_table(shown[name])}"
        for name in ("prompts", "clusters", "heads")
    ]
    rest = frames["prompts"].drop(few.index)
    parts.insert(1, f"<details><summary>the other {len(rest)}</summary>{_table(rest)}</details>")
    encoded = base64.b64encode(image).decode()
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>atlas of {escape(model)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>Atlas of counterfactuals: {escape(model)}</h1>"
        f"<pre>{escape(chr(10).join(atlas.sentences()))}</pre>"
        f'<img alt="AP effect of every head in every prompt" src="data:image/png;base64,{encoded}">'
        f"{''.join(parts)}</body></html>\n"
    )


def _table(frame: pd.DataFrame) -> str:
    with pd.option_context("display.max_colwidth", None):  # otherwise texts are cut
        html: str = frame.astype(dict.fromkeys(frame.columns[frame.dtypes == "Int64"], object)).to_html(
            index=False, float_format=format_signed, na_rep="", border=0, justify="left"
        )
    return html
