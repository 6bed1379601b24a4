"""Every Executor gives one record a job, keeps the order of submission, and confines a failure to its trial."""

import time
from collections.abc import Iterator

import pytest

from muxfer.config.study import Compute
from muxfer.executors.base import Executor
from muxfer.executors.inline import InlineExecutor
from muxfer.executors.ray_tune import RayExecutor
from muxfer.trial import Outcome
from tests.executors.fake_trials import WORKER, make_job
from tests.executors.run_jobs import records_of, run_jobs
from tests.typed import ROOT


@pytest.fixture(scope="module", params=["inline", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.alone])])
def executor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """An executor with one slot, so that the order is visible. All tests share one session of Ray."""
    if request.param == "inline":
        yield InlineExecutor(worker=WORKER)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        compute = Compute(device="cpu", slots=1, max_failures=0)
        executor = RayExecutor(compute, folder=tmp_path_factory.mktemp("ray"), worker=WORKER)
    yield executor
    executor.close()


def test_each_job_ends_in_one_record_with_all_its_fields(executor, tmp_path):
    updates = run_jobs(executor, [make_job(tmp_path, "a", steps=3), make_job(tmp_path, "b", steps=1)])
    record = records_of(updates)["a"]
    assert [update.step for update in updates if update.key == "a"] == [1, 2, 3]
    assert record.outcome is Outcome.FINISHED
    assert (record.metric, record.replicate, record.epoch) == (2.0**-7, 3, 7)
    assert record.setting == make_job(tmp_path, "a", steps=3).trial.setting
    assert updates[0].points[0].step == 1
    assert executor.updates(0.05) == []


def test_jobs_start_in_the_order_submitted_on_the_executors_device(executor, tmp_path):
    keys = [f"k{number}" for number in (3, 1, 4, 0, 5, 9, 2, 6)]
    updates = run_jobs(executor, [make_job(tmp_path, key, steps=2) for key in keys])
    assert list(dict.fromkeys(update.key for update in updates)) == keys
    assert (tmp_path / "k3" / "attempts").read_text().endswith("cpu\n")


def test_a_refused_trial_fails_with_its_message_and_the_others_finish(executor, tmp_path):
    records = records_of(run_jobs(executor, [make_job(tmp_path, "bad", does="refuse"), make_job(tmp_path, "good")]))
    bad = records["bad"]
    assert (bad.outcome, bad.metric, bad.epoch) == (Outcome.FAILED, None, 7)
    assert bad.error == "model.width 100 is not divisible by model.head_dim 64; use 128"
    assert records["good"].outcome is Outcome.FINISHED


def test_an_unexpected_exception_fails_its_trial_in_one_line_with_its_place(executor, tmp_path):
    updates = run_jobs(executor, [make_job(tmp_path, "bug", does="break"), make_job(tmp_path, "good")])
    error = records_of(updates)["bug"].error
    assert error.startswith("ZeroDivisionError: division by zero (")
    assert "fake_trials.py:" in error
    assert "\n" not in error
    assert updates[-1].record.outcome is Outcome.FINISHED
    assert len((tmp_path / "bug" / "attempts").read_text().splitlines()) == 1


def test_jobs_may_be_submitted_after_all_others_ended(executor, tmp_path):
    run_jobs(executor, [make_job(tmp_path, "round-1")])
    began = time.monotonic()
    assert executor.updates(0.3) == []
    assert time.monotonic() - began < 5
    updates = run_jobs(executor, [make_job(tmp_path, "round-2")])
    assert {update.key for update in updates} == {"round-2"}
