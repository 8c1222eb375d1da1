"""Failures that cost one result and not the run: the reason in one line, and the traceback."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from igap.errors import one_line


@dataclass(frozen=True)
class Failure:
    """The failure of one analysis, figure or page."""

    reason: str
    """Why it failed, in one line."""
    story: str
    """The full traceback."""


@contextmanager
def collect_failure(name: str, failures: dict[str, Failure]) -> Iterator[None]:
    """Record any exception of the block in `failures` under this name, and go on.

    An interruption (KeyboardInterrupt) passes through.
    """
    try:
        yield
    except Exception as error:
        failures[name] = Failure(reason_of(error), traceback.format_exc())


def summary_entries(failures: Mapping[str, Failure]) -> dict[str, str | None]:
    """The failures as entries of summary.json; `storage.finished.failures_of` reads them back."""
    reasons = {f"{name}/reason": failure.reason for name, failure in failures.items()}
    return {**dict.fromkeys(failures), **reasons, **({"failed": " ".join(failures)} if failures else {})}


def reason_of(error: Exception) -> str:
    """The message of an error in one line, with its type if that helps and the file it is about."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename} cannot be written or read ({error.strerror})"
    kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
    return f"{kind}{one_line(error, 1000)}" if str(error).strip() else type(error).__name__
