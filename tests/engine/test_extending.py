"""docs/extending/baseline.md: its function as it stands there, and that no kind is entered by halves."""

import re
import textwrap
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from igap import integrated_gradients, output_curve
from igap.cli.settings import CONF
from igap.engine.baselines import KINDS, Activations, Request
from igap.vocabulary import BaselineKind

PAGE = (Path(__file__).parents[2] / "docs" / "extending" / "baseline.md").read_text()


@pytest.fixture
def halfway(monkeypatch):
    """The page's function in the place of a kind that there is."""
    code = textwrap.dedent(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1])
    names = {"torch": torch, "Request": Request, "Activations": Activations}
    exec(compile(code, "baseline.md", "exec"), names)
    monkeypatch.setitem(KINDS, "zero", names["_halfway"])


def test_the_function_of_a_kind_is_all_that_says_what_activations_are_moved_to(small, pair, halfway):
    to_corrupted = output_curve(small(), pair, ["1.2", "L2.N5"], alphas=[0, 0.5, 1])
    to_half = output_curve(small(), pair, ["1.2", "L2.N5"], alphas=[0, 0.5, 1], baseline="zero")
    np.testing.assert_allclose(to_half.ends[:, 1], to_corrupted.values[:, 1], atol=1e-12)
    ig = integrated_gradients(small(), pair, "heads", baseline="zero", n_steps=50)
    assert ig.incomplete_layers() == []
    whole = integrated_gradients(small(), pair, "heads", n_steps=50)
    assert (ig.layer_effect - whole.layer_effect).abs().max() > 1e-3


def test_every_kind_has_its_name_its_function_and_its_option():
    options = [OmegaConf.load(file) for file in (CONF / "baseline").glob("*.yaml")]
    kinds = sorted(str(option.kind) for option in options if "kind" in option)
    assert kinds == sorted(get_args(BaselineKind)) == sorted(KINDS)
