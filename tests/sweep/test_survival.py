"""A short version of programs/survival.py, which kills more often, under more launchers."""

import pytest
from programs.survival import survive


@pytest.mark.long
def test_a_sweep_that_is_killed_twice_comes_out_as_one_that_was_not(tmp_path):
    assert "2 kills" in survive(tmp_path, 2, n_jobs=3)
