"""Griffe's extension for the site: a docstring's section "Example:" is its "Examples:", so that it is shown as code."""

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Renames the section before the docstring is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:  # noqa: D102
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
