"""transformers without its bars and its advice to others, and what it raises in one line."""

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator

from igap.errors import InputError, one_line


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No weight-loading bars and no advice meant for others on the terminal.

    TransformerLens warns of what it leaves out of its processing for some families: whether what it makes is still the
    model is checked afterwards. Other warnings are given at the end, and not where it fails: the error says why.
    """
    from transformers.utils import logging as hf_logging

    bars, level = hf_logging.is_progress_bar_enabled(), logging.root.manager.disable
    hf_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.filterwarnings("ignore", ".* does not support (fold_ln|center_writing_weights)", UserWarning)
            yield
        for each in said:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    finally:
        logging.disable(level)
        if bars:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """What is written to standard error comes at the end, and not at all where it fails: Rust's panics write there."""
    try:
        terminal = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if sys.stderr is not None:
                    sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
        said.seek(0)
        with contextlib.suppress(OSError):  # nobody takes it
            os.write(2, said.read())


@contextlib.contextmanager
def refusing(tell: Callable[[str], InputError]) -> Iterator[None]:
    """Turns what a library raises into the InputError that `tell` makes of its text; an InputError stays as it is.

    Libraries each raise their own, down to panics of those in Rust, which are no Exception.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if isinstance(error, MemoryError):  # the machine is at fault
            raise
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise tell(one_line(error, 200)) from error
