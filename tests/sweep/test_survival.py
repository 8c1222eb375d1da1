"""A short version of programs/survival.py, which does the same 20 times and more."""

from programs.survival import reference_of, survive


def test_a_sweep_that_is_killed_twice_comes_out_as_one_that_was_not(tmp_path):
    said = survive(tmp_path, reference_of(tmp_path, n_jobs=3), kills=2, n_jobs=3)
    assert "2 kills" in said
