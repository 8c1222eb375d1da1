"""Ctrl-C, which Python loses where it falls into a callback of the garbage collector."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MOMENT = 0.02
"""Seconds after which the callback has long ended."""


@contextmanager
def keep_interrupts() -> Iterator[None]:
    """Send Ctrl-C again where a callback or a destructor has swallowed it: Python prints what one raises and goes on.

    Torch's modules and SQLAlchemy's connections have so many that a search would miss one Ctrl-C in fifteen.
    """
    if threading.current_thread() is not threading.main_thread():  # where no interrupt comes
        yield
        return
    before, sent = sys.unraisablehook, list[threading.Timer]()

    def send_again(swallowed: Any) -> None:
        if not issubclass(swallowed.exc_type, KeyboardInterrupt):
            before(swallowed)
            return
        timer = threading.Timer(_MOMENT, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()  # first: a second Ctrl-C may come here, and only what has started can be waited for
        sent.append(timer)

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        try:
            for timer in sent:
                timer.join()  # it comes within the block
        finally:
            sys.unraisablehook = before
