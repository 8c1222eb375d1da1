"""The heads of a run as its heads.csv has them."""

import math

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from igap.output.dashboard import head_maps


@pytest.mark.parametrize("folder", ["written", "many_written"])
def test_they_are_what_the_tensors_are(folder, request):
    folder = request.getfixturevalue(folder)
    tensors = load_file(folder / "attributions.safetensors")
    found, trouble = head_maps.read(folder)
    assert (trouble, found.unit, (found.n_layers, found.n_heads)) == (None, "score", tensors["ig.heads"].shape)
    for name in ("ig", "ap"):
        np.testing.assert_array_equal(np.float32(getattr(found, name)), tensors[f"{name}.heads"].ravel())


def test_without_a_score_they_are_effects(written, tmp_path):
    frame = pd.read_csv(written / "heads.csv")
    frame[["ig", "ap", "difference"]] = np.nan
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "heads.csv", index=False)
    found, _ = head_maps.read(tmp_path)
    assert found.unit == "effect"
    assert found.ap == pytest.approx(tuple(frame["effect_ap"]))
    assert found.ig == pytest.approx(tuple(frame["effect_ig"]))


def test_a_missing_score_among_others_is_nan():
    row = {"layer": "0", "ig": "", "ap": "0.5", "effect_ig": "1", "effect_ap": "2"}
    found = head_maps.from_rows([{**row, "head": "0"}, {**row, "head": "1", "ig": "inf"}])
    assert (found.unit, found.ap) == ("score", (0.5, 0.5))
    assert all(map(math.isnan, found.ig))


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
    assert head_maps.read(tmp_path) == (None, f"{tmp_path}: its heads cannot be read (heads.csv: {reason}).")
