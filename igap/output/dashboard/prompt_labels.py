"""One short text a run for its prompts, whose own keys are texts as long as a line and several of them."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from igap.storage.finished import FinishedRun, Value

NAME = "prompts"
"""The column that stands for the keys below where more than one of them differs."""

KEYS = tuple(f"prompts.{name}" for name in ("clean", "corrupted", "answer", "distractor", "n", "file"))


def prompt_labels(runs: Sequence[FinishedRun]) -> list[str]:
    """What tells the runs' prompts apart: "John - Mary" (answer and distractor), "100 generated", a file's name.

    Numbered where different prompts would have one label, in an order that does not depend on that of the runs. Empty
    for a run whose settings are not known.
    """
    known = {_identity(run): _label(run.settings) for run in runs if run.settings}
    alike: dict[str, list[str]] = {}
    for identity in sorted(known):
        alike.setdefault(known[identity], []).append(identity)
    numbered = {
        identity: f"{label} ({i})" if len(identities) > 1 else label
        for label, identities in alike.items()
        for i, identity in enumerate(identities, start=1)
    }
    return [numbered[_identity(run)] if run.settings else "" for run in runs]


def _identity(run: FinishedRun) -> str:
    return repr([run.settings.get(key) for key in KEYS])  # a damaged config may hold lists of lists


def _label(settings: Mapping[str, Value]) -> str:
    clean, _, answer, distractor, n, file = (settings.get(key) for key in KEYS)
    if n is not None:
        return f"{n} generated"
    if file is not None:
        return PurePath(str(file)).name
    return str(clean) if answer is None else f"{str(answer).strip()} - {str(distractor).strip()}"
