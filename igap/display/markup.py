"""HTML for notebooks: a heading, lines of text, a heatmap as a table. No script, no style sheet, no picture.

Colours lie over whatever background the page has, so that they are right on a light page and on a dark one.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from igap.components import Site, component_names
from igap.display.grids import grid_of

_RED, _BLUE = "178,24,43", "33,102,172"
"""The ends of the run's colour scale (RdBu), as CSS has them."""


def block(heading: str, lines: Sequence[str], body: str = "") -> str:
    """Return a heading, lines of plain text, and HTML below them."""
    texts = "".join(f"<div>{escape(line)}</div>" for line in lines)
    return f"<div><div><b>{escape(heading)}</b></div>{texts}{body}</div>"


def table(frame: pd.DataFrame) -> str:
    """Return a table as pandas shows it, numbers to four digits."""
    return frame.to_html(notebook=True, float_format="{:.4g}".format)


def heatmap(
    values: Float64[np.ndarray, "layer *span component"],
    site: Site,
    *,
    unit: str,
    spans: Sequence[str] | None = None,
    marked: Bool[np.ndarray, "layer *span component"] | None = None,
) -> str:
    """Return a table of coloured cells, layers down; a cell's name and number show when the mouse rests on it.

    Args:
        values: The numbers; a missing one is grey.
        site: What a column is.
        unit: What the numbers are, for the line below.
        spans: The names of positions, where the values have such an axis: these are across.
        marked: Components whose cells have a frame.
    """
    magnitude = np.abs(np.nan_to_num(values, nan=0.0))
    largest = float(magnitude.max(initial=0.0))
    grid = grid_of(magnitude, site, spans)
    names = component_names(site, values.shape[0], values.shape[-1], spans)
    shares = values / largest if largest else values
    one_row = len(grid.rows) == 1
    rows = []
    for row, label in enumerate(grid.rows):
        cells = [
            _cell(
                f"{names[place]}: {values.flat[place]:+.4g}",
                shares.flat[place],
                framed=marked is not None and bool(marked.flat[place]),
                text=f"{values.flat[place]:+.3f}" if one_row else "",
            )
            for place in grid.cells[row].tolist()
        ]
        rows.append(f"<tr>{_label(f'L{label}' if grid.row == 'layer' else label)}{''.join(cells)}</tr>")
    every = 1 if len(grid.columns) <= 16 or spans else 4
    heads = [name if i % every == 0 else "" for i, name in enumerate(grid.columns)]
    labels = "".join(_label(name, upright=spans is not None) for name in heads)
    header = f"<tr>{_label('')}{labels}</tr>" if heads else ""
    scale = f"darkest {largest:.3g}" if largest else "every number is 0 or missing"
    frame = "; framed: outliers" if marked is not None and marked.any() else ""
    note = f"<div><small>{grid.note}; {escape(unit)}; red &gt; 0, blue &lt; 0, {scale}{frame}</small></div>"
    return f'<table style="border-collapse:collapse;margin:4px 0">{header}{"".join(rows)}</table>{note}'


def _cell(title: str, share: float, *, framed: bool, text: str) -> str:
    """Return a cell whose colour is `share`, [-1, 1], of the scale's end."""
    missing = not np.isfinite(share)
    colour = "128,128,128,.4" if missing else f"{_RED if share > 0 else _BLUE},{abs(share):.2f}"
    border = "2px solid currentColor" if framed else "1px solid rgba(128,128,128,.3)"
    style = f"background-color:rgba({colour});border:{border};padding:0;width:18px;min-width:14px;height:16px"
    if text:
        style = style.replace("padding:0", "padding:0 4px")
        text = f'<span style="color:{"#fff" if abs(share) > 0.6 else "inherit"}">{text}</span>'
    return f'<td title="{escape(title)}" style="{style}">{text}</td>'


def _label(text: str, *, upright: bool = False) -> str:
    """Return the name of a row or column; upright ones read from below."""
    style = "padding:0 4px;text-align:center;font-weight:normal;font-size:80%"
    if upright:
        style = "padding:4px 0;text-align:left;font-weight:normal;font-size:80%;writing-mode:vertical-rl;rotate:180deg"
    return f'<th style="{style}">{escape(text)}</th>'
