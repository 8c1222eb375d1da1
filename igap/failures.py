"""What failed beside what did not: why, in one line, and the whole story."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from igap.errors import one_line


@dataclass(frozen=True)
class Failure:
    """Why something failed."""

    reason: str
    """One line."""
    story: str
    """The traceback."""


@contextmanager
def surviving(name: str, failures: dict[str, Failure]) -> Iterator[None]:
    """A block whose failure, whatever it is, costs its own result only, and is put into `failures` under this name.

    An interruption is none.
    """
    try:
        yield
    except Exception as error:
        failures[name] = Failure(reason_of(error), traceback.format_exc())


def recorded(failures: Mapping[str, Failure]) -> dict[str, str | None]:
    """The failures as a summary has them; `finished.failures_of` reads them back."""
    reasons = {f"{name}/reason": failure.reason for name, failure in failures.items()}
    return {**dict.fromkeys(failures), **reasons, **({"failed": " ".join(failures)} if failures else {})}


def reason_of(error: Exception) -> str:
    """What an error says, in one line: with its kind unless that says nothing, with the file it is of."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename} cannot be written or read ({error.strerror})"
    kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
    return f"{kind}{one_line(error, 1000)}" if str(error).strip() else type(error).__name__
