"""Ray's folders and processes: those of a dead driver are removed, those of all others stay."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from muxfer.errors import BadInput, NoResources
from muxfer.executors import ray_sessions
from muxfer.executors.ray_processes import Cluster
from muxfer.processes import start_time
from tests.executors.run_jobs import wait_until
from tests.typed import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of all sessions during a test. Its path is short, because a socket's path must be."""
    folder = Path(f"/tmp/m{secrets.token_hex(2)}")
    folder.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def test_only_a_dead_drivers_folder_and_processes_are_removed(parent):
    own = ray_sessions.make_folder()
    _, pid, started_at, machine = own.name.split("-")
    dead = parent / f"muxfer-{pid}-1-{machine}"
    others = [f"muxfer-{pid}-1-ffffff", "muxfer-notes", "ray", f"muxfer-{pid}-{started_at}-{machine}"]
    for folder in (dead, *(parent / name for name in others)):
        folder.mkdir(exist_ok=True)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (dead / "log").open("w") as log:  # a process that writes there has lost its mark to a new title
        processes = [
            subprocess.Popen([*sleep, f"{dead}/notes"], env={ray_sessions.MARK: str(folder)}, stdout=stdout)
            for folder, stdout in ((dead, None), ("", log), (own, None))
        ]
    with (dead / "log").open() as log:
        processes.append(subprocess.Popen(sleep, stdin=log))
    try:
        ray_sessions.remove_abandoned()
        marked, logging, *bystanders = processes
        assert (marked.wait(10), logging.wait(10)) == (-signal.SIGKILL, -signal.SIGKILL)
        assert [bystander.poll() for bystander in bystanders] == [None, None]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert sorted(path.name for path in parent.iterdir()) == sorted(others)
    assert own.stat().st_mode & 0o777 == 0o700


def test_tunes_storage_is_removed_only_when_its_process_is_dead(tmp_path):
    own = ray_sessions.make_storage(tmp_path / "home")
    name = own.name.rpartition("-")[0]
    dead = name.replace(name.split("-")[3], "1")
    pid, started_at, machine = os.getppid(), start_time(os.getppid()), name.split("-")[4]
    living = f".ray-muxfer-{pid:x}-{started_at:x}-{machine}-abc"
    for other in (f"{dead}-abc", f"{name[:-6]}ffffff-abc", ".ray-abc", living):
        (own.parent / other / "trials").mkdir(parents=True)
    ray_sessions.remove_abandoned_storage(own.parent)
    assert sorted(own.parent.iterdir()) == sorted([own, own.parent / living])


def test_a_folder_too_long_for_a_sockets_path_is_not_used(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/" + 60 * "long")
    assert ray_sessions.parent_folder() == Path("/tmp")


START_EXECUTOR = """
import sys
from pathlib import Path
from muxfer.config.study import Compute
from muxfer.executors.ray_tune import RayExecutor
RayExecutor(Compute(device="cpu", slots=1), folder=Path(sys.argv[1]))
"""


def test_a_driver_killed_while_ray_starts_leaves_only_what_is_removed_later(parent, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "-c", START_EXECUTOR, str(tmp_path)], env=environment)
    wait_until(lambda: driver.poll() is not None or any(parent.glob("muxfer-*/r/session_*/sockets")), seconds=60)
    assert driver.poll() is None
    driver.kill()
    driver.wait()
    ray_sessions.remove_abandoned()
    assert list(parent.iterdir()) == []


def test_an_address_where_nothing_answers_is_refused_at_once():
    began = time.monotonic()
    with pytest.raises(NoResources, match=r"compute.address 127.0.0.1:1: nothing answers there"):
        Cluster("127.0.0.1:1").start()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("address", ["ray://head:10001", "head", ":6379", "head:port"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(BadInput, match="expected host:port"):
        Cluster(address).start()
