"""Commands of igap in processes that are forked from this one, where what takes seconds to import and load is there."""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

from igap import cli
from igap.cli.compose import compose_one
from igap.models import cached

FORK = multiprocessing.get_context("fork")


def load_embedded() -> None:
    """The embedded model, as device=cpu loads it, is there from now on, also in the processes forked after this."""
    cached.cached_model(compose_one([]).config.model, "cpu")


class Forked:
    """A command in a process group of its own, with what the survival programs use of a Popen."""

    def __init__(self, arguments: Sequence[str], folder: Path, said: Path) -> None:
        """`igap` with these arguments, in `folder`; what it says goes into the file `said`."""
        self._process = FORK.Process(target=_run, args=(list(arguments), folder, said))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, "it hangs"
        return self._process.exitcode


def _run(arguments: list[str], folder: Path, said: Path) -> None:
    os.setsid()
    os.chdir(folder)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115 - as Python's own, not pytest's
    GlobalHydra.instance().clear()
    sys.exit(cli.main(arguments))
