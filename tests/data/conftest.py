"""The data set that these tests share."""

import pytest

from muxfer.config.task import Digits
from muxfer.data.dataset import Dataset
from muxfer.data.source import load_dataset


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset(Digits(name="digits"))
