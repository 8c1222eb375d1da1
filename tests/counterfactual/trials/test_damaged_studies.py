"""Studies on full disks, in damaged files and in files that are none: one line each, and nothing is overwritten."""

import contextlib
import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from igap.counterfactual.history import Proposal
from igap.counterfactual.spaces.base import Slot, Space
from igap.counterfactual.trials import storages
from igap.counterfactual.trials.locking import exclusive
from igap.counterfactual.trials.storages import open_storage
from igap.counterfactual.trials.study import EvaluatedTrial, TrialStore
from igap.errors import InputError
from igap.storage.studies import STUDY_FILES

SPACE = Space("slots", tuple(Slot(f"s{i}", tuple(f"w{o}" for o in range(9)), (i,)) for i in range(3)))
KINDS = sorted(STUDY_FILES)
HOSTILE = [None, -1, "x", [], {}]
FORK = multiprocessing.get_context("fork")


def batch(first, n=4):
    """`n` finished trials of candidates that begin with this option."""
    return [EvaluatedTrial(Proposal((first, i // 9, i % 9), "start"), (1.0,), (1.0,)) for i in range(n)]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="session")
def whole_studies(tmp_path_factory):
    """By kind, a folder with a study of three trials."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        trials = TrialStore(open_storage(kind, folder), SPACE, {"head": "1.2"})
        trials.add(batch(0, 3))
    return folders


@pytest.fixture
def file(whole_studies, tmp_path, kind):
    """A copy of the study's file."""
    return Path(shutil.copy(whole_studies[kind] / STUDY_FILES[kind], tmp_path / STUDY_FILES[kind]))


def opened(kind, folder):
    """The study's trials, as a search opens it. Raises what it raises."""
    trials = TrialStore(open_storage(kind, folder), SPACE, {"head": "1.2"})
    return trials.all()


def answer(kind, folder):
    """What is said of a study, in one line; None where it can be read."""
    try:
        opened(kind, folder)
    except InputError as error:
        return str(error)
    return None


def refused(kind, file):
    """What is said of a study that cannot be used: one line, and the file stays as it is."""
    before = file.read_bytes() if file.is_file() else None
    said = answer(kind, file.parent)
    assert before is None or file.read_bytes() == before
    assert said is not None
    assert said.startswith("search.storage: got ")
    assert "\n" not in said
    return said


@pytest.mark.parametrize("part", [0.001, 0.3, 0.7, 0.999])
def test_a_file_that_is_cut_is_refused(file, kind, part):
    if kind == "journal":  # a cut line is what a kill leaves; a line without its beginning is not
        file.write_bytes(file.read_bytes()[5 : 5 + max(1, int(part * file.stat().st_size))])
    else:
        os.truncate(file, int(part * file.stat().st_size))
    refused(kind, file)


@pytest.mark.parametrize("content", [b"hello", b"hello\n" * 50, bytes(5000), b"\xff\xfe\x00" * 99, b"null\n", b"[]\n"])
def test_a_file_of_something_else_is_refused(file, kind, content):
    file.write_bytes(content)
    refused(kind, file)


@pytest.mark.parametrize("line", [b"garbage\n", b"null\n", b"{}\n", b"\n", b"garbage"])
def test_a_journals_last_line_that_is_none_is_refused_before_another_follows(whole_studies, tmp_path, line):
    file = Path(shutil.copy(whole_studies["journal"] / STUDY_FILES["journal"], tmp_path))
    file.write_bytes(file.read_bytes() + line)
    refused("journal", file)


def test_another_programs_database_is_refused(tmp_path):
    file = tmp_path / STUDY_FILES["sqlite"]
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE accounts (name)")
    assert "is another program's database, with tables accounts" in refused("sqlite", file)


def test_another_optuna_study_is_refused(tmp_path, kind):
    file = tmp_path / STUDY_FILES[kind]
    storage = f"sqlite:///{file}" if kind == "sqlite" else JournalStorage(JournalFileBackend(str(file)))
    study = optuna.create_study(storage=storage, study_name="igap")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert "with trials that are none of igap's" in refused(kind, file)


def test_an_empty_file_is_a_study_that_was_not_begun_unless_a_report_tells_of_its_trials(file, kind):
    file.write_bytes(b"")
    assert opened(kind, file.parent) == []
    file.write_bytes(b"")
    (file.parent / "trials.csv").write_text("trial\n0\n")
    assert "is empty, though trials.csv beside it has trials" in refused(kind, file)


@pytest.mark.parametrize("what", ["folder", "fifo", "device", "loop"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind, what):
    file = tmp_path / STUDY_FILES[kind]
    make = {
        "folder": file.mkdir,
        "fifo": lambda: os.mkfifo(file),
        "device": lambda: file.symlink_to("/dev/zero"),
        "loop": lambda: file.symlink_to(file),
    }
    make[what]()
    refused(kind, file)


def columns(file):
    """Every column of every table that has rows."""
    with closing(sqlite3.connect(file)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            if connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]:
                yield from ((table, name) for name in names)


@pytest.mark.parametrize("value", ["x", -1])
def test_hostile_values_in_any_column_are_one_line_or_a_study_that_can_be_read(whole_studies, tmp_path, value):
    whole, file = whole_studies["sqlite"] / STUDY_FILES["sqlite"], tmp_path / STUDY_FILES["sqlite"]
    places, said = list(columns(whole)), []
    assert len(places) > 20
    for table, column in places:
        shutil.copy(whole, file)
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            with contextlib.suppress(sqlite3.IntegrityError):  # SQLite itself refuses it
                connection.execute(f"UPDATE OR IGNORE {table} SET {column} = ?", (value,))
            said.append(answer("sqlite", tmp_path))
    assert sum(one is not None for one in said) > 5
    assert "\n" not in "".join(filter(None, said))


def test_hostile_values_of_any_key_of_any_line_are_one_line_or_a_study_that_can_be_read(whole_studies, tmp_path):
    file, said = tmp_path / STUDY_FILES["journal"], []
    lines = (whole_studies["journal"] / STUDY_FILES["journal"]).read_text().splitlines()
    kinds = {json.loads(line)["op_code"]: i for i, line in enumerate(lines)}  # one line of each
    for i in kinds.values():
        whole = json.loads(lines[i])
        hostile = [{**whole, key: value} for key in whole for value in HOSTILE]
        hostile += [{k: v for k, v in whole.items() if k != key} for key in whole]
        for bad in [*map(json.dumps, hostile), "", "{", "null", "5", "[]", "{}", "[" * 10**5, '{"op_code":99}']:
            file.write_text("\n".join([*lines[:i], bad, *lines[i + 1 :]]) + "\n")
            said.append(answer("journal", tmp_path))
    assert sum(one is not None for one in said) > 20
    assert "\n" not in "".join(filter(None, said))


def test_a_journal_that_is_held_for_ever_is_refused(whole_studies, tmp_path, monkeypatch):
    file = Path(shutil.copy(whole_studies["journal"] / STUDY_FILES["journal"], tmp_path))
    monkeypatch.setattr(storages, "FREE", 0.2)
    with exclusive(open_storage("journal", tmp_path), "igap"):
        said = refused("journal", file)
    assert "study.lock is held by another program. Start it, end the program that holds it" in said


@pytest.mark.parametrize(
    "url",
    ["nonsense", "://", "postgresql+psycopg://", "http://h/d", "postgresql+psycopg://u:p@h:port/d",
     "postgresql+psycopg://u:p@127.0.0.1:99999/d", "postgresql+psycopg://u:p@[::1/d", "mysql://u:p@h/d", "sqlite:///study.db",
     "postgresql+psycopg://u:p@127.0.0.1:1/d?what=1", "postgresql+psycopg://u:p@127.0.0.1:1/d%00"],
)  # fmt: skip
def test_a_url_that_cannot_be_is_one_line(tmp_path, monkeypatch, url):
    monkeypatch.setenv(storages.URL, url)
    why = "which cannot be used: " if url.startswith("postgresql") else r"is no address of such a server\. Set "
    with pytest.raises(InputError, match=rf"^search\.storage: got postgres.* {why}[^\n]*$"):
        open_storage("postgres", tmp_path)


def filled(kind, folder, room, said):
    """Adds batches in a process whose files may grow by no more than `room` bytes, until it fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        trials = TrialStore(open_storage(kind, folder), SPACE, {"head": "1.2"})
        for first in range(9):
            trials.add(batch(first, 81))
            said.put(len(trials.all()))
    except Exception as error:
        said.put(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("room", [0, 3_000, 20_000, 150_000])
def test_a_disk_that_fills_at_any_moment_is_one_line_and_what_was_there_stays(tmp_path, kind, room):
    said = FORK.Queue()
    process = FORK.Process(target=filled, args=(kind, tmp_path, room, said))
    process.start()
    n, answer = 0, said.get(timeout=60)
    while isinstance(answer, int):
        n, answer = answer, said.get(timeout=60)
    process.join()
    assert answer.startswith("StorageError: search.storage: ")
    assert answer.endswith("What it has is kept: make room, and the same command goes on.")
    assert "\n" not in answer
    assert n <= len(opened(kind, tmp_path)) <= n + (81 if kind == "journal" else 0), "a journal keeps whole lines"
    assert room < 110_000 or n > 0 or kind == "sqlite"


@pytest.mark.parametrize("event", ["reset", "checkin", "checkout"])
def test_ctrl_c_in_the_storages_code_waits_for_its_end_and_prints_nothing(tmp_path, capfd, caplog, event):
    storage = open_storage("sqlite", tmp_path)
    trials = TrialStore(storage, SPACE, {"head": "1.2"})
    sqlalchemy.event.listen(storage.engine, event, lambda *_: signal.raise_signal(signal.SIGINT), once=True)
    with caplog.at_level(logging.DEBUG), pytest.raises(KeyboardInterrupt):
        trials.add(batch(0, 3))
    assert trials.all() == batch(0, 3)
    assert "Traceback" not in caplog.text
    assert capfd.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_is_not_held_back(tmp_path):
    with pytest.raises(KeyboardInterrupt), storages.defer_interrupt():
        signal.raise_signal(signal.SIGINT)
        reached = True
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it was")
    assert reached


def dying(folder):
    """Writes two trials of a batch, and dies before the third."""
    storage = open_storage("journal", folder)
    trials = TrialStore(storage, SPACE, {"head": "1.2"})
    with exclusive(storage, "igap"):
        trials.study.add_trials([trials._to_optuna(one) for one in batch(1, 2)])
        os._exit(0)


def test_of_a_batch_whose_writer_died_in_its_middle_a_journal_has_nothing(whole_studies, tmp_path):
    file = Path(shutil.copy(whole_studies["journal"] / STUDY_FILES["journal"], tmp_path))
    before = file.read_bytes()
    reader = TrialStore(open_storage("journal", tmp_path), SPACE, {"head": "1.2"})
    process = FORK.Process(target=dying, args=(tmp_path,))
    process.start()
    process.join()
    assert file.read_bytes().count(b"\n") == before.count(b"\n") + 2
    assert reader.all() == batch(0, 3), "also for those who read before"
    reader.add(batch(2, 2))
    assert opened("journal", tmp_path) == batch(0, 3) + batch(2, 2)


def test_ctrl_c_is_not_lost_where_the_storage_fails_too():
    with pytest.raises(KeyboardInterrupt), storages.one_line_errors("a study", "Mend it."):
        signal.raise_signal(signal.SIGINT)
        raise ValueError("a wreck")
