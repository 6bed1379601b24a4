"""Ray under the trials: what dies is started again, what is dead is noticed, and nothing of ours stays behind."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from muxfer.config.study import Compute
from muxfer.errors import BadInput, NoResources
from muxfer.executors import ray_sessions
from muxfer.executors.base import TrialJob, TrialUpdate
from muxfer.executors.ray_processes import Cluster
from muxfer.executors.ray_tune import RayExecutor, resolve, stdout_aside
from muxfer.trial import Outcome, Record

HELPERS, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path.insert(0, str(HELPERS))
from fake_trials import WORKER, job  # noqa: E402

SEARCH_PATH = os.pathsep.join([str(HELPERS), str(ROOT)])


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", SEARCH_PATH)
        compute = Compute(device="cpu", slots=1, max_failures=2)
        executor = RayExecutor(compute, folder=tmp_path_factory.mktemp("ray"), worker=WORKER)
    yield executor
    executor.close()


def run(executor: RayExecutor, jobs: list[TrialJob]) -> tuple[list[TrialUpdate], dict[str, Record]]:
    executor.submit(jobs)
    reports: list[TrialUpdate] = []
    records: dict[str, Record] = {}
    end = time.monotonic() + 60
    while len(records) < len(jobs):
        assert time.monotonic() < end, f"only {list(records)} ended"
        for report in executor.updates(0.1):
            reports.append(report)
            if report.record is not None:
                records[report.key] = report.record
    return reports, records


def pids(reports: list[TrialUpdate], key: str | None = None) -> list[int]:
    values = [p.value for r in reports if key in (None, r.key) for p in r.points if p.name == "pid"]
    return list(dict.fromkeys(int(value) for value in values))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def test_one_process_of_one_thread_takes_trial_after_trial(executor, tmp_path):
    reports, _ = run(executor, [job(tmp_path, f"t{number}") for number in range(6)])
    assert len(pids(reports)) == 1
    assert {p.value for r in reports for p in r.points if p.name == "threads"} == {1.0}


def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(executor, tmp_path):
    executor.submit([job(tmp_path, "victim", steps=40, seconds=0.1), job(tmp_path, "next")])
    reports: list[TrialUpdate] = []
    killed = None
    end = time.monotonic() + 60
    while sum(report.record is not None for report in reports) < 2:
        assert time.monotonic() < end
        reports += executor.updates(0.1)
        if killed is None and any(report.step >= 5 for report in reports):
            killed = pids(reports, "victim")[0]
            os.kill(killed, signal.SIGKILL)
    victim, after = (next(r.record for r in reports if r.record and r.key == key) for key in ("victim", "next"))
    assert victim.outcome is after.outcome is Outcome.FINISHED
    assert 5 <= victim.resumed_at < 40
    assert len(pids(reports, "victim")) == 2
    assert [r.key for r in reports if r.record] == ["victim", "next"]


def test_a_trial_that_dies_too_often_fails_and_the_others_finish(executor, tmp_path):
    jobs = [
        job(tmp_path, "mortal", does="die", steps=9, deaths=99),
        job(tmp_path, "good", does="die", steps=9, deaths=2),
    ]
    _, records = run(executor, jobs)
    assert records["mortal"].outcome is Outcome.FAILED
    assert records["mortal"].error.startswith("its process died 3 times")
    assert "\n" not in records["mortal"].error
    assert len((tmp_path / "mortal" / "attempts").read_text().splitlines()) == 3
    assert records["good"].outcome is Outcome.FINISHED


def test_a_process_in_which_a_trial_broke_is_not_reused(executor, tmp_path):
    before, _ = run(executor, [job(tmp_path, "before")])
    broken, records = run(executor, [job(tmp_path, "broken", does="break"), job(tmp_path, "refused", does="refuse")])
    after, _ = run(executor, [job(tmp_path, "after")])
    assert records["broken"].outcome is records["refused"].outcome is Outcome.FAILED
    assert pids(before) != pids(after)
    assert pids(broken) == []


DRIVER = """
import json, os, signal, sys, time
from pathlib import Path
from fake_trials import WORKER, job
from muxfer.executors.ray_tune import RayExecutor
from muxfer.config import Compute
from muxfer.errors import MuxferError, NoResources

