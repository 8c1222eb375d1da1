"""Files are there whole or not at all, and a folder that takes none is refused before anything is computed."""

import pytest
from helpers.small_disk import no_file_above

from igap.errors import InputError
from igap.storage import atomic


def test_a_file_half_written_never_takes_the_place_of_a_whole_one(tmp_path):
    path = tmp_path / "heads.csv"
    path.write_text("whole")

    def interrupted(unfinished):
        unfinished.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.write_atomically(path, interrupted)
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_takes_files_is_left_as_it_was(tmp_path):
    atomic.check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_killed_process_tried_the_space_with_is_taken_away(tmp_path):
    (tmp_path / ".space.77.unfinished").write_bytes(b"0")
    atomic.check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_refused_by_name(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(InputError, match=r"output: got .*, wanted a folder .* \(No space left on device\)"):
        atomic.check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_with_less_room_than_a_job_takes_is_refused(tmp_path):
    with no_file_above(2**22), pytest.raises(InputError, match=r"wanted a folder .* \(File too large\)"):
        atomic.check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_block_has_made_and_left_empty_is_taken_away_with_those_above_it(tmp_path):
    (tmp_path / "before").mkdir()
    kept, emptied = tmp_path / "new" / "kept", tmp_path / "new" / "other" / "emptied"
    with (
        pytest.raises(InputError, match="refused"),
        atomic.without_empty_folders([tmp_path / "before", kept, emptied, tmp_path / "never"]),
    ):
        atomic.check_writable(kept)
        atomic.check_writable(emptied)
        (kept / "study.db").touch()
        raise InputError("refused")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "before", "new", "new/kept", "new/kept/study.db",
    ]  # fmt: skip


def test_what_cannot_be_written_is_named_as_the_user_knows_it(tmp_path):
    with pytest.raises(OSError, match="No such file or directory") as error:
        atomic.write_bytes(tmp_path / "none" / "heads.csv", b"")
    assert error.value.filename == str(tmp_path / "none" / "heads.csv")
