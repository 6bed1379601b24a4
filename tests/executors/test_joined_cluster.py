"""A sweep joins a cluster that another process started, and leaves it as it was."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.small_sweeps import TINY
from tests.typed import environment, start

pytestmark = [pytest.mark.slow, pytest.mark.alone]

TWO_TRIALS = [*TINY, "search.base_lr=[2**-6,2**-4]", "training.checkpoint_every=4"]

HEAD = """
import sys
from muxfer.executors.ray_processes import Cluster
cluster = Cluster(None)
cluster.start()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shut_down()
"""


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster on loopback that asks for a token. It ends when its standard input closes."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()


def test_tunes_state_stays_until_a_sweep_on_a_joined_cluster_ends(head, tmp_path):
    """Tune restores a missing folder, but not the marker by which other nodes know that they share it."""
    sweep = start(tmp_path, "sweep", "lr-width", f"compute.address={head}", "compute.slots=1", *TWO_TRIALS, "--json")
    has_marker = None
    while has_marker is None and sweep.poll() is None:
        for state in tmp_path.glob("muxfer/*/.ray-*/trials/experiment_state-*"):
            has_marker = (state.parent / ".validate_storage_marker").exists()
        time.sleep(0.01)
    out, err = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, err
    assert has_marker
    result = json.loads(out)
    assert [trial["outcome"] for trial in result["trials"]] == ["finished", "finished"]
    assert not list(Path(result["folder"]).glob(".ray-*"))
