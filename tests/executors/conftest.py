"""One session of Ray for each file of tests."""

from collections.abc import Iterator

import pytest

from muxfer.config.study import Compute
from muxfer.executors.ray_tune import RayExecutor
from tests.executors.fake_trials import WORKER
from tests.typed import ROOT


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    """A RayExecutor with one slot, on a private cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        compute = Compute(device="cpu", slots=1, max_failures=2)
        executor = RayExecutor(compute, folder=tmp_path_factory.mktemp("ray"), worker=WORKER)
    yield executor
    executor.close()
