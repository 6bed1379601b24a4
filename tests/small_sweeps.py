"""Sweeps that take a second: real trials in this process, or records of a known law, in a real ledger."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from muxfer.config.settings import with_setting
from muxfer.config.task import Task
from muxfer.data.source import load_dataset
from muxfer.executors.base import TrialJob
from muxfer.executors.inline import InlineExecutor
from muxfer.executors.worker import TrialRun
from muxfer.models.count import measure
from muxfer.study.resolve import Request, resolve
from muxfer.study.rounds import proposing
from muxfer.study.session import drive
from muxfer.study.trials import grid_trials, make_trial
from muxfer.trial import Point, Record, Trial
from tests.synthetic import settled

TINY = ["search.width=[16]", "search.base_lr=[2**-6]", "model.base_width=16", "model.depth=1", "model.patch=4"]
TINY += ["training.steps=4", "training.warmup_steps=1", "training.batch_size=8", "evaluation.timesteps=1"]
"""Overrides of lr-width: one trial of four steps."""
TARGET = ["target.width=32", "target.steps=30", "evaluation.sampling_steps=2", "evaluation.samples_per_class=1"]

counted = functools.lru_cache(maxsize=None)(measure)


def run_trials(asked: Request, executor: InlineExecutor | None = None, *, first: int | None = None) -> None:
    """One driver's work on a study: its first trials, or all, that are not settled yet."""
    with drive(asked) as session:
        trials = grid_trials(asked.config, fingerprint=asked.fingerprint)[:first]
        session.run(trials, session.records(), start_executor=lambda: executor or InlineExecutor())


def job_of(task: Task, folder: Path) -> TrialJob:
    fingerprint = load_dataset(task.data).fingerprint
    return TrialJob(trial=make_trial(task, {}, replicate=0, fingerprint=fingerprint), folder=str(folder), epoch=1)


def run_attempt(job: TrialJob, *, stop_at: int | None = None) -> tuple[TrialRun, Record | None, list[Point]]:
    """Train a trial to its record, or to a step where it is dropped. Returns the points that it reported too."""
    trial_run, points = TrialRun(job), []
    while True:
        update = trial_run.advance(0.0)
        points += update.points
        if update.record is not None or trial_run.trainer.step == stop_at:
            return trial_run, update.record, points


def record_study(
    name: str, overrides: Sequence[str], loss: Callable[[float, int], float]
) -> tuple[Request, Sequence[Trial]]:
    """Record every trial of an isoFLOP study with a loss by its FLOPs and parameters. Nothing is trained."""
    asked = resolve(name, overrides)
    trials = proposing(asked.config, fingerprint=asked.fingerprint)([])
    with drive(asked) as session:
        for trial in trials:
            params = counted(with_setting(asked.config.task, trial.setting).model).parameters
            metric, step = loss(trial.setting["flops"], params), trial.setting["steps"]
            more = {"replicate": trial.replicate, "epoch": session.lease.epoch, "num_parameters": params}
            session.ledger.begin(trial)
            session.ledger.settle(settled(trial.setting, metric, key=trial.key, step=step, **more))
    return asked, trials
