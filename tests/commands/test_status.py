"""What `muxfer status` says of a sweep at work, cut off, failed and done, and that `retry` runs the failed alone."""

import json
import os
import signal
import sqlite3
from contextlib import closing

import pytest

from tests.small_sweeps import TINY
from tests.typed import answer, muxfer, start, wait_for

SMALL = [*TINY, "search.base_lr=[2**-7,2**-6]", "training.checkpoint_every=20", "compute.slots=1"]
SHORT = [*SMALL, "training.steps=20"]
LONG = [*SMALL, "training.steps=1000000"]


@pytest.mark.slow
def test_a_sweep_at_work_shows_its_driver_and_its_steps_and_one_that_was_cut_off_says_so(tmp_path):
    sweep = start(tmp_path, "sweep", "lr-width", *LONG)
    try:
        wait_for(lambda: list(tmp_path.glob("muxfer/*/trials/*/attempt-*/step-*")), sweep)
        (at_work,) = answer(tmp_path, "status", "lr-width")["studies"]
        assert at_work["state"] == "running"
        assert at_work["driver"]["pid"] == sweep.pid
        assert at_work["states"] == {"running": 1, "to run": 1}
        (trial,) = at_work["underway"]
        assert (trial["state"], trial["steps"]) == ("running", 1_000_000)
        clean = muxfer(tmp_path, "clean", "lr-width", "--yes")
        assert "is being driven: driver pid" in clean.stderr
        assert clean.returncode == 75
        watching = start(tmp_path, "status", "lr-width", "--watch")
        assert "running" in watching.stderr.readline()
    finally:
        os.killpg(sweep.pid, signal.SIGKILL)
        sweep.communicate()
    out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0
    assert "interrupted" in out
    assert "type the same command to go on" in out
    overrides = ["optimizer.parametrization=mup", "training.steps=1000000"]
    (cut_off,) = answer(tmp_path, "status", "lr-width", *overrides)["studies"]
    assert cut_off["states"] == {"interrupted": 1, "to run": 1}
    assert cut_off["underway"][0]["step"] > 0
    (listed,) = answer(tmp_path, "status")["studies"]
    assert (listed["label"], listed["state"]) == (cut_off["label"], "interrupted")


@pytest.mark.slow
def test_a_driver_on_another_host_is_running_until_its_heart_has_not_beaten_for_long(tmp_path):
    answer(tmp_path, "sweep", "lr-width", *SHORT)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store, store:
        (text,) = store.execute("select value from params where key = 'lease.e1'").fetchone()
        away = json.dumps(json.loads(text) | {"host": "node7", "boot": "another"})
        store.execute("update params set value = ? where key = 'lease.e1'", [away])
        store.execute("delete from tags where key like 'lease.released.e1.%'")
    (listed,) = answer(tmp_path, "status")["studies"]
    assert (listed["state"], listed["driver"]["host"]) == ("running", "node7")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store, store:
        store.execute("update tags set value = '3 2026-01-02T03:04:05+00:00' where key = 'lease.beat.e1'")
    watched = muxfer(tmp_path, "status", "lr-width", "--watch").stdout
    for words in ("silent, pid", "on node7", "2026-01-02"):
        assert words in watched


@pytest.mark.slow
def test_a_trial_that_failed_is_named_with_its_error_and_retried_alone(tmp_path):
    listed = answer(tmp_path, "sweep", "lr-width", *SHORT, "--dry-run")
    key = listed["trials"][0]["key"]
    in_the_way = tmp_path / "muxfer" / f"lr-width-{listed['study'][:8]}" / "trials" / key
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the trial's folder should be")
    swept = answer(tmp_path, "sweep", "lr-width", *SHORT, code=3)
    assert [trial["outcome"] for trial in swept["trials"]] == ["failed", "finished"]
    assert ["File exists" in trial.get("error", "") for trial in swept["trials"]] == [True, False]
    (before,) = answer(tmp_path, "status", "lr-width")["studies"]
    assert (before["state"], before["states"]) == ("at rest", {"finished": 1, "failed": 1})
    assert before["failed"][0]["key"] == key
    assert "File exists" in before["failed"][0]["error"]
    in_the_way.unlink()
    again = answer(tmp_path, "retry", "lr-width", "--failed")
    assert (again["retried"], again["failed"]) == (1, 0)
    assert again["trials"] == [{"key": key, "outcome": "finished"}]
    assert answer(tmp_path, "retry", "lr-width", "--failed")["retried"] == 0
    (after,) = answer(tmp_path, "status", "lr-width")["studies"]
    assert after["states"] == {"finished": 2}
    trials = answer(tmp_path, "sweep", "lr-width", *SHORT)["trials"]
    assert after["lowest"]["metric"] == min(trial["metric"] for trial in trials)


@pytest.mark.slow
def test_a_sweep_whose_log_cannot_be_written_trains_on(tmp_path):
    with open("/dev/full", "w") as full:
        done = muxfer(tmp_path, "sweep", "lr-width", *SHORT, "--json", stderr=full)
    assert done.returncode == 0
    assert json.loads(done.stdout)["ran"] == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["status"], "no ledger at sqlite:///mlflow.db"),
        (["status", "lr-widht"], "unknown sweep 'lr-widht'"),
        (["retry", "lr-width", "--failed"], "no ledger at sqlite:///mlflow.db"),
        (["retry", "lr-width"], "--failed"),
    ],
)
def test_where_nothing_is_recorded_it_says_so_and_makes_nothing(tmp_path, arguments, expected):
    done = muxfer(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert not list(tmp_path.iterdir())
