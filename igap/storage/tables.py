"""Tables as CSV files that are safe to open in a spreadsheet.

A text that begins like a formula (=, +, -, @, a tab, a line break) is written with an apostrophe before it, which
`read_prompt_pairs` removes again. Numbers are written as they are.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def escape_formula(text: str) -> str:
    """Escape a text that a spreadsheet would take for a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def unescape_formula(text: str) -> str:
    """The text before it was escaped."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def write_csv(path: Path, frame: "pd.DataFrame", *, index: bool = False) -> None:
    """Write the table as a CSV file. Raises OSError."""
    named = frame.rename(columns={name: escape_formula(str(name)) for name in frame.columns})
    _map_texts(named, escape_formula).to_csv(path, index=index)


TEXTS = dict.fromkeys(("name", "part", "components", "first", "second", "set"), str)
"""Columns of components' names: read as a number, head 9.10 would be 9.1, another head."""


def read_csv(path: Path, dtype: Mapping[str, type] | None = None, *, exact: bool = False) -> "pd.DataFrame":
    """Read a table that `write_csv` wrote, with its texts unescaped. Raises what pandas raises.

    With `exact`, numbers are those that were written to the last bit, and a text such as null or NA is that text.
    """
    import pandas as pd

    if exact:
        options: dict[str, Any] = {"engine": "python", "keep_default_na": False, "na_values": [""]}
        return _map_texts(pd.read_csv(path, dtype=dtype, **options), unescape_formula)
    return _map_texts(pd.read_csv(path, dtype=dtype), unescape_formula)


def _map_texts(frame: "pd.DataFrame", change: Callable[[str], str]) -> "pd.DataFrame":
    """Apply `change` to every text of the table; every column keeps its type."""
    import pandas as pd

    changed = frame.copy()
    for place, (_, column) in enumerate(frame.items()):
        if pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column):
            cells = [change(cell) if isinstance(cell, str) else cell for cell in column]
            changed.isetitem(place, pd.Series(cells, dtype=column.dtype).array)
    return changed
