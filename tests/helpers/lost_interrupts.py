"""Ctrl-C where Python loses it: in what the garbage collector calls."""

import signal
import time
import weakref


class Thing:
    """Something that can have weak references."""


class Destroyed:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def in_a_callback():
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    return reference


def in_a_destructor():
    thing = Destroyed()
    del thing


def work(lose, seconds=60):
    """What takes long, and during which Ctrl-C gets lost at first."""
    lose()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
