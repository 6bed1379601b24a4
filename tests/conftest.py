"""What several tests start from: an empty folder, a small study's configuration, the digits."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from muxfer.config.hydra_compose import compose
from muxfer.config.parse import parse
from muxfer.config.study import Config

for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
    os.environ.setdefault(name, "0")


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: it is empty, and no variable names another ledger."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    return tmp_path


@pytest.fixture(scope="session")
def digits():
    from muxfer.config.task import Digits
    from muxfer.data.source import load_dataset  # imports torch

    return load_dataset(Digits(name="digits"))


@pytest.fixture
def make_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """`make_config("training.steps=5")`: lr-width with overrides, from an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: parse(compose("lr-width", overrides))
