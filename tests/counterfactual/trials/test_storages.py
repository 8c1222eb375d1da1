"""Storages that cannot be reached, are held by another program or damaged, and locks that outlive nobody."""

import logging
import multiprocessing
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from programs.search_survival import postgres

from igap.counterfactual.history import Proposal
from igap.counterfactual.spaces.base import Slot, Space
from igap.counterfactual.trials import storages
from igap.counterfactual.trials.locking import Journal, exclusive
from igap.counterfactual.trials.storages import URL, open_storage
from igap.counterfactual.trials.study import EvaluatedTrial, TrialStore
from igap.errors import InputError

SPACE = Space("slots", tuple(Slot(f"s{i}", tuple(f"w{o}" for o in range(9)), (i,)) for i in range(3)))


def batch(first, n=4, source="start"):
    """`n` finished trials of candidates that begin with this option."""
    return [EvaluatedTrial(Proposal((first, i // 9, i % 9), source), (1.0,), (1.0,)) for i in range(n)]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def impatient(monkeypatch):
    """Storages get 2 seconds to answer, as little as libpq knows, and to be free a quarter."""
    assert storages.REACH == 5.0
    monkeypatch.setattr(storages, "REACH", 2.0)
    monkeypatch.setattr(storages, "FREE", 0.25)


def refused(kind, folder, **settings):
    """What is said of a storage that cannot be used, in one line."""
    with pytest.raises(InputError) as error:
        open_storage(kind, folder, **settings)
    said = str(error.value)
    assert said.startswith(f"search.storage: got {kind}")
    assert "\n" not in said
    return said


def test_a_sqlite_file_that_another_program_holds_is_refused(tmp_path, impatient):
    TrialStore(open_storage("sqlite", tmp_path), SPACE, {"clean prompts": [["a", ("b", "c")]]})
    holding = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    holding.execute("BEGIN EXCLUSIVE")
    said = refused("sqlite", tmp_path)
    assert "database is locked" in said
    assert "end the program that holds it" in said
    holding.execute("ROLLBACK")
    holding.close()
    again = TrialStore(open_storage("sqlite", tmp_path), SPACE, {"clean prompts": [["a", ("b", "c")]]})
    assert again.all() == [], "tuples, such as sets of answers, are lists in a storage"


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "study.db").write_bytes(b"no database" * 1000)
    assert "file is not a database" in refused("sqlite", tmp_path)
    (tmp_path / "study.journal").write_text('{"op_code": 0, \n{"op_code"\n')
    assert "remove a damaged file" in refused("journal", tmp_path)


def test_postgres_without_its_url_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv(URL, raising=False)
    said = refused("postgres", tmp_path)
    assert f"but {URL} is not set. Set {URL}=postgresql+psycopg://USER:PASSWORD@HOST/DATABASE." in said


def test_a_postgres_server_that_does_not_answer_is_refused_in_time_and_without_the_password(
    tmp_path, monkeypatch, impatient, caplog
):
    with socket.socket() as silent:  # takes connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        monkeypatch.setenv(URL, f"postgresql+psycopg://igap:s3cr3t-word@127.0.0.1:{port}/igap")
        said = refused("postgres", tmp_path)
    assert "timeout" in said
    assert "s3cr3t" not in said + caplog.text


@pytest.mark.parametrize(
    "password",
    ["hunter2-swordfish", "hunter2@swordfish", "hunter2:swordfish", "hunter2/swordfish", "hunter2%40swordfish"],
)
@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgres", "nothing"])
def test_no_piece_of_a_password_is_in_an_error_however_the_url_is_read(tmp_path, monkeypatch, password, scheme):
    monkeypatch.setattr(storages, "REACH", 2.0)
    monkeypatch.setenv(URL, f"{scheme}://igap:{password}@127.0.0.1:{free_port()}/igap")
    said = refused("postgres", tmp_path)
    assert "hunter2" not in said
    assert "swordfish" not in said
    assert "?." not in said  # libpq's question, whether the server is running


def test_a_grpc_proxy_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(storages, "REACH", 0.6)
    address = f"127.0.0.1:{free_port()}"
    said = refused("grpc", tmp_path, address=address)
    assert f"nothing answers at {address} within 1 s. Start optuna.storages.run_grpc_proxy_server there" in said


def test_a_grpc_proxy_on_loopback_keeps_trials(tmp_path):
    port = free_port()
    serve = (
        "import optuna\n"
        "from optuna.storages import JournalStorage, run_grpc_proxy_server\n"
        "from optuna.storages.journal import JournalFileBackend\n"
        f"run_grpc_proxy_server(JournalStorage(JournalFileBackend({str(tmp_path / 'proxied')!r})), "
        f"host='127.0.0.1', port={port})\n"
    )
    server = subprocess.Popen([sys.executable, "-W", "ignore", "-c", serve], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:  # until the server is up
            try:
                storage = open_storage("grpc", tmp_path, f"127.0.0.1:{port}")
                break
            except InputError:
                assert time.monotonic() < deadline
        trials = TrialStore(storage, SPACE, {"head": "1.2"})
        trials.add(batch(0))
        assert trials.all() == batch(0)
        again = TrialStore(open_storage("grpc", tmp_path, f"127.0.0.1:{port}"), SPACE, {"head": "1.2"})
        assert again.all() == batch(0)
        with pytest.raises(InputError, match=r"it has head '1\.2', asked for '0\.1'"):
            TrialStore(storage, SPACE, {"head": "0.1"})
        storage.close()
    finally:
        server.kill()
        server.wait()


def test_a_postgres_server_on_loopback_keeps_trials_of_several_workers(tmp_path, monkeypatch, caplog):
    try:
        with postgres(tmp_path / "server") as url:
            monkeypatch.setenv(URL, url)
            storage = open_storage("postgres", tmp_path)
            race("postgres", tmp_path)
            trials = TrialStore(storage, SPACE, {})
            candidates = [one.proposal.candidate for one in trials.all()]
            assert len(candidates) == len(set(candidates)) == 40
            storage.engine.dispose()
            with sqlalchemy.create_engine(url).begin() as other:
                other.exec_driver_sql("CREATE ROLE braces SUPERUSER LOGIN PASSWORD 'a{b}c'")
            other.engine.dispose()
            monkeypatch.setenv(URL, f"postgresql+psycopg://braces:a{{b}}c@{url.partition('@')[2]}")
            storage = open_storage("postgres", tmp_path)
            trials = TrialStore(storage, SPACE, {})
            assert len(trials.all()) == 40

            @sqlalchemy.event.listens_for(storage.engine, "before_cursor_execute")
            def cut(connection, cursor, statement, parameters, context, executemany):
                if "INTO trial_values" in statement:  # in the middle of a batch, in one of psycopg's pipelines
                    with socket.socket(fileno=os.dup(connection.connection.dbapi_connection.fileno())) as line:
                        line.shutdown(socket.SHUT_RDWR)

            with pytest.raises(OSError, match=r"^search\.storage: got .* What it has is kept") as told:
                trials.add(batch(7))
            assert "\n" not in str(told.value)
            assert "psycopg" not in caplog.text
            storage.engine.dispose()
            monkeypatch.setenv(URL, url.replace("igap:", "igap:wrong-"))
            said = refused("postgres", tmp_path)
            assert "password authentication failed" in said
            assert url.split(":")[2].split("@")[0] not in said
    except PermissionError as error:
        pytest.skip(str(error))


def worker(kind, folder, own, begin):
    """Adds the same 40 candidates as the others do, in an order and batches of its own, up to a total of 40."""
    from igap.counterfactual.trials.storages import open_storage
    from igap.counterfactual.trials.study import TrialStore

    begin.wait()
    trials = TrialStore(open_storage(kind, folder), SPACE, {})
    begin.wait()
    everyone = batch(0, 60, source=str(own))
    shifted = everyone[20 * own :] + everyone[: 20 * own]
    for start in range(0, 60, 5):
        trials.add(shifted[start : start + 5], until=40)
        time.sleep(0.05)  # what an evaluation takes; SQLite does not queue those who wait


def race(kind, folder):
    """Three workers that open a storage and write to it at the same moment."""
    context = multiprocessing.get_context("fork")  # quick: nothing of the model is needed
    begin = context.Barrier(3)
    workers = [context.Process(target=worker, args=(kind, folder, own, begin)) for own in range(3)]
    for one in workers:
        one.start()
    for one in workers:
        one.join(timeout=120)
    assert [one.exitcode for one in workers] == [0, 0, 0]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_workers_that_begin_at_the_same_moment_reach_the_total_exactly_and_no_candidate_twice(tmp_path, kind):
    race(kind, tmp_path)
    found = TrialStore(open_storage(kind, tmp_path), SPACE, {}).all()
    assert len(found) == len({one.proposal.candidate for one in found}) == 40
    assert len({one.proposal.source for one in found}) > 1, "not one alone"


def test_a_sqlite_batch_is_one_transaction_and_made_durable_once(tmp_path):
    storage = open_storage("sqlite", tmp_path)
    trials, commits = TrialStore(storage, SPACE, {}), []
    sqlalchemy.event.listen(storage.engine, "commit", commits.append)
    trials.add(batch(0, 9))
    assert len(commits) == 1
    with (
        exclusive(storage, "igap"),
        closing(sqlite3.connect(tmp_path / "study.db", timeout=0.1)) as other,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        other.execute("BEGIN IMMEDIATE")
    trials.add(batch(1, 2))
    assert len(trials.all()) == 11, "what comes after the block is as before"


@pytest.mark.usefixtures("forks")
def test_a_journals_lock_ends_with_the_process_that_holds_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "searches").mkdir()
    folder = Path("searches")  # relative, as a search's folder is: Optuna's own link then points nowhere
    TrialStore(open_storage("journal", folder), SPACE, {})
    hold = (
        "import os, signal\nfrom pathlib import Path\nfrom igap.counterfactual.trials.locking import Journal\n"
        "journal = Journal(Path('searches/study.journal'))\njournal.lock.acquire()\n"
        "print('held', flush=True)\nsignal.pause()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", hold], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    waiting = multiprocessing.get_context("fork").Process(target=add_one, args=(folder,))
    waiting.start()
    waiting.join(timeout=0.5)
    assert waiting.is_alive(), "it is held"
    holder.kill()
    holder.wait()
    waiting.join(timeout=120)
    assert waiting.exitcode == 0
    assert len(TrialStore(open_storage("journal", folder), SPACE, {}).all()) == 1
    holder.stdout.close()


def add_one(folder):
    TrialStore(open_storage("journal", folder), SPACE, {}).add(batch(0, 1))


def test_where_a_file_system_has_no_locks_optunas_lock_stands_in(tmp_path, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError("Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    storage = Journal(tmp_path / "study.journal")
    trials = TrialStore(storage, SPACE, {})
    with exclusive(storage, "igap"):
        assert (tmp_path / "study.journal.lock").exists()
        trials.add(batch(0))
    assert not (tmp_path / "study.journal.lock").exists()
    assert trials.all() == batch(0)


@pytest.mark.parametrize("n_bytes", [1, 20, 200])
def test_a_line_of_the_journal_that_was_cut_short_costs_its_trial_and_no_more(tmp_path, n_bytes):
    trials = TrialStore(open_storage("journal", tmp_path), SPACE, {})
    trials.add(batch(0, 3))
    file = tmp_path / "study.journal"
    os.truncate(file, file.stat().st_size - n_bytes)
    again = TrialStore(open_storage("journal", tmp_path), SPACE, {})
    assert again.all() == batch(0, 2)
    again.add(batch(1, 2))
    assert TrialStore(open_storage("journal", tmp_path), SPACE, {}).all() == batch(0, 2) + batch(1, 2)
    assert re.search(rb"\n$", file.read_bytes())
    optuna.load_study(study_name="igap", storage=Journal(file))


def test_optunas_logs_are_silent_for_a_block_and_then_as_the_user_had_set_them():
    levels = {"optuna": logging.DEBUG, "optuna.storages": logging.INFO, "sqlalchemy.pool": logging.CRITICAL + 5}
    loggers = {logging.getLogger(name): level for name, level in levels.items()}
    before = {logger: logger.level for logger in loggers}
    try:
        for logger, level in loggers.items():
            logger.setLevel(level)
        with pytest.raises(InputError), storages.one_line_errors("a study", "Set name=NAME."):
            inside = [logger.level for logger in loggers]
            raise ValueError("no study")
        assert inside == [logging.WARNING, logging.ERROR, logging.CRITICAL + 5], "never louder than the user's"
        assert [logger.level for logger in loggers] == list(levels.values())
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
