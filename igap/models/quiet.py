"""transformers without its bars and its advice to others, and what it raises in one line."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No weight-loading bars and no advice meant for others on the terminal.

    TransformerLens warns of what it leaves out of its processing for some families: whether what it makes is still the
    model is checked afterwards.
    """
    from transformers.utils import logging as hf_logging

    bars, level = hf_logging.is_progress_bar_enabled(), logging.root.manager.disable
    hf_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* does not support (fold_ln|center_writing_weights)", UserWarning)
            yield
    finally:
        logging.disable(level)
        if bars:
            hf_logging.enable_progress_bar()


def line(error: Exception) -> str:
    """An error's text as one line of at most 200 characters; its type where it has none."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
