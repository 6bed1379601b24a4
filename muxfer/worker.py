"""Run one trial: model, parametrization and training joined, from a job to a record.

A worker knows neither Ray nor MLflow. Whoever executes it calls `advance` until a report carries a record.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from muxfer.analysis.loss_band import Breach, LossBand, Watch
from muxfer.errors import BadInput
from muxfer.models import Declared, Mmdit, Model
from muxfer.parse import parse_task
from muxfer.plugins import Plugins, allow
from muxfer.task import Task
from muxfer.training.folders import attempts, numbers, refuse_links
from muxfer.trial import Outcome, Point, Record, Trial

if TYPE_CHECKING:
    import torch
    from torch import nn

    from muxfer.mup import Plan
    from muxfer.training.conditioning import Conditioning
    from muxfer.training.data import Dataset
    from muxfer.training.loop import Trainer


EXAMPLE_CAPTIONS = ("a scan of the digit seven",)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A trial to run, where: `folder` is the trial's own, each attempt makes one below it; `epoch` is the lease's.

    `band` is a LossBand as plain data: a trial whose loss leaves it is halted. None: nobody watches.
    """

    trial: Trial
    folder: str
    epoch: int
    device: str = "cpu"
    plugins: Plugins = field(default_factory=Plugins)
    band: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a worker says from time to time: new points of its curves and, the last time, the record.

    The first report after a resume repeats the points of the checkpoint: writing a point twice changes nothing.
    `train_seconds` are this attempt's. `halted` says why a watched trial stopped without a record: it can go on from
    the checkpoint that it left.
    """

    key: str
    step: int
    points: tuple[Point, ...] = ()
    train_seconds: float = 0.0
    record: Record | None = None
    halted: str | None = None

    @property
    def last(self) -> bool:
        """Whether this attempt has nothing more to say."""
        return self.record is not None or self.halted is not None


class Executor(Protocol):
    """Runs jobs on slots, in the order submitted. Raises NoResources when no node can ever hold one."""

    slots: int

    def submit(self, jobs: Sequence[Job]) -> None: ...

    def reports(self, timeout_seconds: float) -> list[Report]:
        """What came in; empty after the timeout. A trial that failed for good ends in a record with its error.

        Raises TrialsFailed when the machinery itself died (a node, the cluster's head).
        """

    def close(self) -> None: ...

    def kill(self) -> None:
        """Stop at once, whatever runs: trials stay resumable from their checkpoints."""


def mup_plan(task: Task) -> "Plan":
    """The scales of every parameter of the task's model, relative to its base sizes. Builds on the meta device."""
    from muxfer.families import family_of
    from muxfer.mup import make_plan

    family = family_of(task.model)
    return make_plan(
        family.build,
        width=task.model.width,
        base_width=task.model.base_width,
        parametrization=task.optimizer.parametrization,
        output_multiplier=task.optimizer.output_multiplier,
        readout=family.readout,
        declared=family.declared,
        depth=task.model.depth,
        base_depth=task.model.base_depth or task.model.depth,
        branches=family.branches,
        branch_ends=family.branch_ends,
    )


def build_model(task: Task, *, replicate: int, plan: "Plan | None" = None) -> tuple["nn.Module", "Plan"]:
    """A freshly initialized and parametrized model; equal tasks and replicates give bit-identical weights.

    `plan` None: the task's own.
    """
    import torch

    from muxfer.families import family_of
    from muxfer.mup import parametrize
    from muxfer.training.data import generator_of

    plan = mup_plan(task) if plan is None else plan
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_of(task.training.seed, replicate, "init").initial_seed())
        model = family_of(task.model).build(task.model.width)
    parametrize(model, plan)
    return model, plan


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Parameters of a model, and multiply-accumulates of one sample's forward pass, attention included."""

    parameters: int
    macs: int


def check_forward(model: Model) -> None:
    """Refuse a class of others whose forward fails, returns no image, or knows the width; of ours, tests hold it.

    On the meta device, at the base width and twice that.
    """
    import torch

    from muxfer.families import family_of
    from muxfer.mup.forward import refuse_changing_forward

    if not isinstance(model, Declared):
        return

    def prepare(width: int) -> Callable[[], None]:
        with torch.device("meta"):
            built = family_of(model).build(width).eval()
            image = torch.empty(1, model.channels, model.image_size, model.image_size)
            given = (image, torch.empty(1), torch.zeros(1, dtype=torch.long))
        predict = conditioning(model, EXAMPLE_CAPTIONS).to("meta")
        return partial(_check_output, model, partial(predict, built, *given), width)

    refuse_changing_forward(prepare, width=model.base_width, other_width=2 * model.base_width)


