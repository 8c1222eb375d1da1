"""Silencing other libraries while a model loads, and turning what they raise into one line."""

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator

from igap.errors import InputError, one_line


@contextlib.contextmanager
def silence_libraries() -> Iterator[None]:
    """Silence progress bars and advice of transformers and TransformerLens inside the block.

    TransformerLens warns which steps of its processing it skips for some families; whether the result is still the same
    model is checked afterwards. Other warnings appear at the end of the block; if it fails, the error says why.
    """
    from transformers.utils import logging as hf_logging

    bars, level = hf_logging.is_progress_bar_enabled(), logging.root.manager.disable
    hf_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("ignore", ".* does not support (fold_ln|center_writing_weights)", UserWarning)
            yield
        for each in caught:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    finally:
        logging.disable(level)
        if bars:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def hold_stderr() -> Iterator[None]:
    """Hold back standard error until the block ends, and drop it if the block fails: Rust's panics write there."""
    try:
        terminal = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if sys.stderr is not None:
                    sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
        held.seek(0)
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(2, held.read())


@contextlib.contextmanager
def as_input_error(make_error: Callable[[str], InputError]) -> Iterator[None]:
    """Turn whatever a library raises inside the block into the InputError that `make_error` makes of its text.

    An InputError stays as it is. Libraries raise errors of their own, and panics of Rust, which are no Exception.
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
        raise make_error(one_line(error, 200)) from error
