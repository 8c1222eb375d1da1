"""Tables as CSV files, in which a spreadsheet takes no text for a formula.

A text that begins as one does (=, +, -, @, a tab, a line break) is written with an apostrophe before it, which `read`
takes away again. Numbers are written as they are.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def guarded(text: str) -> str:
    """The text as it is written: none that a spreadsheet would compute."""
    return f"'{text}" if _FORMULA.match(text) else text


def unguarded(text: str) -> str:
    """The text that was written so."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def write(path: Path, frame: "pd.DataFrame", *, index: bool = False) -> None:
    """The table as a CSV file. Raises OSError."""
    _texts(frame, guarded).to_csv(path, index=index)


def read(path: Path, dtype: Mapping[str, type] | None = None) -> "pd.DataFrame":
    """A table that `write` wrote, its texts as they were. Raises what pandas does."""
    import pandas as pd

    return _texts(pd.read_csv(path, dtype=dtype), unguarded)


def _texts(frame: "pd.DataFrame", change: Callable[[str], str]) -> "pd.DataFrame":
    """The table with its texts changed, all else and every column's type as they are."""
    import pandas as pd

    changed = frame.copy()
    for place, (_, column) in enumerate(frame.items()):
        if pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column):
            cells = [change(cell) if isinstance(cell, str) else cell for cell in column]
            changed.isetitem(place, pd.Series(cells, dtype=column.dtype).array)
    return changed
