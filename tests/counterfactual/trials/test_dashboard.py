"""A study's note and pictures: written as Optuna Dashboard reads them, once, beside what a user has written there."""

import json
from pathlib import Path

import optuna
import pytest

from igap.counterfactual.output.note import _escape, fence_block
from igap.counterfactual.spaces.base import KEEP, Slot, Space
from igap.counterfactual.trials import dashboard
from igap.counterfactual.trials.storages import open_storage
from igap.counterfactual.trials.study import TrialStore
from igap.errors import InputError

SPACE = Space("slots", (Slot("first", (KEEP, "Tom"), (2,)),))


@pytest.fixture(params=["sqlite", "journal"])
def trials(request, tmp_path):
    return TrialStore(open_storage(request.param, tmp_path), SPACE, {"head": "1.2"})


def attributes(trials):
    """As another process reads them."""
    study = optuna.load_study(study_name="igap", storage=trials.storage)
    return study._storage.get_study_system_attrs(study._study_id)


def note(trials):
    """The note as Optuna Dashboard 0.21 puts it together, and its version."""
    stored = attributes(trials)
    pieces = {name: text for name, text in stored.items() if name.startswith("dashboard:note_str:")}
    assert all(len(piece) <= 2045 for piece in pieces.values())
    return "".join(pieces[f"dashboard:note_str:{i}"] for i in range(len(pieces))), stored["dashboard:note_ver"]


def test_a_note_is_replaced_and_what_a_user_wrote_around_it_stays(trials):
    long = "ü" * 5000
    dashboard.save_note(trials, long)
    dashboard.save_note(trials, long)
    assert note(trials) == (long, 1), "the same again is no new version"
    dashboard.save_note(trials, "short\n")
    assert note(trials) == ("short\n", 2)
    edited = {"dashboard:note_str:0": "my words\nshort\nand more", "dashboard:note_ver": 3}
    for name, value in edited.items():
        trials.study._storage.set_study_system_attr(trials.study._study_id, name, value)
    dashboard.save_note(trials, "next\n")
    assert note(trials) == ("my words\nnext\nand more", 4)
    trials.study._storage.set_study_system_attr(trials.study._study_id, "dashboard:note_str:0", "all my own")
    dashboard.save_note(trials, "last\n")
    assert note(trials)[0] == "last\n\nall my own"


def test_a_note_is_what_optuna_dashboard_reads(trials):
    pytest.importorskip("optuna_dashboard")
    from optuna_dashboard import get_note, save_note

    dashboard.save_note(trials, "a" * 3000)
    assert get_note(trials.study) == "a" * 3000
    save_note(trials.study, "of a user")
    dashboard.save_note(trials, "b")
    assert get_note(trials.study) == "b\nof a user"


def test_a_picture_is_one_artifact_however_often_it_is_saved(trials, tmp_path):
    file = tmp_path / "heads.png"
    for content in (b"one", b"two"):
        file.write_bytes(content)
        again = TrialStore(trials.storage, SPACE, {"head": "1.2"})
        addresses = dashboard.save_pictures(again, tmp_path, [file])
        (meta,) = optuna.artifacts.get_all_artifact_meta(again.study)
        assert (meta.filename, meta.mimetype) == ("heads.png", "image/png")
        assert addresses == {"heads": f"/artifacts/{trials.study._study_id}/{meta.artifact_id}"}
        store = optuna.artifacts.FileSystemArtifactStore(tmp_path / "artifacts")
        with store.open_reader(meta.artifact_id) as reader:
            assert reader.read() == content
        (tmp_path / "artifacts" / meta.artifact_id).unlink()
        (tmp_path / "artifacts").rmdir()
    # Removed on the page: it is there again.
    trials.study._storage.set_study_system_attr(trials.study._study_id, f"artifacts:{meta.artifact_id}", "null")
    dashboard.save_pictures(trials, tmp_path, [file])
    assert json.loads(attributes(trials)[f"artifacts:{meta.artifact_id}"])["filename"] == "heads.png"


def test_the_dashboard_is_refused_where_it_cannot_be_opened(monkeypatch):
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'not installed\. pip install -e "\.\[dashboard\]" -c constraints\.txt'):
        dashboard.check_dashboard("sqlite")
    for kind in ("memory", "grpc"):
        with pytest.raises(InputError, match=f"search.storage={kind}, which Optuna Dashboard cannot open"):
            dashboard.check_dashboard(kind)


def test_the_command_that_opens_the_dashboard_is_one_of_a_shell():
    folder = Path("searches/a study")
    artifacts = "--artifact-dir 'searches/a study/artifacts'"
    for kind, storage in (
        ("sqlite", "'sqlite:///searches/a study/study.db'"),
        ("journal", "'searches/a study/study.journal'"),
        ("postgres", '"$IGAP_STORAGE_URL"'),
    ):
        assert dashboard.dashboard_command(kind, folder) == f"optuna-dashboard {storage} {artifacts}"


def test_text_in_a_note_is_no_markdown():
    assert _escape(r"|AP| of a_b*c <x> [1]\n") == r"\|AP\| of a\_b\*c \<x\> \[1\]\\n"
    assert fence_block("a ``` b") == "````\na ``` b\n````"