case, folder, address = sys.argv[1], Path(sys.argv[2]), sys.argv[3] or None
told = {"ray": {}}
def tell(**more):
    told.update(more)
    (folder / "new").write_text(json.dumps(told))
    os.replace(folder / "new", folder / "told.json")

if case == "join":
    try:
        RayExecutor(Compute(device="cpu", slots=10_000, address=address), folder=folder, worker=WORKER)
    except NoResources as refused:
        tell(refused=str(refused))
orphan_seconds = 2.0 if case == "stopped" else 60.0
compute = Compute(device="cpu", slots=1, address=address, orphan_seconds=orphan_seconds)
executor = RayExecutor(compute, folder=folder, worker=WORKER)
tell(ray={name: process.pid for name, process in executor._cluster.processes.items()})
steps = {"join": 2, "stopped": 40}.get(case, 10_000)
executor.submit([job(folder, "long", steps=steps, seconds=0.1)])
first = []
while not first:
    first = executor.updates(0.5)
tell(worker=int(first[0].points[0].value))
print("the driver's own print")
if case in ("driver", "stopped"):
    os.kill(os.getpid(), signal.SIGKILL if case == "driver" else signal.SIGSTOP)
if case in ("gcs_server", "raylet"):
    os.kill(told["ray"][case], signal.SIGKILL)
    began = time.monotonic()
    try:
        while time.monotonic() - began < 30:
            executor.updates(0.2)
    except MuxferError as error:
        tell(error=str(error), exit_code=error.exit_code, noticed=time.monotonic() - began)
if address:
    while first[-1].record is None:
        first += executor.updates(0.5)
    tell(outcome=str(first[-1].record.outcome), resumed_at=first[-1].record.resumed_at)
began = time.monotonic()
executor.close()
tell(closed=time.monotonic() - began, left=sorted(path.name for path in folder.glob(".ray*")),
     session=str(executor._cluster.folder))
print("the answer")
sys.stdout.flush()
os._exit(0)
"""
CASES = ["gcs_server", "raylet", "driver", "stopped", "join"]


@dataclass
class Driver:
    process: subprocess.Popen[str]
    folder: Path

    def finish(self) -> dict:
        """What the driver told; its output is `self.stdout`."""
        self.stdout, self.stderr = self.process.communicate(timeout=90)
        return json.loads((self.folder / "told.json").read_text())

    def worker(self) -> int:
        """The process of its first trial, as soon as it told."""
        end = time.monotonic() + 90
        while time.monotonic() < end:
            told = self.folder / "told.json"
            if told.exists() and "worker" in (found := json.loads(told.read_text())):
                return found["worker"]
            time.sleep(0.02)
        raise AssertionError(self.process.poll())

    def gone(self, told: dict, *, seconds: float) -> bool:
        """Whether every process of its cluster is gone within so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not any(alive(pid) for pid in [*told["ray"].values(), told["worker"]]):
                return True
            time.sleep(0.1)
        return False


@pytest.fixture(scope="module", autouse=True)
def drivers(executor: RayExecutor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Driver]]:
    """All at once, from the first test on: they mostly wait. `stopped` and `join` are on the cluster of `executor`."""
    started = {}
    for case in CASES:
        folder = tmp_path_factory.mktemp(case)
        address = executor._cluster.address if case in ("stopped", "join") else ""
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, case, str(folder), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": SEARCH_PATH},
        )
        started[case] = Driver(process=process, folder=folder)
    yield started
    for driver in started.values():
        driver.process.kill()
        driver.process.wait()


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_dead_head_is_noticed_and_left_without_a_trace(drivers, name):
    driver = drivers[name]
    told = driver.finish()
    assert told["exit_code"] == 3, driver.stderr
    assert f"Ray's {name} (pid {told['ray'][name]}) died" in told["error"]
    assert "run the same command again" in told["error"]
    assert told["noticed"] < 5
    assert told["closed"] < 5
    assert driver.gone(told, seconds=10)
    assert told["left"] == []
    assert driver.stdout == "the answer\n"
    assert not Path(told["session"]).exists()


