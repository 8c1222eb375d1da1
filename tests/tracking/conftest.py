"""W&B keeps keys and addresses for a whole process: here each test that sets them starts anew."""

import pytest

import wandb


@pytest.fixture
def forgetful():
    """Nothing that W&B has read from the environment before or during the test lasts."""
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def no_key(forgetful, monkeypatch, tmp_path):
    """No credentials for W&B on this machine."""
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
