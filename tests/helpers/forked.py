"""`python -m MODULE` and `python -c CODE` in processes forked from this one, which has imported all that they import.

What a test asks of the interpreter's own start (a spawned worker, a heavy import, a variable read at import) it still
asks of a real one.
"""

import contextlib
import gc
import inspect
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
import types
import warnings
import weakref
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra

from igap.cli.compose import compose_one
from igap.models import cached

FORK = multiprocessing.get_context("fork")

_living: "weakref.WeakSet[Forked]" = weakref.WeakSet()


def load_embedded() -> None:
    """The embedded model, as device=cpu loads it, is there from now on, also in the processes forked after this."""
    cached.cached_model(compose_one([]).config.model, "cpu")


class Forked(subprocess.Popen):
    """A Popen that forks where it is to start this Python; it starts other programs as Popen does.

    The fixture `forks` puts it in Popen's place, for subprocess.run and for libraries.
    """

    def _execute_child(self, *given: Any) -> None:
        asked = inspect.signature(super()._execute_child).bind(*given).arguments
        arguments = [] if asked["shell"] or isinstance(asked["args"], str) else list(map(os.fspath, asked["args"]))
        start = next((n for n, word in enumerate(arguments) if word in ("-m", "-c")), 0)
        if arguments[:1] != [sys.executable] or not start:
            super()._execute_child(*given)
            return
        _living.add(self)
        self.pid = os.fork()
        if self.pid:
            self._child_created = True
            pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(asked[end] for end in pipes))
            return
        code = 1
        try:
            _begin(asked)
            code = _exit_code(arguments[start], arguments[start + 1], arguments[start + 2 :])
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)


def _begin(asked: dict[str, Any]) -> None:
    """Make of the fork what a process finds that was just started: its own streams, folder, environment."""
    gc.freeze()  # what is the parent's is not taken down here
    for process in _living:  # a pipe ends when nobody else holds it
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None and not pipe.closed:
                os.close(pipe.fileno())
    for stream, end in enumerate((asked["p2cread"], asked["c2pwrite"], asked["errwrite"])):
        if end != -1:
            os.dup2(end, stream)
    sys.stdin, sys.stdout, sys.stderr = (open(n, "w" if n else "r", closefd=False) for n in range(3))  # noqa: SIM115
    if asked["start_new_session"]:
        os.setsid()
    elif asked["process_group"] >= 0:
        os.setpgid(0, asked["process_group"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.root.handlers.clear()
    GlobalHydra.instance().clear()
    if asked["env"] is not None:
        os.environ.clear()
        os.environ.update(asked["env"])
    if asked["cwd"] is not None:
        os.chdir(asked["cwd"])
    sys.path[:0] = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)  # a module that is imported already


def _exit_code(option: str, what: str, arguments: list[str]) -> int:
    """Run `-m MODULE` or `-c CODE` to its end."""
    sys.argv = [option, *arguments]
    if what == "submitit.local._local":  # its job is handed over while a Python starts, which takes longer
        folder, deadline = Path(arguments[0].replace("%j", str(os.getpid()))), time.monotonic() + 60
        while not folder.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    try:
        if option == "-m":
            sys.dont_write_bytecode = True  # of a module with annotations that are checked, where others would find it
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), vars(sys.modules["__main__"]))
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
