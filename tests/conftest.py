"""How tests run: in which process, in which order. The fixtures are in helpers/fixtures.py."""

import gc
import os
import signal
import sys

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, a process a core

# Many commands are started: each would compile igap anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell that starts pytest in the background has it, and the commands that tests start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Loads the fixtures, and igap with them, but not where others run the tests: they would wait for it."""
    distributes = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if config.getoption("collectonly") or not distributes:
        gc.disable()  # what is imported from here on stays
        config.pluginmanager.import_plugin("helpers.fixtures")


def pytest_collection_finish() -> None:
    """The collector never looks at modules and tests: a pass over them takes longer than most tests."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with a long test come first: at the end, no process has one left that the others must wait for.

    They come whole, so that what the tests of a module share is made once.
    """
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)
