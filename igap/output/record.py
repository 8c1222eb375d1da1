"""A run's record: what its pictures and its summary are made from, without the model, in one file of the run's folder.

It is written when everything of the run is on disk but the pictures and `summary.json`. So a run whose process died
in between is finished from it and nothing is computed again, and pictures are drawn from it whenever they are asked
for. It is read back as if anybody could have written it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from igap.analyses.registry import ANALYSES
from igap.components import Site
from igap.errors import printable
from igap.errors.failures import Failure, collect_failure
from igap.output import figures
from igap.output.figures import FOLDER, Drawn, FigureData, SiteData, finding_type, has_figures
from igap.storage import atomic, tensors_file, typed_file
from igap.storage.untrusted import parse_json

FILE = "record.safetensors"
"""Its name in a run's folder."""

SCHEMA = 1
"""Version of the file; another number means that its fields have changed."""

Summary = Mapping[str, int | str | float | None]


@dataclass(frozen=True, eq=False)
class Record:
    """What a run leaves for its pictures and its summary."""

    summary: Summary
    """summary.json, without what only drawing tells: the pictures that failed, the seconds of the files."""
    data: FigureData
    digests: Mapping[str, str] = field(default_factory=dict)
    """Name to SHA-256 of the files beside it that hold the run's tensors and tables."""

    def is_whole(self, folder: Path) -> bool:
        """Return whether those files are in the folder as they were written."""
        return self.digests == digests_of(folder)


def digests_of(folder: Path) -> dict[str, str]:
    """Return name to SHA-256 of the files in a run's folder that hold its tensors and tables."""
    paths = [*sorted(folder.glob("*.csv")), folder / "attributions.safetensors"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def write(record: Record, folder: Path, failures: dict[str, Failure]) -> Record:
    """Write the record of a run and return it as it can be read back.

    A finding that no file can hold is left out of it, and named in `failures` in place of its pictures. Raises OSError.
    """
    tensors: dict[str, torch.Tensor] = {}
    data, findings, trees = record.data, dict[str, Any](), dict[str, Any]()
    for name, finding in data.findings.items():
        with collect_failure(f"{FOLDER}/{name}", failures):
            more = dict(tensors)
            trees[name] = typed_file.encode(finding, more)
            findings[name], tensors = finding, more
    tree = {
        "schema": SCHEMA,
        "summary": typed_file.encode(record.summary, tensors),
        "digests": dict(record.digests),
        "title": data.title,
        "several_pairs": data.several_pairs,
        "metric_unit": data.metric_unit,
        "sites": typed_file.encode(data.sites, tensors),
        "findings": trees,
    }
    atomic.write_bytes(folder / FILE, tensors_file.to_bytes(json.dumps(tree, allow_nan=False), tensors))
    return replace(record, data=replace(data, findings=findings))


def read(folder: Path) -> Record:
    """Return the record in a run's folder.

    Raises:
        ValueError: There is none, or it is not as igap wrote it; the text says why.
    """
    text, tensors = tensors_file.read(folder / FILE)
    tree = parse_json(text)
    schema = tree.get("schema", "none") if isinstance(tree, dict) else "none"
    if schema != SCHEMA:
        raise ValueError(f"its schema is {printable(schema, 60)}, this igap knows {SCHEMA}")

    def value_of(name: str, hint: Any) -> Any:
        return typed_file.decode(hint, tree.get(name), tensors, name)

    findings = tree.get("findings")
    if not isinstance(findings, dict) or not all(name in ANALYSES and has_figures(name) for name in findings):
        raise ValueError("it has findings of no analysis that draws")
    data = FigureData(
        title=value_of("title", str),
        several_pairs=value_of("several_pairs", bool),
        sites=value_of("sites", Mapping[Site, SiteData]),
        findings={
            name: typed_file.decode(finding_type(name), finding, tensors, name) for name, finding in findings.items()
        },
    )
    if "metric_unit" in tree:  # since runs have a metric
        data = replace(data, metric_unit=value_of("metric_unit", str))
    summary = value_of("summary", Mapping[str, int | str | float | None])
    return Record(summary, data, value_of("digests", Mapping[str, str]))


def draw(folder: Path, wanted: frozenset[str]) -> Drawn:
    """Draw pictures of a run from the record in its folder, as `figures.draw` does.

    Raises:
        ValueError: The record cannot be read; the text names the file and says why.
    """
    try:
        data = read(folder).data
    except ValueError as error:
        raise ValueError(f"{FILE}: {error}") from None
    return figures.draw(data, folder, wanted)


def draw_or_say(folder: Path, wanted: frozenset[str]) -> Drawn:
    """Draw as `draw` does; a record that cannot be read is one failure, in place of all pictures."""
    if not wanted:
        return Drawn({}, 0.0)
    try:
        return draw(folder, wanted)
    except ValueError as error:
        return Drawn({f"{FOLDER}/record": Failure(str(error), "")}, 0.0)
