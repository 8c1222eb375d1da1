"""The many searches of this folder are small ones; tests/docs has some as a user runs them."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _small(small_searches: None) -> None:
    """As `small_searches`."""
