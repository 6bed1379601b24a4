"""Run one trial: model, parametrization and training joined, from a job to a record.

A worker knows neither Ray nor MLflow. Whoever executes it calls `advance` until a report carries a record.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from muxfer.analysis.loss_band import Breach, LossBand, Watch
from muxfer.config.parse import parse_task
from muxfer.errors import BadInput
from muxfer.executors.base import TrialJob, TrialUpdate
from muxfer.models.build import build_model, conditioning, repa_features
from muxfer.models.plugins import allow
from muxfer.training.attempt_folders import new_attempt
from muxfer.training.checkpoint import resume_step
from muxfer.trial import Outcome, Point, Record

if TYPE_CHECKING:
    from muxfer.training.loop import Trainer


class TrialRun:
    """One attempt at one trial, going on from the newest valid checkpoint under the job's folder."""

    def __init__(self, job: TrialJob) -> None:
        from muxfer.data.source import load_dataset
        from muxfer.mup import fold_factors, param_groups
        from muxfer.training import checkpoint
        from muxfer.training.loop import Trainer

        self.job = job
        allow(job.plugins.names, folder=job.plugins.folder)
        task = parse_task(job.trial.task)
        data = load_dataset(task.data)
        if data.fingerprint != job.trial.fingerprint:
            raise BadInput(
                f"the data read here have fingerprint {data.fingerprint}, the study's have {job.trial.fingerprint}:"
                " they changed since the sweep began, or this host has others at the same path"
            )
        model, plan = build_model(task, replicate=job.trial.replicate)
        optimizer = task.optimizer
        groups = param_groups(
            model,
            plan,
            base_lr=optimizer.base_lr,
            weight_decay=optimizer.weight_decay,
            eps=optimizer.eps,
            betas=(optimizer.beta1, optimizer.beta2),
        )
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.trainer = Trainer(
            model,
            groups,
            objective=task.objective,
            data=data,
            training=task.training,
            evaluation=task.evaluation,
            replicate=job.trial.replicate,
            fold=fold_factors(plan),
            predict=conditioning(task.model, data.captions).to(job.device),
            features_NTE=repa_features(task, data),
            grad_clip=optimizer.grad_clip,
            device=job.device,
        )
        found = checkpoint.load_newest(job.folder, key=job.trial.key)
        self.resumed_at = 0 if found is None else found.snapshot.step
        if found is not None:
            self.trainer.restore(found.snapshot)
        self.checkpoint: Path | None = None if found is None else found.path
        self._resumed_from = self.checkpoint
        self._attempt = new_attempt(Path(job.folder), epoch=job.epoch)
        self._unsent = list(self.trainer.points)
        self._seconds_before = self.trainer.train_seconds
        self._watch = None if job.band is None else Watch(LossBand.from_dict(job.band))
        self._breach = self._look(self._unsent)

    def advance(self, seconds: float) -> TrialUpdate:
        """Train for about this long, or to the end; the last report carries the record, or says why it was halted.

        A halted trial stays where it is: asked again it says the same.
        """
        trainer = self.trainer
        points = (*self._unsent, *self._train(seconds))
        self._unsent = []
        record = None
        if self._breach is not None:
            if resume_step(Path(self.job.folder), key=self.job.trial.key) < trainer.step:
                self._save(trainer)
        elif trainer.finished or trainer.diverged_at is not None:
            metric = trainer.validate() if trainer.finished else None
            diverged = trainer.diverged_at is not None
            record = Record(
                key=self.job.trial.key,
                setting=self.job.trial.setting,
                replicate=self.job.trial.replicate,
                outcome=Outcome.DIVERGED if diverged else Outcome.FINISHED,
                metric=None if diverged else metric,
                step=trainer.step,
                resumed_at=self.resumed_at,
                train_seconds=trainer.train_seconds,
                epoch=self.job.epoch,
                kind=self.job.trial.kind,
                num_parameters=self.num_parameters,
                checkpoint=None if self.checkpoint is None else str(self.checkpoint),
            )
        return TrialUpdate(
            key=self.job.trial.key,
            step=trainer.step,
            points=tuple(points),
            train_seconds=trainer.train_seconds - self._seconds_before,
            record=record,
            halted=None if self._breach is None else _halted(self._breach, self.checkpoint),
        )

    def _train(self, seconds: float) -> list[Point]:
        """Train for about this long; a watched trial stops at the very report that makes it a breach."""
        if self._watch is None:
            return self.trainer.advance(seconds, self._save)
        points: list[Point] = []
        stop_at = time.perf_counter() + seconds
        while self._breach is None and not self.trainer.finished and self.trainer.diverged_at is None:
            came_in = self.trainer.advance(0.0, self._save)
            points += came_in
            self._breach = None if self.trainer.finished else self._look(came_in)
            if time.perf_counter() >= stop_at:
                break
        return points

    def _look(self, points: Sequence[Point]) -> Breach | None:
        found = None
        for point in points:
            if self._watch is not None and point.name == "train_loss":
                found = found or self._watch.take(point.step, point.value)
        return found

    def _save(self, trainer: "Trainer") -> None:
        from muxfer.training import checkpoint

        self.checkpoint = checkpoint.save(self._attempt, trainer.state(), key=self.job.trial.key)
        checkpoint.prune(self._attempt, resumed_from=self._resumed_from)


def _halted(breach: Breach, checkpoint: Path | None) -> str:
    above = breach.loss / breach.predicted - 1
    return (
        f"the target was halted at step {breach.step}: its training loss is {breach.loss:.4g}, {100 * above:.0f} %"
        f" above the {breach.predicted:.4g} that the proxies predict, and above their limit {breach.limit:.4g} since"
        f" step {breach.since}; lower the rate with target.base_lr=RATE, or go on from the checkpoint {checkpoint} with"
        " target.guard=off"
    )
