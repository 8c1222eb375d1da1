"""A short version of programs/search_survival.py, which kills more often, and on PostgreSQL too."""

import pytest
from programs.search_survival import survive


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_search_that_is_killed_reaches_its_total_and_writes_its_report(tmp_path, storage):
    said = survive(tmp_path, storage, kills=1, workers=2, until=40)
    assert "ended with exactly 40 finished trials" in said
