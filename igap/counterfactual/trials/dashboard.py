"""What Optuna Dashboard shows of a study beside its trials: a note, and pictures. Needs none of its packages.

A note is an attribute of the study, cut into pieces, with a version; a picture is an artifact of Optuna's, a file named
by an id, which an attribute of the study describes.
"""

import importlib.util
import json
import shlex
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from optuna.artifacts import ArtifactMeta

from igap.counterfactual.trials.locking import exclusive
from igap.counterfactual.trials.storages import URL, one_line_errors, sqlite_url
from igap.counterfactual.trials.study import TrialStore
from igap.errors import InputError
from igap.storage.atomic import write_bytes
from igap.storage.studies import STUDY_FILES

FOLDER = "artifacts"
"""In a search's folder: the pictures, named by ids."""

_VERSION, _TEXT, _LENGTH = "dashboard:note_ver", "dashboard:note_str:", 2045
_ARTIFACT = "artifacts:"
_OWN = "igap:note"
"""The study's attributes; the last has what igap has put into the note, so that what a user writes there stays."""

_WRITING = ("a failure while writing the study's note", "The same command tries again.")


def check_dashboard(kind: str) -> None:
    """Raises InputError where Optuna Dashboard is not installed, or cannot open a storage of this kind."""
    if kind not in (*STUDY_FILES, "postgres"):
        raise InputError(
            f"search.dashboard: got true with search.storage={kind}, which Optuna Dashboard cannot open, wanted "
            "sqlite, journal or postgres. Use search/storage=sqlite, or search.dashboard=false."
        )
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise InputError(
            "search.dashboard: got true, but Optuna Dashboard is not installed. "
            'pip install -e ".[dashboard]" -c constraints.txt, or search.dashboard=false.'
        )


def dashboard_command(kind: str, folder: Path) -> str:
    """The command that opens the study of a search's folder in Optuna Dashboard."""
    if kind == "postgres":
        storage = f'"${URL}"'
    else:
        file = folder / STUDY_FILES[kind]
        storage = shlex.quote(sqlite_url(file) if kind == "sqlite" else str(file))
    return f"optuna-dashboard {storage} --artifact-dir {shlex.quote(str(folder / FOLDER))}"


def save_note(trials: TrialStore, text: str) -> None:
    """Put a text into the study's note, in the place of the last one; what else is written there stays.

    Raises InputError or OSError on a storage that fails.
    """
    storage, study = trials.study._storage, trials.study._study_id
    with one_line_errors(*_WRITING), exclusive(trials.storage, trials.study.study_name):
        attributes = storage.get_study_system_attrs(study)
        n_before = sum(name.startswith(_TEXT) for name in attributes)
        note = "".join(attributes[f"{_TEXT}{i}"] for i in range(n_before))
        own = attributes.get(_OWN)
        changed = note.replace(own, text, 1) if own and own in note else "\n".join(filter(None, (text, note)))
        if changed == note:
            return
        pieces = [changed[start : start + _LENGTH] for start in range(0, len(changed), _LENGTH)]
        pieces += [""] * (n_before - len(pieces))
        for name, value in (
            (_VERSION, attributes.get(_VERSION, 0) + 1),
            *((f"{_TEXT}{i}", piece) for i, piece in enumerate(pieces)),
            (_OWN, text),
        ):
            storage.set_study_system_attr(study, name, value)


def save_pictures(trials: TrialStore, folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Make PNG files artifacts of the study, kept in `artifacts/` of a search's folder; those of before are replaced.

    Returns their addresses in Optuna Dashboard by the files' names. Raises InputError or OSError on a storage or a disk
    that fails.
    """
    storage, study = trials.study._storage, trials.study._study_id
    addresses = {}
    (folder / FOLDER).mkdir(exist_ok=True)
    for file in files:
        # An id that the study and the name determine: neither workers nor going on double a picture.
        artifact = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{trials.id}/{file.name}"))
        write_bytes(folder / FOLDER / artifact, file.read_bytes())
        described = json.dumps(asdict(ArtifactMeta(artifact, file.name, "image/png", None)))
        with one_line_errors(*_WRITING), exclusive(trials.storage, trials.study.study_name):
            if storage.get_study_system_attrs(study).get(f"{_ARTIFACT}{artifact}") != described:
                storage.set_study_system_attr(study, f"{_ARTIFACT}{artifact}", described)
        addresses[file.stem] = f"/artifacts/{study}/{artifact}"
    return addresses
