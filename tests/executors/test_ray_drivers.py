"""Drivers in processes of their own: a dead head is noticed, and no process outlives its driver."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from muxfer.executors.ray_tune import RayExecutor
from muxfer.trial import Outcome
from tests.executors.fake_trials import make_job
from tests.executors.run_jobs import is_alive, records_of, run_jobs, wait_until
from tests.typed import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.alone]

JOINING = ("stopped", "join")
CASES = ("gcs_server", "raylet", "driver", *JOINING)
START_SECONDS = 240
"""A driver starts in a few seconds, on a busy machine in minutes: six clusters start at once."""
needs_two_cpus = pytest.mark.skipif(os.cpu_count() == 1, reason="the cluster's one CPU is taken")


@dataclass
class Driver:
    process: subprocess.Popen[str]
    folder: Path

    def finish(self) -> dict:
        """Wait for the driver's end. Returns its facts and keeps its output as `stdout` and `stderr`."""
        self.stdout, self.stderr = self.process.communicate(timeout=START_SECONDS)
        return self._facts()

    def worker(self) -> int:
        """The process of its first trial, as soon as that is known."""
        wait_until(lambda: self.process.poll() is not None or "worker" in self._facts(), seconds=START_SECONDS)
        return self._facts()["worker"]

    def _facts(self) -> dict:
        file = self.folder / "facts.json"
        return json.loads(file.read_text()) if file.exists() else {}


@pytest.fixture(scope="module", autouse=True)
def drivers(executor: RayExecutor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Driver]]:
    """All drivers at once, because they mostly wait. Two of them join the cluster of `executor`."""
    started = {}
    for case in CASES:
        folder = tmp_path_factory.mktemp(case)
        address = [str(executor._cluster.address)] if case in JOINING else []
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.executors.driver", case, str(folder), *address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started[case] = Driver(process=process, folder=folder)
    yield started
    for driver in started.values():
        driver.process.kill()
        driver.process.wait()


def wait_for_the_end(facts: dict, *, seconds: float) -> None:
    pids = [*facts["ray"].values(), facts["worker"]]
    wait_until(lambda: not any(is_alive(pid) for pid in pids), seconds=seconds)


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_dead_head_is_noticed_and_leaves_nothing_behind(drivers, name):
    driver = drivers[name]
    facts = driver.finish()
    assert facts["exit_code"] == 3, driver.stderr
    assert f"Ray's {name} (pid {facts['ray'][name]}) died" in facts["error"]
    assert "run the same command again" in facts["error"]
    assert facts["seconds_to_notice"] < 5
    assert facts["seconds_to_close"] < 5
    wait_for_the_end(facts, seconds=10)
    assert facts["remaining"] == []
    assert driver.stdout == "the result\n"
    assert not Path(facts["session"]).exists()


def test_no_process_outlives_a_killed_driver(drivers):
    facts = drivers["driver"].finish()
    assert drivers["driver"].process.returncode == -signal.SIGKILL, drivers["driver"].stderr
    wait_for_the_end(facts, seconds=20)


@needs_two_cpus
def test_on_a_joined_cluster_the_trial_of_a_stopped_driver_ends_and_resumes_later(drivers):
    driver = drivers["stopped"]
    worker = driver.worker()
    wait_until(lambda: not is_alive(worker), seconds=30)
    driver.process.send_signal(signal.SIGCONT)
    facts = driver.finish()
    assert facts["outcome"] == "finished", driver.stderr
    assert 0 < facts["resumed_at"] < 40


@needs_two_cpus
def test_a_joined_cluster_keeps_running(drivers, executor, tmp_path):
    driver = drivers["join"]
    facts = driver.finish()
    assert facts["refused"].startswith("compute.slots 10000: this cluster has "), driver.stderr
    assert facts["outcome"] == "finished"
    assert driver.stdout == "the result\n"
    assert facts["ray"] == {}
    records = records_of(run_jobs(executor, [make_job(tmp_path, "later")]))
    assert records["later"].outcome is Outcome.FINISHED