def test_nothing_outlives_a_killed_driver(drivers):
    told = drivers["driver"].finish()
    assert drivers["driver"].process.returncode == -signal.SIGKILL
    assert drivers["driver"].gone(told, seconds=20)


ORPHAN = """
import time
from muxfer.adapters.ray_plugins import Orphan
orphan = Orphan()
orphan.wait_for_driver(0.5)
orphan.stop_waiting()
time.sleep(1.5)
print("between two trials", flush=True)
orphan.wait_for_driver(0.5)
time.sleep(60)
"""


def test_an_orphan_ends_itself_with_a_trial_and_waits_for_ever_without_one():
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=50)
    assert done.returncode == 86, done.stderr
    assert done.stdout == "between two trials\n"


@pytest.mark.skipif(os.cpu_count() == 1, reason="the cluster's one CPU is taken")
def test_a_trial_of_a_stopped_driver_ends_itself_on_a_joined_cluster_and_goes_on_when_it_wakes(drivers):
    driver = drivers["stopped"]
    worker = driver.worker()
    end = time.monotonic() + 30
    while alive(worker):
        assert time.monotonic() < end
        time.sleep(0.1)
    driver.process.send_signal(signal.SIGCONT)
    told = driver.finish()
    assert told["outcome"] == "finished", driver.stderr
    assert 0 < told["resumed_at"] < 40


