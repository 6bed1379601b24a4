"""Train one trial: build its model and its trainer from a job, train, and end in a record.

Only a process that trains imports this module, by its name (`attempt.TRIAL_RUN`), because it loads torch. It knows
neither Ray nor MLflow. An executor calls `advance` until an update is final.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from muxfer.analysis.loss_band import Breach, LossBand, Watch
from muxfer.config.parse import parse_task
from muxfer.config.task import Data, Task
from muxfer.data.dataset import Dataset
from muxfer.data.source import load_dataset
from muxfer.errors import BadInput
from muxfer.executors.base import TrialJob, TrialUpdate
from muxfer.models.build import adamw_groups, build_model, conditioning, repa_features
from muxfer.models.plugins import allow
from muxfer.mup import fold_factors
from muxfer.training import checkpoint
from muxfer.training.attempt_folders import new_attempt
from muxfer.training.loop import Trainer
from muxfer.trial import Outcome, Point, Record


class TrialRun:
    """One attempt at a trial, from its newest checkpoint. BadInput for other data, or a folder that can't be used."""

    def __init__(self, job: TrialJob) -> None:
        self.job = job
        allow(job.plugins.names, folder=job.plugins.folder)
        task = parse_task(job.trial.task)
        self.trainer = make_trainer(task, load_matching(task.data, job.trial.fingerprint), job)
        self.num_parameters = sum(parameter.numel() for parameter in self.trainer.model.parameters())
        newest = checkpoint.load_newest(job.folder, key=job.trial.key)
        if newest is not None:
            self.trainer.restore(newest.snapshot)
        self.resumed_at = self.trainer.step
        self.checkpoint: Path | None = None if newest is None else newest.path
        self._resumed_from = self.checkpoint
        self._attempt_folder = new_attempt(Path(job.folder), epoch=job.epoch)
        self._unsent = list(self.trainer.points)
        self._seconds_before = self.trainer.train_seconds
        self._watch = None if job.band is None else Watch(LossBand.from_dict(job.band))
        self._breach = self._find_breach(self._unsent)

    def advance(self, seconds: float) -> TrialUpdate:
        """Train for about this long, or to the end. The final update has the record, or why the trial was halted."""
        points = (*self._unsent, *self._train(seconds))
        self._unsent = []
        record = None
        if self._breach is not None:
            self._save_if_ahead()
        elif self.trainer.finished or self.trainer.diverged_at is not None:
            record = self._make_record()
        return TrialUpdate(
            key=self.job.trial.key,
            step=self.trainer.step,
            points=points,
            train_seconds=self.trainer.train_seconds - self._seconds_before,
            record=record,
            halted=None if self._breach is None else _halt_message(self._breach, self.checkpoint),
        )

    def _train(self, seconds: float) -> list[Point]:
        """Train for about this long. A trial under a band stops at the exact point that makes it a breach."""
        if self._watch is None:
            return self.trainer.advance(seconds, self._save)
        points: list[Point] = []
        stop_at = time.perf_counter() + seconds
        while self._breach is None and not self.trainer.finished and self.trainer.diverged_at is None:
            new = self.trainer.advance(0.0, self._save)
            points += new
            self._breach = None if self.trainer.finished else self._find_breach(new)
            if time.perf_counter() >= stop_at:
                break
        return points

    def _find_breach(self, points: Sequence[Point]) -> Breach | None:
        breach = None
        for point in points:
            if self._watch is not None and point.name == "train_loss":
                breach = breach or self._watch.take(point.step, point.value)
        return breach

    def _make_record(self) -> Record:
        """The record of a trial that finished or diverged. Validation may be the step that diverges."""
        metric = self.trainer.validate() if self.trainer.finished else None
        diverged = self.trainer.diverged_at is not None
        return self.job.record(
            Outcome.DIVERGED if diverged else Outcome.FINISHED,
            metric=None if diverged else metric,
            step=self.trainer.step,
            resumed_at=self.resumed_at,
            train_seconds=self.trainer.train_seconds,
            num_parameters=self.num_parameters,
            checkpoint=None if self.checkpoint is None else str(self.checkpoint),
        )

    def _save_if_ahead(self) -> None:
        """Save a checkpoint unless the trial already has one of this step."""
        if checkpoint.resume_step(self.job.folder, key=self.job.trial.key) < self.trainer.step:
            self._save(self.trainer)

    def _save(self, trainer: Trainer) -> None:
        self.checkpoint = checkpoint.save(self._attempt_folder, trainer.state(), key=self.job.trial.key)
        checkpoint.prune(self._attempt_folder, resumed_from=self._resumed_from)


def load_matching(data: Data, fingerprint: str) -> Dataset:
    """Load the data of a trial. Raises BadInput when their fingerprint is not the study's."""
    loaded = load_dataset(data)
    if loaded.fingerprint != fingerprint:
        raise BadInput(
            f"the data read here have fingerprint {loaded.fingerprint}, the study's have {fingerprint}: they changed"
            " since the sweep began, or this host has others at the same path; restore the data of the study"
        )
    return loaded


def make_trainer(task: Task, data: Dataset, job: TrialJob) -> Trainer:
    """Build and parametrize the task's model, and a trainer of it at step 0 on the job's device."""
    model, plan = build_model(task, replicate=job.trial.replicate)
    return Trainer(
        model,
        adamw_groups(model, plan, task.optimizer),
        objective=task.objective,
        data=data,
        training=task.training,
        evaluation=task.evaluation,
        replicate=job.trial.replicate,
        fold=fold_factors(plan),
        predict=conditioning(task.model, data.captions).to(job.device),
        features_NTE=repa_features(task, data),
        grad_clip=task.optimizer.grad_clip,
        device=job.device,
    )


def _halt_message(breach: Breach, path: Path | None) -> str:
    above = breach.loss / breach.predicted - 1
    return (
        f"the target was halted at step {breach.step}: its training loss is {breach.loss:.4g}, {100 * above:.0f} %"
        f" above the {breach.predicted:.4g} that the proxies predict, and above their limit {breach.limit:.4g} since"
        f" step {breach.since}; lower the rate with target.base_lr=RATE, or go on from the checkpoint {path} with"
        " target.guard=off"
    )
