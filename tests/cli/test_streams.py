"""Output that nobody takes: closed pipes, full devices, closed streams. No traceback, one line at most."""

import errno
import multiprocessing
import os
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from igap import cli
from igap.cli.commands import igap

FORK = multiprocessing.get_context("fork")
LITTLE = "igap: memory is used up. Free some, or ask for less: memory_gib=1.\n"
COMMANDS = [["--help"], ["--version"], *([name, "--help"] for name in igap.commands)]


def ended(arguments, out, err, end):
    """The command in a process of its own, whose output goes to these; `end` is told how Python itself ends."""
    GlobalHydra.instance().clear()
    for stream, file in ((1, out), (2, err)):
        if file is None:
            os.close(stream)
        else:
            os.dup2(file, stream)
    sys.stdout = open(1, "w") if out is not None else None  # noqa: SIM115 - as Python's own
    sys.stderr = open(2, "w") if err is not None else None  # noqa: SIM115
    code = cli.main(arguments)
    sys.stdout.flush()  # what Python does at its end
    sys.stderr.flush()
    end.put(code)


def run(arguments, *, out=None, err=None):
    """The exit code; None where the end was another than that of main()."""
    end = FORK.SimpleQueue()
    process = FORK.Process(target=ended, args=(arguments, out, err, end))
    process.start()
    process.join()
    return None if process.exitcode else end.get()


@pytest.fixture
def full():
    file = os.open("/dev/full", os.O_WRONLY)
    yield file
    os.close(file)


@pytest.fixture
def unread():
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.fixture
def kept(tmp_path):
    """A file for what is written, and what is in it."""
    file = os.open(tmp_path / "kept", os.O_RDWR | os.O_CREAT)
    yield file, (tmp_path / "kept").read_text
    os.close(file)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_pipe_that_nobody_reads_ends_any_command_without_a_word(arguments, unread, kept):
    file, said = kept
    assert run(arguments, out=unread, err=file) == 1
    assert said() == ""


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_an_output_that_takes_nothing_is_one_line_of_any_command(arguments, full, kept):
    file, said = kept
    assert run(arguments, out=full, err=file) == 1
    assert said() == "igap: output: No space left on device.\n"


def test_streams_that_the_caller_has_closed_are_no_error(kept):
    file, said = kept
    assert run(["--help"]) == 0
    assert run(["nonsense"]) == 2
    assert run(["--help"], out=file) == 0
    assert "Usage: igap [OPTIONS] COMMAND" in said()


def test_errors_that_cannot_be_written_leave_the_exit_code(full, kept):
    assert run(["nonsense"], out=kept[0], err=full) == 2


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            "igap: runs/x cannot be written or read (No space left on device)\n",
        ),
        (OSError("search.storage: no room."), "igap: search.storage: no room.\n"),
        (MemoryError(), LITTLE),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), LITTLE),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), LITTLE),
        (RuntimeError("could not create a primitive"), LITTLE),
        (SystemError("error return without exception set"), LITTLE),
    ],
)
def test_what_the_machine_lacks_is_one_line_and_exit_code_1(error, line, monkeypatch, capsys):
    def fail(folders, *, prune):
        raise error

    monkeypatch.setattr("igap.sweep.cache_command.show_store", fail)
    assert cli.main(["store", "runs"]) == 1
    assert capsys.readouterr().err == line