@pytest.mark.skipif(os.cpu_count() == 1, reason="the cluster's one CPU is taken")
def test_a_running_cluster_is_joined_and_left_running(drivers, executor, tmp_path):
    told = drivers["join"].finish()
    assert told["refused"].startswith("compute.slots 10000: this cluster has "), drivers["join"].stderr
    assert told["outcome"] == "finished"
    assert drivers["join"].stdout == "the answer\n"
    assert told["ray"] == {}
    _, records = run(executor, [job(tmp_path, "still-there")])
    assert records["still-there"].outcome is Outcome.FINISHED


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray's folders go meanwhile; a socket's path must not be long."""
    folder = Path(f"/tmp/m{secrets.token_hex(2)}")
    folder.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def test_the_folder_of_a_process_that_is_gone_is_swept_with_its_processes_and_no_other(short):
    mine = ray_sessions.make_folder()
    _, pid, started, machine = mine.name.split("-")
    dead = short / f"muxfer-{pid}-1-{machine}"
    others = [f"muxfer-{pid}-1-ffffff", "muxfer-notes", "ray", f"muxfer-{pid}-{started}-{machine}"]
    for folder in (dead, *(short / name for name in others)):
        folder.mkdir(exist_ok=True)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (dead / "log").open("w") as log:  # of one whose new title took the mark's place
        started_for = [
            subprocess.Popen([*sleep, f"{dead}/notes"], env={ray_sessions.MARK: str(folder)}, stdout=stdout)
            for folder, stdout in ((dead, None), ("", log), (mine, None))
        ]
    with (dead / "log").open() as log:
        started_for.append(subprocess.Popen(sleep, stdin=log))
    try:
        ray_sessions.remove_abandoned()
        marked, logging, *bystanders = started_for
        assert (marked.wait(10), logging.wait(10)) == (-signal.SIGKILL, -signal.SIGKILL)
        assert [bystander.poll() for bystander in bystanders] == [None, None]
    finally:
        for process in started_for:
            process.kill()
            process.wait()
    assert sorted(path.name for path in short.iterdir()) == sorted(others)
    assert mine.stat().st_mode & 0o777 == 0o700


def test_tunes_storage_stays_while_its_process_lives_and_goes_with_it(tmp_path):
    mine = ray_sessions.make_storage(tmp_path / "home")
    name = mine.name.rpartition("-")[0]
    dead = name.replace(name.split("-")[3], "1")
    pid, started, machine = os.getppid(), ray_sessions.start_time(os.getppid()), name.split("-")[4]
    living = f".ray-muxfer-{pid:x}-{started:x}-{machine}-abc"
    for other in (f"{dead}-abc", f"{name[:-6]}ffffff-abc", ".ray-abc", living):
        (mine.parent / other / "trials").mkdir(parents=True)
    ray_sessions.remove_abandoned_storage(mine.parent)
    assert sorted(mine.parent.iterdir()) == sorted([mine, mine.parent / living])


def test_a_folder_whose_sockets_would_have_too_long_a_path_is_not_taken(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/" + 60 * "long")
    assert ray_sessions.parent_folder() == Path("/tmp")


def test_what_a_driver_leaves_that_is_killed_while_ray_starts_is_swept(short, tmp_path):
    code = "import sys; from pathlib import Path; from muxfer.executors.ray_tune import *; " + (
        "RayExecutor(Compute(device='cpu', slots=1), folder=Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONPATH": SEARCH_PATH}
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    end = time.monotonic() + 60
    while not list(short.glob("muxfer-*/r/session_*/sockets")):
        assert driver.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    ray_sessions.remove_abandoned()
    assert list(short.iterdir()) == []


def test_an_address_where_nothing_answers_is_refused_at_once():
    before = time.monotonic()
    with pytest.raises(NoResources, match=r"compute.address 127.0.0.1:1: nothing answers there"):
        Cluster("127.0.0.1:1").start()
    for address in ("ray://head:10001", "head", ":6379", "head:port"):
        with pytest.raises(BadInput, match="expected host:port"):
            Cluster(address).start()
    assert time.monotonic() - before < 5


@pytest.mark.parametrize(
    ("asked", "resources", "expected"),
    [
        (Compute(), {"CPU": 4.0}, ("cpu", 4)),
        (Compute(), {"CPU": 4.0, "GPU": 2.0}, ("cuda", 2)),
        (Compute(device="cpu"), {"CPU": 4.0, "GPU": 2.0}, ("cpu", 4)),
        (Compute(slots=1), {"CPU": 4.0}, ("cpu", 1)),
        (Compute(device="cuda"), {"CPU": 4.0}, "this cluster has no GPU; use compute.device=cpu"),
        (Compute(slots=64), {"CPU": 2.0}, "compute.slots 64: this cluster has 2 CPUs; use at most 2"),
        (Compute(slots=2), {"CPU": 8.0, "GPU": 1.0}, "compute.slots 2: this cluster has 1 GPU; use at most 1"),
        (Compute(), {}, "this cluster has no CPU"),
    ],
)
def test_what_no_node_has_is_refused(asked, resources, expected):
    if isinstance(expected, str):
        with pytest.raises(NoResources, match=expected):
            resolve(asked, resources)
    else:
        assert resolve(asked, resources) == expected


def test_stdout_is_given_back(capfd):
    with stdout_aside():
        os.write(1, b"noise\n")
    os.write(1, b"answer\n")
    assert capfd.readouterr() == ("answer\n", "")


def test_close_ends_all_of_it_with_a_trial_in_flight(executor, tmp_path):
    """Last in this file: it closes the session that the others share."""
    executor.submit([job(tmp_path, "long", steps=10_000, seconds=0.1)])
    reports: list[TrialUpdate] = []
    while not reports:
        reports = executor.updates(0.5)
    cluster = executor._cluster
    began = time.monotonic()
    executor.close()
    assert time.monotonic() - began < 12
    ours = [process.pid for process in cluster.processes.values()]
    assert len(ours) >= 2
    end = time.monotonic() + 3
    while any(alive(pid) for pid in [*ours, *pids(reports)]):
        assert time.monotonic() < end
    assert not cluster.folder.exists()
    executor.close()
