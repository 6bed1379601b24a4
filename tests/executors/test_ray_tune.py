"""Trials on Ray Tune: processes are reused, a killed trial is resumed, and `close` ends every process."""

import os
import signal
import subprocess
import sys
import time

import pytest

from muxfer.config.study import Compute
from muxfer.errors import NoResources
from muxfer.executors.ray_tune import resolve, stdout_aside
from muxfer.trial import Outcome
from tests.executors.fake_trials import make_job
from tests.executors.run_jobs import collect_updates, is_alive, pids_of, records_of, run_jobs, wait_until
from tests.typed import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def test_one_process_with_one_thread_runs_trial_after_trial(executor, tmp_path):
    updates = run_jobs(executor, [make_job(tmp_path, f"t{number}") for number in range(6)])
    assert len(pids_of(updates)) == 1
    assert {point.value for update in updates for point in update.points if point.name == "threads"} == {1.0}


def test_a_killed_trial_resumes_from_its_checkpoint_before_the_next(executor, tmp_path):
    executor.submit([make_job(tmp_path, "victim", steps=40, seconds=0.1), make_job(tmp_path, "next")])
    updates = collect_updates(executor, until=lambda updates: any(update.step >= 5 for update in updates))
    os.kill(pids_of(updates, "victim")[0], signal.SIGKILL)
    updates += collect_updates(executor, until=lambda later: "next" in records_of(later))
    records = records_of(updates)
    assert list(records) == ["victim", "next"]
    assert records["victim"].outcome is records["next"].outcome is Outcome.FINISHED
    assert 5 <= records["victim"].resumed_at < 40
    assert len(pids_of(updates, "victim")) == 2


def test_a_trial_that_dies_too_often_fails_and_the_others_finish(executor, tmp_path):
    jobs = [
        make_job(tmp_path, "mortal", does="die", steps=9, deaths=99),
        make_job(tmp_path, "good", does="die", steps=9, deaths=2),
    ]
    records = records_of(run_jobs(executor, jobs))
    assert records["mortal"].outcome is Outcome.FAILED
    assert records["mortal"].error.startswith("its process died 3 times")
    assert "\n" not in records["mortal"].error
    assert len((tmp_path / "mortal" / "attempts").read_text().splitlines()) == 3
    assert records["good"].outcome is Outcome.FINISHED


def test_a_process_is_not_reused_after_an_unexpected_exception(executor, tmp_path):
    before = run_jobs(executor, [make_job(tmp_path, "before")])
    failed = run_jobs(
        executor, [make_job(tmp_path, "broken", does="break"), make_job(tmp_path, "refused", does="refuse")]
    )
    after = run_jobs(executor, [make_job(tmp_path, "after")])
    assert {record.outcome for record in records_of(failed).values()} == {Outcome.FAILED}
    assert pids_of(before) != pids_of(after)
    assert pids_of(failed) == []


ORPHAN = """
import time
from muxfer.executors.ray_plugins import Orphan
orphan = Orphan()
orphan.wait_for_driver(0.5)
orphan.stop_waiting()
time.sleep(1.5)
print("between two trials", flush=True)
orphan.wait_for_driver(0.5)
time.sleep(60)
"""


def test_an_orphan_ends_itself_during_a_trial_and_waits_between_trials():
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 86, done.stderr
    assert done.stdout == "between two trials\n"


@pytest.mark.parametrize(
    ("compute", "resources", "expected"),
    [
        (Compute(), {"CPU": 4.0}, ("cpu", 4)),
        (Compute(), {"CPU": 4.0, "GPU": 2.0}, ("cuda", 2)),
        (Compute(device="cpu"), {"CPU": 4.0, "GPU": 2.0}, ("cpu", 4)),
        (Compute(slots=1), {"CPU": 4.0}, ("cpu", 1)),
    ],
)
def test_device_and_slots_follow_the_clusters_resources(compute, resources, expected):
    assert resolve(compute, resources) == expected


@pytest.mark.parametrize(
    ("compute", "resources", "message"),
    [
        (Compute(device="cuda"), {"CPU": 4.0}, "this cluster has no GPU; use compute.device=cpu"),
        (Compute(slots=64), {"CPU": 2.0}, "compute.slots 64: this cluster has 2 CPUs; use at most 2"),
        (Compute(slots=2), {"CPU": 8.0, "GPU": 1.0}, "compute.slots 2: this cluster has 1 GPU; use at most 1"),
        (Compute(), {}, "this cluster has no CPU"),
    ],
)
def test_resources_that_the_cluster_lacks_are_refused(compute, resources, message):
    with pytest.raises(NoResources, match=message):
        resolve(compute, resources)


def test_stdout_is_restored_after_stdout_aside(capfd):
    with stdout_aside():
        os.write(1, b"noise\n")
    os.write(1, b"result\n")
    assert capfd.readouterr() == ("result\n", "")


def test_close_ends_every_process_with_a_trial_in_flight(executor, tmp_path):
    """The last test of this file: it closes the session that the tests share."""
    executor.submit([make_job(tmp_path, "long", steps=10_000, seconds=0.1)])
    updates = collect_updates(executor, until=bool)
    cluster = executor._cluster
    began = time.monotonic()
    executor.close()
    assert time.monotonic() - began < 12
    started = [process.pid for process in cluster.processes.values()]
    assert len(started) >= 2
    wait_until(lambda: not any(is_alive(pid) for pid in [*started, *pids_of(updates)]), seconds=3)
    assert not cluster.folder.exists()
    executor.close()