def _check_output(model: Declared, forward: Callable[[], Any], width: int) -> None:
    import torch

    try:
        with torch.device("meta"):
            out = forward()
    except BadInput:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise BadInput(
            f"{model.target}: its forward failed at width {width} ({reason[:200]}); see model.inputs, model.sizes and"
            " model.arguments"
        ) from error
    expected = [1, (2 if model.learn_sigma else 1) * model.channels, model.image_size, model.image_size]
    given = list(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
    if given != expected:
        raise BadInput(
            f"{model.target}: its forward returns {given} for one image, expected {expected}; see model.output,"
            " model.patch and model.learn_sigma"
        )


def measure(model: Model, captions: Sequence[str] = EXAMPLE_CAPTIONS) -> ModelCost:
    """Count on the meta device: no memory is taken, whatever the size. Text is as long as the longest caption."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from muxfer.families import family_of

    with torch.device("meta"), torch.no_grad():
        built = family_of(model).build(model.width).eval()
        predict = conditioning(model, captions)
        image = torch.empty(1, model.channels, model.image_size, model.image_size)
        with FlopCounterMode(display=False) as counter:
            predict.to("meta")(built, image, torch.empty(1), torch.zeros(1, dtype=torch.long))
    parameters = sum(parameter.numel() for parameter in built.parameters())
    return ModelCost(parameters=parameters, macs=counter.get_total_flops() // 2)


def conditioning(model: Model, captions: Sequence[str]) -> "Conditioning":
    """How this model is called; `captions` are one a class, needed where it reads text."""
    from muxfer.families import family_of
    from muxfer.training.captions import embed_captions
    from muxfer.training.conditioning import Conditioning

    family = family_of(model)
    text_dim, pooled_dim = getattr(model, "text_dim", None), getattr(model, "pooled_dim", None)
    embedded = None
    if text_dim is not None or pooled_dim is not None:
        embedded = embed_captions(captions, text_dim=text_dim or 1, pooled_dim=pooled_dim or 1)
    return Conditioning(family.inputs, patch=model.patch, captions=embedded, output=family.output)


def repa_features(task: Task, data: "Dataset") -> "torch.Tensor | None":
    """Features of the training pictures that REPA aligns with; None where the task has no such loss."""
    if not task.objective.repa_weight:
        return None
    from muxfer.training.features import frozen_features

    assert isinstance(task.model, Mmdit)
    assert task.model.repa_dim is not None
    return frozen_features(data.train.images(slice(None)), patch=task.model.patch, dim=task.model.repa_dim)


class TrialRun:
    """One attempt at one trial, going on from the newest valid checkpoint under the job's folder."""

    def __init__(self, job: Job) -> None:
        from muxfer.mup import fold_factors, param_groups
        from muxfer.training import checkpoint
        from muxfer.training.data import load
        from muxfer.training.loop import Trainer

        self.job = job
        allow(job.plugins.names, folder=job.plugins.folder)
        task = parse_task(job.trial.task)
        data = load(task.data)
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

    def advance(self, seconds: float) -> Report:
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
        return Report(
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


def new_attempt(folder: Path, *, epoch: int) -> Path:
    """A folder of this attempt's own below the trial's, the last by number: two that run at once never share one.

    BadInput where the disk refuses, or where the trial's folder, or the study's of all trials, is a link.
    """
    refuse_links(folder.parent, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = [numbers(attempt) for attempt in attempts(folder)]
        last = max((number for its_epoch, number in found if its_epoch == epoch), default=-1)
        for number in itertools.count(last + 1):
            attempt = folder / f"attempt-{epoch:04d}-{number:02d}"
            try:
                attempt.mkdir()
            except FileExistsError:
                continue
            return attempt
    except OSError as error:
        raise BadInput(
            f"trial folder {folder} can't be written ({error.strerror}): free some space or give another folder with"
            " output_dir=FOLDER, then run the same command again"
        ) from None
    raise AssertionError


def resume_step(folder: Path, *, key: str) -> int:
    """The step from which a trial would go on, 0 without a usable checkpoint."""
    from muxfer.training import checkpoint

    found = checkpoint.load_newest(folder, key=key)
    return 0 if found is None else found.snapshot.step
