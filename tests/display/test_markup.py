"""HTML of heatmaps: the right colour in the right cell, on any page, of any map."""

import re

import numpy as np
import pytest

from igap.display.markup import block, heatmap


def cells(html):
    """Name, number and colour of every cell, in order."""
    found = re.findall(r'<td title="([^:"]+): ([^"]+)" style="background-color:rgba\(([\d.,]+)\)', html)
    return [(name, number, colour) for name, number, colour in found]


def test_a_cell_is_named_red_above_zero_blue_below_and_as_strong_as_its_share_of_the_largest():
    html = heatmap(np.array([[0.5, -1.0], [0.0, np.nan]]), "heads", unit="score")
    assert cells(html) == [
        ("0.0", "+0.5", "178,24,43,0.50"),
        ("0.1", "-1", "33,102,172,1.00"),
        ("1.0", "+0", "33,102,172,0.00"),
        ("1.1", "+nan", "128,128,128,.4"),
    ]
    assert "darkest 1" in html


def test_outliers_are_framed_and_the_line_below_says_so():
    marked = np.array([[False, True]])
    html = heatmap(np.ones((1, 2)), "heads", unit="score", marked=marked)
    assert [("2px solid" in cell) for cell in html.split("<td ")[1:]] == [False, True]
    assert "framed: outliers" in html
    assert "framed" not in heatmap(np.ones((1, 2)), "heads", unit="score", marked=~marked & False)


@pytest.mark.parametrize("shape", [(4, 512), (80, 64), (200, 4000), (1, 65)])
def test_a_wide_map_shows_the_largest_of_each_layer_and_stays_small(shape):
    values = np.random.default_rng(0).standard_normal(shape)
    html = heatmap(values, "neurons", unit="score")
    shown = cells(html)
    assert len(html) < 400_000
    each = len(shown) // shape[0]
    assert each == min(25, 2048 // shape[0])
    first = [f"L{layer}.N{np.abs(row).argmax()}" for layer, row in enumerate(values)]
    assert [name for name, *_ in shown[::each]] == first
    assert f"the {each} neurons of each layer" in html


def test_zeros_and_missing_numbers_alone_are_said():
    assert "every number is 0 or missing" in heatmap(np.zeros((1, 2)), "heads", unit="score")
    assert "every number is 0 or missing" in heatmap(np.full((1, 2), np.nan), "heads", unit="score")


def test_texts_are_escaped_and_there_is_no_script_or_style_sheet():
    html = block("<script>", ["a & b"], heatmap(np.ones((1, 1)), "heads", unit="<b>"))
    assert "<script" not in html
    assert "<style" not in html
    assert "&lt;script&gt;" in html
    assert "a &amp; b" in html
    assert "&lt;b&gt;" in html


def test_by_position_tokens_stand_upright_over_their_cells_and_are_escaped():
    html = heatmap(np.array([[[1.0], [-0.5]]]), "resid_pre", unit="score", spans=("0 <b>", '1 "a'))
    assert [name for name, *_ in cells(html)] == ["L0.resid_pre at 0 &lt;b&gt;", "L0.resid_pre at 1 &quot;a"]
    assert re.findall(r"<th [^>]*vertical[^>]*>([^<]*)</th>", html) == ["0 &lt;b&gt;", "1 &quot;a"]
    assert "layers down, positions across" not in heatmap(np.ones((1, 1)), "resid_pre", unit="score")


def test_a_vector_a_layer_is_a_row_of_numbers():
    html = heatmap(np.array([[0.25], [-1.0]]), "attn_out", unit="score")
    assert cells(html) == [("L0.attn_out", "+0.25", "178,24,43,0.25"), ("L1.attn_out", "-1", "33,102,172,1.00")]
    assert re.findall(r"<span[^>]*>([^<]*)</span>", html) == ["+0.250", "-1.000"]
    assert ">attn_out</th>" in html


def test_whole_components_stand_in_rows_where_there_are_positions():
    html = heatmap(np.arange(12.0).reshape(2, 2, 3), "heads", unit="score", spans=("a", "b"))
    assert [name for name, *_ in cells(html)][:2] == ["1.2 at a", "1.2 at b"]
    assert ">1.2</th>" in html
