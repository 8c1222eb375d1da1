"""The study as one HTML page in the notebook's order: figures inside it, every text escaped."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from igap.config import TEXTS
from igap.pipeline import Result
from igap.replication.study import COLUMNS, Cell, Study

_SECTIONS: Sequence[tuple[str, str, Sequence[tuple[str, str]], Sequence[str]]] = (
    (
        "Attribution with the zero baseline",
        "Integrated Gradients towards zero, activation patching towards the corrupted prompt: two questions.",
        [("zero-baseline", f"{site}_{plot}") for site in ("neurons", "heads") for plot in ("heatmap", "scatter")]
        + [("zero-baseline", "neurons_mean_difference"), ("zero-baseline", "heads_difference")],
        (),
    ),
    (
        "Comparable baselines",
        "Both methods towards the corrupted prompt.",
        [("", f"{site}_{plot}") for site in ("neurons", "heads") for plot in ("heatmap", "scatter", "mean_difference")]
        + [("", "heads_difference"), ("", "jaccard"), ("", "convergence_delta")],
        (),
    ),
    (
        "Comparison to the IOI circuit",
        "The 26 heads that Wang et al. (2022) name in GPT-2 small.",
        [("", "circuit")],
        ("circuit",),
    ),
    (
        "Ablation of the outlier heads",
        "Performance on generated prompts when a head is taken away, in the ways the notebook did and wanted to.",
        [],
        ("ablation",),
    ),
    (
        "Model output along the path of single heads",
        "0 is the clean run, 1 the corrupted activation.",
        [("", "output_curves")],
        ("curves",),
    ),
    (
        "Optimal contrastive pairs: the second pair",
        "The notebook's other corrupted prompt, of another length: each is run alone, matching tokens are patched.",
        [("second-pair", "heads_heatmap"), ("second-pair", "heads_scatter"), ("second-pair", "output_curves")],
        (),
    ),
    (
        "Why the methods disagree",
        "The exact chain from one to the other, term by term.",
        [("", "explanation"), ("", "interactions")],
        ("explain",),
    ),
    (
        "Which method ranks better",
        "Components taken away, or kept, in the order of each method.",
        [("", "faithfulness_heads")],
        ("faithfulness",),
    ),
)
"""Title, text, figures as (run, name), findings whose sentences are quoted. A section without content is left out."""


def page(result: Result, study: Study, folder: Path) -> str:
    """The page of a study whose figures lie in `folder`. Needs no other file."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    (pair,) = result.pairs
    return environment.get_template("page.html").render(
        model=result.config.model.short_name,
        prompts=[
            *zip(TEXTS, pair.texts, strict=True),
            ("second corrupted", result.beside["second-pair"].pairs[0].corrupted),
            ("token before every prompt", result.tokens[0].leading or "none"),
        ],
        sections=list(filter(None, (_section(result, folder, *section) for section in _SECTIONS))),
        columns=COLUMNS,
        rows=[
            {
                "figure": row.figure,
                "published": _cell(study.find_published(row)),
                "cells": [(_cell(row.cells[column]), column == row.source) for column in COLUMNS],
                "agrees": {True: "yes", False: "no", None: ""}[row.agrees],
                "why": row.why,
            }
            for row in study.rows
        ],
        verdict=" ".join(study.sentences()),
        key=result.key,
        versions=", ".join(f"{name} {version}" for name, version in result.versions.items()),
    )


def _section(
    result: Result, folder: Path, title: str, text: str, figures: Sequence[tuple[str, str]], findings: Sequence[str]
) -> Mapping[str, object] | None:
    files = [folder / run / "plots" / f"{name}.png" for run, name in figures]
    files += [
        file for name in findings for file in sorted((folder / "plots").glob(f"{name}*.png")) if file not in files
    ]
    shown = [
        {"caption": _caption(folder, file), "data": base64.b64encode(file.read_bytes()).decode()}
        for file in files
        if file.is_file()
    ]
    sentences = (
        [
            line
            for name, finding in result.findings.items()
            if name.startswith(tuple(findings))
            for line in finding.sentences()
        ]
        if findings
        else []
    )
    return {"title": title, "text": text, "sentences": sentences, "figures": shown} if shown or sentences else None


def _caption(folder: Path, file: Path) -> str:
    """What it is, of which run, and where it lies."""
    place = file.relative_to(folder)
    run = f" ({place.parts[0].replace('-', ' ')})" if len(place.parts) > 2 else ""
    return f"{file.stem.replace('_', ' ').capitalize()}{run}: {place}"


def _cell(value: Cell) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}"
