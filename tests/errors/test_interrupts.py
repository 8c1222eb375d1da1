"""Ctrl-C that falls into a callback of the garbage collector ends what runs all the same."""

import signal
import sys
import threading
import weakref
from types import SimpleNamespace

import pytest
from helpers.lost_interrupts import Thing, in_a_callback, in_a_destructor, work

from igap import cli
from igap.counterfactual.search import explore_and_validate
from igap.errors.interrupts import keep_interrupts


@pytest.mark.parametrize("lose", [in_a_callback, in_a_destructor])
def test_it_arrives_in_the_block_whether_that_goes_on_or_ends(lose):
    before = sys.unraisablehook
    for seconds in (60, 0):
        with pytest.raises(KeyboardInterrupt), keep_interrupts():
            work(lose, seconds)
        assert sys.unraisablehook is before


def test_what_else_is_raised_there_goes_where_it_went(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda swallowed: told.append(swallowed.exc_type))
    thing = Thing()
    reference = weakref.ref(thing, lambda _: 1 / 0)
    with keep_interrupts():
        del thing
    assert reference() is None
    assert told == [ZeroDivisionError]


def test_a_second_one_while_the_first_is_sent_again_gives_no_traceback(monkeypatch):
    class Interrupted(threading.Timer):
        def start(self):
            signal.raise_signal(signal.SIGINT)
            super().start()

    monkeypatch.setattr(threading, "Timer", Interrupted)
    with keep_interrupts():
        work(in_a_callback, 0.1)


def test_where_no_interrupt_comes_the_hook_of_the_process_stays():
    before, within = sys.unraisablehook, []

    def look():
        with keep_interrupts():
            within.append(sys.unraisablehook)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert within == [before]


def test_a_command_ends_by_it(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_run", lambda arguments: work(in_a_callback))
    assert cli.main(["run"]) == 130
    assert "igap: interrupted; a run without summary.json is not finished.\n" in capsys.readouterr().err


def test_a_search_ends_by_it(unchecked):
    nothing = SimpleNamespace(trials=SimpleNamespace(all=list))
    with pytest.raises(KeyboardInterrupt):
        explore_and_validate(nothing, lambda: work(in_a_callback), 0.0)
