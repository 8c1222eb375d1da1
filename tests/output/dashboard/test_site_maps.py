"""A site of a run as its SITE.csv has it."""

import math

import numpy as np
import pandas as pd
import pytest
from helpers.finished_runs import make
from safetensors.numpy import load_file

from igap.output.dashboard import site_maps


@pytest.mark.parametrize("folder", ["written", "many_written"])
def test_they_are_what_the_tensors_are(folder, request):
    folder = request.getfixturevalue(folder)
    tensors = load_file(folder / "attributions.safetensors")
    found, trouble = site_maps.read(folder)
    assert (trouble, found.unit, (len(found.rows), len(found.columns))) == (None, "score", tensors["ig.heads"].shape)
    for name in ("ig", "ap"):
        np.testing.assert_array_equal(np.float32(getattr(found, name)), tensors[f"{name}.heads"].ravel())


def test_without_a_score_they_are_effects(written, tmp_path):
    frame = pd.read_csv(written / "heads.csv")
    frame[["ig", "ap", "difference"]] = np.nan
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "heads.csv", index=False)
    found, _ = site_maps.read(tmp_path)
    assert found.unit == "effect"
    assert found.ap == pytest.approx(tuple(frame["effect_ap"]))
    assert found.ig == pytest.approx(tuple(frame["effect_ig"]))


def test_a_missing_score_among_others_is_nan():
    header = "layer head ig ap effect_ig effect_ap".split()
    found = site_maps.of_table("heads", header, [["0", "0", "", "0.5", "1", "2"], ["0", "1", "inf", "0.5", "1", "2"]])
    assert (found.unit, found.ap) == ("score", (0.5, 0.5))
    assert all(map(math.isnan, found.ig))


@pytest.mark.parametrize(
    ("site", "spans", "rows", "columns", "axes", "last"),
    [
        ("heads", None, "01", "012", ("layer", "head"), "1.2"),
        ("k", None, "01", "012", ("layer", "key-value head"), "1.2.k"),
        (
            "q",
            ["'=S1", "9 ,"],
            ["0.0.q", "0.1.q", "0.2.q", "1.0.q", "1.1.q", "1.2.q"],
            ["=S1", "9 ,"],
            ("head", "position"),
            "1.2.q at 9 ,",
        ),
        ("mlp_out", ["S1", "END"], "01", ["S1", "END"], ("layer", "position"), "L1.mlp_out at END"),
        ("mlp_out", None, "01", [""], ("layer", ""), "L1.mlp_out"),
    ],
)
def test_rows_and_columns_are_those_of_the_runs_own_pictures(site, spans, rows, columns, axes, last, tmp_path):
    make(tmp_path / "run", sites=[site], spans=spans)
    found, _ = site_maps.read(tmp_path / "run", site)
    assert (list(found.rows), list(found.columns)) == (list(rows), list(columns))
    assert (found.row, found.column) == axes
    assert found.name.format(row=found.rows[-1], column=found.columns[-1]) == last


@pytest.mark.parametrize(
    ("site", "lines", "reason"),
    [
        (
            "q",
            ["layer,span,head", "0,S1,0", "0,S2,0", "0,S1,1"],
            "3 rows are no grid of layers and positions and heads",
        ),
        ("q", ["layer,span,head", "0,S1,0", "0,S1,0"], "head 0.0.q at S1 is there twice"),
        ("v", ["layer,head", "0,0"], "no column 'kv_head'"),
        ("resid_pre", ["layer", "0", "2"], "2 rows are no grid of layers"),
        ("resid_pre", ["layer,span", "0,S1", "0,S1"], "L0.resid_pre at S1 is there twice"),
    ],
)
def test_what_is_no_table_of_a_site_is_said(site, lines, reason, tmp_path):
    header, *rows = lines
    text = [f"{header},ig,ap,effect_ig,effect_ap", *(f"{row},1,1,1,1" for row in rows), ""]
    (tmp_path / f"{site}.csv").write_text("\n".join(text))
    assert site_maps.read(tmp_path, site) == (None, f"{tmp_path}: its {site} cannot be read ({site}.csv: {reason}).")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file or directory"),
        ("layer,head,ig\n0,0,1\n", "no column 'ap'"),
        ("layer,head,ig,ap,effect_ig,effect_ap\n", "0 rows are no grid of layers and heads"),
        ("layer,head,ig,ap,effect_ig,effect_ap\n0,1,1,1,1,1\n", "1 rows are no grid of layers and heads"),
        ("layer,head,ig,ap,effect_ig,effect_ap\n0,0,1,x,1,1\n", "could not convert string to float: 'x'"),
        (2 * "0,0,1,1,1,1\n", "head 0.0 is there twice"),
    ],
)
def test_what_is_no_table_of_heads_is_said(text, reason, tmp_path):
    if text is not None:
        header = "" if text.startswith("layer") else "layer,head,ig,ap,effect_ig,effect_ap\n"
        (tmp_path / "heads.csv").write_text(header + text)
    assert site_maps.read(tmp_path) == (None, f"{tmp_path}: its heads cannot be read (heads.csv: {reason}).")
