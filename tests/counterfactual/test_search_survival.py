"""A short version of programs/search_survival.py, which starts whole commands, kills more often, also on PostgreSQL."""

import os
import random
import signal
import time

import pytest
from helpers.forked import FORK, load_embedded
from programs.search_survival import Searching

from igap import cli

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_model")]


def begun(search, worker):
    """A process that works on the search as the command does; the first of two also writes the report."""
    process = FORK.Process(target=cli.main, args=([*search.arguments, f"search.worker={worker}"],))
    process.start()
    return process


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_search_that_is_killed_again_and_again_reaches_its_total_and_writes_its_report(
    tmp_path, monkeypatch, storage
):
    search, rng, n = Searching(tmp_path / "search", storage, workers=1, until=48), random.Random(0), 0
    monkeypatch.chdir(search.folder)
    load_embedded()
    for _ in range(2):
        processes = [begun(search, worker) for worker in range(2)]
        while len(search.trials()) < min(n + 4, 44) and processes[0].is_alive():
            time.sleep(0.05)  # each look opens the study
        time.sleep(rng.uniform(0, 0.15))
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        search.check()
        before, n = n, len(search.trials())
        assert n >= before, "a trial is gone"
    assert 8 <= n <= 48
    assert cli.main(search.arguments) == 0
    search.finished()
