"""HTML for notebooks: a heading, lines of text, a heatmap as a table. No script, no style sheet, no picture.

Colours lie over whatever background the page has, so that they are right on a light page and on a dark one.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from igap.components import Site, component_name

_RED, _BLUE = "178,24,43", "33,102,172"
"""The ends of the run's colour scale (RdBu), as CSS has them."""
_MOST_COLUMNS = 64
_MOST_CELLS = 2048
_LARGEST_SHOWN = 25
"""Components of each layer, largest first, of a site too wide to show whole: as in the run's figures."""


def block(heading: str, lines: Sequence[str], body: str = "") -> str:
    """Return a heading, lines of plain text, and HTML below them."""
    texts = "".join(f"<div>{escape(line)}</div>" for line in lines)
    return f"<div><div><b>{escape(heading)}</b></div>{texts}{body}</div>"


def table(frame: pd.DataFrame) -> str:
    """Return a table as pandas shows it, numbers to four digits."""
    return frame.to_html(notebook=True, float_format="{:.4g}".format)


def heatmap(
    values: Float64[np.ndarray, "layer component"],
    site: Site,
    *,
    unit: str,
    marked: Bool[np.ndarray, "layer component"] | None = None,
) -> str:
    """Return a table of coloured cells, layers down; a cell's name and number show when the mouse rests on it.

    Args:
        values: The numbers; a missing one is grey.
        site: What a column is.
        unit: What the numbers are, for the line below.
        marked: Components whose cells have a frame.
    """
    n_layers, width = values.shape
    magnitude = np.abs(np.nan_to_num(values, nan=0.0))
    largest = float(magnitude.max(initial=0.0))
    whole = width <= _MOST_COLUMNS and values.size <= _MOST_CELLS
    shown = width if whole else min(width, _LARGEST_SHOWN, max(1, _MOST_CELLS // n_layers))
    order = (
        np.argsort(-magnitude, axis=1, kind="stable")[:, :shown]
        if not whole
        else np.tile(np.arange(width), (n_layers, 1))
    )
    rows = []
    for layer in range(n_layers):
        cells = [
            _cell(
                f"{component_name(site, layer, index)}: {values[layer, index]:+.4g}",
                values[layer, index] / largest if largest else values[layer, index],
                framed=marked is not None and bool(marked[layer, index]),
            )
            for index in order[layer].tolist()
        ]
        rows.append(f"<tr>{_label(f'L{layer}')}{''.join(cells)}</tr>")
    heads = [str(i) if i % (1 if shown <= 16 else 4) == 0 else "" for i in range(shown)] if whole else [""] * shown
    header = f"<tr>{_label('')}{''.join(map(_label, heads))}</tr>" if whole else ""
    what = f"{site} across" if whole else f"the {shown} {site} of each layer with the largest |value|, largest first"
    scale = f"darkest {largest:.3g}" if largest else "every number is 0 or missing"
    frame = "; framed: outliers" if marked is not None and marked.any() else ""
    note = f"<div><small>layers down, {what}; {escape(unit)}; red &gt; 0, blue &lt; 0, {scale}{frame}</small></div>"
    return f'<table style="border-collapse:collapse;margin:4px 0">{header}{"".join(rows)}</table>{note}'


def _cell(title: str, share: float, *, framed: bool) -> str:
    """Return a cell whose colour is `share`, [-1, 1], of the scale's end."""
    missing = not np.isfinite(share)
    colour = "128,128,128,.4" if missing else f"{_RED if share > 0 else _BLUE},{abs(share):.2f}"
    border = "2px solid currentColor" if framed else "1px solid rgba(128,128,128,.3)"
    style = f"background-color:rgba({colour});border:{border};padding:0;width:18px;min-width:14px;height:16px"
    return f'<td title="{title}" style="{style}"></td>'


def _label(text: str) -> str:
    return f'<th style="padding:0 4px;text-align:center;font-weight:normal;font-size:80%">{text}</th>'
