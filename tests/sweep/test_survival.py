"""A short version of programs/survival.py, which starts whole interpreters, kills more often, under more launchers."""

import pytest
from helpers.forked import load_embedded
from programs import kills
from programs.survival import survive


@pytest.mark.long
@pytest.mark.usefixtures("one_model", "forks")
def test_a_sweep_that_is_killed_twice_comes_out_as_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "MOMENT", 0.1)  # a forked command ends soon, and one that has ended is none killed
    load_embedded()
    assert "2 kills" in survive(tmp_path, 2, n_jobs=3, more=["sites=heads", "plots=heads_heatmap"], n_plots=1)
