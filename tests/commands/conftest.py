"""Runs that are trained once, because every test of the export command needs them."""

import pytest

from tests.commands.trained_runs import Trained, train_all


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_all(tmp_path_factory.mktemp("export"))


@pytest.fixture
def trained(trained_once: Trained, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The trained runs. The test starts in their folder."""
    monkeypatch.chdir(trained_once.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    return trained_once
