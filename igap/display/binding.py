"""The one link from a value to the figure that shows it.

Classes of values lie below the figures that draw them, and import none. `igap/__init__.py`, where all rooms meet,
binds the function that draws; a value's `plot` asks for it here.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
else:
    Axes = Any  # annotations are read while nothing has loaded matplotlib

Draw = Callable[..., Axes]
"""Called with the name of a drawing in `igap.interactive.figures` and what that takes."""

_bound: list[Callable[[], Draw]] = []


def bind(load: Callable[[], Draw]) -> None:
    """Draw with what `load` gives, which is called at the first figure: it imports matplotlib."""
    _bound[:] = [load]


def draw(name: str, *values: Any) -> Axes:
    """Return the axes of a drawing by its name."""
    (load,) = _bound
    return load()(name, *values)
