"""What every Executor keeps: one record a job, in the order submitted, and a failure stays with its trial."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from muxfer.config.study import Compute
from muxfer.executors.base import Executor, TrialJob, TrialUpdate
from muxfer.executors.inline import InlineExecutor
from muxfer.executors.ray_tune import RayExecutor
from muxfer.trial import Outcome

HELPERS = str(Path(__file__).parents[1] / "executors")
sys.path.insert(0, HELPERS)
from fake_trials import WORKER, job  # noqa: E402


@pytest.fixture(scope="module", params=["inline", "ray"])
def executor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """One slot, so that the order shows; one session of Ray for all."""
    if request.param == "inline":
        yield InlineExecutor(worker=WORKER)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", HELPERS + os.pathsep + str(Path(__file__).parents[2]))
        compute = Compute(device="cpu", slots=1, max_failures=0)
        executor = RayExecutor(compute, folder=tmp_path_factory.mktemp("ray"), worker=WORKER)
    yield executor
    executor.close()


def run(executor: Executor, jobs: list[TrialJob], *, seconds: float = 60.0) -> list[TrialUpdate]:
    """Every report until each job has a record."""
    executor.submit(jobs)
    came_in: list[TrialUpdate] = []
    open_keys = {job.trial.key for job in jobs}
    end = time.monotonic() + seconds
    while open_keys:
        assert time.monotonic() < end, f"no record for {open_keys}"
        for report in executor.updates(0.1):
            came_in.append(report)
            if report.record is not None:
                open_keys.remove(report.key)
    return came_in


def test_each_job_ends_in_one_record_that_survived_the_way(executor, tmp_path):
    reports = run(executor, [job(tmp_path, "a", steps=3), job(tmp_path, "b", steps=1)])
    records = {report.key: report.record for report in reports if report.record}
    assert [report.step for report in reports if report.key == "a"] == [1, 2, 3]
    assert records["a"].outcome is Outcome.FINISHED
    assert (records["a"].metric, records["a"].replicate, records["a"].epoch) == (2.0**-7, 3, 7)
    assert records["a"].setting == job(tmp_path, "a", steps=3).trial.setting
    assert reports[0].points[0].step == 1
    assert executor.updates(0.05) == []


def test_jobs_begin_in_the_order_submitted_on_the_executors_device(executor, tmp_path):
    keys = [f"k{number}" for number in (3, 1, 4, 0, 5, 9, 2, 6)]
    reports = run(executor, [job(tmp_path, key, steps=2) for key in keys])
    assert list(dict.fromkeys(report.key for report in reports)) == keys
    assert (tmp_path / "k3" / "attempts").read_text().endswith("cpu\n")


def test_a_trial_that_refuses_fails_with_its_own_line_and_the_others_go_on(executor, tmp_path):
    reports = run(executor, [job(tmp_path, "bad", does="refuse"), job(tmp_path, "good")])
    bad, good = (next(r.record for r in reports if r.record and r.key == key) for key in ("bad", "good"))
    assert (bad.outcome, bad.metric, bad.epoch) == (Outcome.FAILED, None, 7)
    assert bad.error == "model.width 100 is not divisible by model.head_dim 64; use 128"
    assert good.outcome is Outcome.FINISHED


def test_a_bug_in_a_trial_fails_it_in_one_line_that_says_where(executor, tmp_path):
    reports = run(executor, [job(tmp_path, "bug", does="break"), job(tmp_path, "good")])
    error = next(r.record.error for r in reports if r.record and r.key == "bug")
    assert error.startswith("ZeroDivisionError: division by zero (")
    assert "fake_trials.py:" in error
    assert "\n" not in error
    assert reports[-1].record.outcome is Outcome.FINISHED
    assert len((tmp_path / "bug" / "attempts").read_text().splitlines()) == 1


def test_jobs_may_be_submitted_after_all_others_ended(executor, tmp_path):
    run(executor, [job(tmp_path, "round-1")])
    before = time.monotonic()
    assert executor.updates(0.3) == []
    assert time.monotonic() - before < 5
    reports = run(executor, [job(tmp_path, "round-2")])
    assert {report.key for report in reports} == {"round-2"}
