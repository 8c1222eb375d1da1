"""Composing as the tests do it: files are merged once for a choice of groups, and read again when they change."""

import pytest

from igap.cli.compose import compose_one
from igap.errors import InputError


def test_a_file_that_changes_or_goes_is_read_again_and_overrides_are_of_their_own_job_alone(tmp_path):
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "own.yaml"

    def n_steps(*overrides):
        return compose_one(["experiment=own", *overrides], config_dir=str(tmp_path)).config.ig.n_steps

    for n in (7, 30):
        file.write_text(f"# @package _global_\nig:\n  n_steps: {n}\n")
        assert [n_steps(), n_steps("ig.n_steps=9"), n_steps()] == [n, 9, n]
    file.unlink()
    with pytest.raises(InputError, match="own"):
        n_steps()
