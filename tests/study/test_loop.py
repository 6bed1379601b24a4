"""A study that learns, with real training and a real ledger: killed between two rounds it ends where it would have."""

import shutil
import signal
import subprocess
import sys

import pytest
import torch

from muxfer.commands.dry_run import dry_run
from muxfer.executors.inline import InlineExecutor
from muxfer.study.resolve import resolve
from muxfer.study.rounds import proposing
from muxfer.study.search import is_finalist
from muxfer.study.session import drive
from tests.refusals import refused
from tests.small_sweeps import TINY
from tests.typed import environment

SEARCH = [*TINY, "search.base_lr={uniform:[-9,-3],log2:true}", "search.sampler=tpe", "search.num_settings=6"]
SEARCH += ["search.round_size=3", "search.finalists=1", "search.finalist_steps=16"]
SEARCH += ["training.steps=8", "training.ema_fraction=0.5", "evaluation.timesteps=2"]
KILLED = f"""
import os, signal
from tests.study.test_loop import run_trials
run_trials({SEARCH!r}, before_round_2=lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def run_trials(overrides, *, before_round_2=lambda: None, deadline=None):
    """What one call of the sweep does, but for Ray and the report: what it ran, and the ledger's records.

    On one thread, as in a slot: another number of threads adds in another order, and the last digits differ.
    """
    torch.set_num_threads(1)
    asked = resolve("lr-width", overrides)
    with drive(asked) as session:
        propose = proposing(asked.config, fingerprint=asked.fingerprint)

        def more(records):
            session.ledger.flush(60)
            before_round_2()
            return propose(records)

        before = session.records()
        ran = session.run(propose(before), before, start_executor=InlineExecutor, more=more, deadline=deadline)
        session.ledger.flush(60)
        return ran, {record.key: record for record in session.records()}


@pytest.fixture(scope="module")
def empty_ledger(tmp_path_factory):
    """A database whose study has no trial yet, to be copied: making one takes seconds."""
    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.chdir(folder)
        run_trials(SEARCH, deadline=0.0)
    return folder / "mlflow.db"


@pytest.fixture
def enter(tmp_path, monkeypatch, empty_ledger):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")

    def enter_folder(name):
        (tmp_path / name).mkdir()
        shutil.copy(empty_ledger, tmp_path / name)
        monkeypatch.chdir(tmp_path / name)

    return enter_folder


@pytest.mark.slow
def test_a_search_stopped_in_a_round_or_killed_between_two_ends_where_the_uninterrupted_one_does(enter):
    enter("whole")
    ran, records = run_trials(SEARCH, deadline=0.0)
    assert (ran.records, ran.unfinished, records) == ((), 3, {})
    ran, whole = run_trials(SEARCH)
    assert len(ran.records) == len(whole) == 7
    assert ran.unfinished == 0
    search = resolve("lr-width", SEARCH).config.search
    (last,) = [record for record in whole.values() if is_finalist(search, record)]
    assert last.step == 16
    searched = [record for record in whole.values() if record is not last]
    assert last.setting["base_lr"] == min(searched, key=lambda record: record.metric).setting["base_lr"]

    enter("killed")
    died = subprocess.run([sys.executable, "-c", KILLED], env=environment(), capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    listed = dry_run("lr-width", SEARCH).data
    assert [row["state"] for row in listed["trials"]] == ["done"] * 3 + ["run"] * 3
    assert listed["to_ask"] == 1
    ran, resumed = run_trials(SEARCH)
    assert len(ran.records) == 4
    assert {key: record.metric for key, record in resumed.items()} == {key: r.metric for key, r in whole.items()}

    ran, again = run_trials(SEARCH)
    assert (ran.records, ran.unfinished) == ((), 0)
    assert again.keys() == whole.keys()
    ran, longer = run_trials([*SEARCH, "search.num_settings=7", "search.finalists=0", "search.finalist_steps=null"])
    assert len(ran.records) == 1
    assert longer.keys() > whole.keys()


def test_a_round_with_a_failed_trial_is_the_last_one_and_is_tried_again(enter):
    """The data of the workers are not the study's: each trial of the round fails, and no second round is asked for."""
    enter("failed")
    asked = resolve("lr-width", SEARCH)
    propose = proposing(asked.config, fingerprint="another one")
    rounds = []
    with drive(asked) as session:
        ran = session.run(
            propose([]), start_executor=InlineExecutor, more=lambda records: rounds.append(records) or propose(records)
        )
        session.ledger.flush(60)
        assert propose(session.records()) == propose([])
    assert [record.outcome for record in ran.records] == ["failed"] * 3
    assert (ran.unfinished, rounds) == (0, [])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["search.finalist_steps=8"], "search.finalist_steps 8 is training.steps"),
        (["search.num_settings=20000"], "the search has 20001 trials"),
        (["search.warmup_steps={integer:[1,9]}"], "training.warmup_steps 9: expected 0 to training.steps 8"),
        (["search.repa_weight={uniform:[0.1,1]}"], "needs a model with a projector"),
    ],
)
def test_a_space_that_reaches_where_no_task_can_go_is_refused_before_anything_runs(enter, overrides, expected):
    enter("refused")
    asked = resolve("lr-width", [*SEARCH, *overrides])
    with refused(expected):
        proposing(asked.config, fingerprint=asked.fingerprint)
