"""The one training loop, of proxies and target alike: steps, the averaged weights' validation, divergence, snapshots.

A trainer does what it is told for about so many seconds and hands back new points. Where it stopped does not matter:
the same steps give the same numbers, however they were divided (on a CPU bit for bit). Losses are read from a GPU in
chunks, yet divergence is dated to its exact step.
"""

import contextlib
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from muxfer.config.task import DDPM, Evaluation, RectifiedFlow, Training
from muxfer.data.dataset import Dataset
from muxfer.data.stream import Ahead, Batch, Stream
from muxfer.randomness import generator_of
from muxfer.training import objective as objectives
from muxfer.training.checkpoint import Snapshot
from muxfer.training.optim import AveragedWeights, Clip, build_adamw, rate_multiplier, set_rates
from muxfer.trial import Point

DIVERGENCE_WINDOW = 20
DIVERGENCE_FACTOR = 2.0
CHUNK_ON_GPU = 20
"""Steps between two reads of losses from a device that runs ahead of Python."""
VALIDATION_BATCH = 256
"""Noise is drawn by batch: another number here is another metric, and needs another NUMERICS_VERSION."""
VALIDATION_MAX_PICTURES = 2048
"""Of a larger validation split the first so many: their order is by content hash, so they are a random sample."""

Predict = Callable[..., torch.Tensor]
"""`predict(model, x_BCHW, t_B, y_B)`: see `muxfer.training.conditioning`."""

ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


def call_plainly(model: nn.Module, x_BCHW: torch.Tensor, t_B: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    return model(x_BCHW, t_B, y_B)


class Trainer:
    """Trains one model at one setting.

    `groups` are AdamW's, each with `params`, `names` (one a parameter), `lr`, `weight_decay`, `eps`, `betas`; together
    they hold every trainable parameter once. `fold` is the factor by which a parameter's gradient enters the clipping
    norm, by name, 1 where absent. `predict` calls the model. `features` [N, T, E] of the training pictures, on the
    CPU, are what REPA aligns a middle block with.

    `step` counts the steps done. Steps are numbered from 0; `diverged_at` is the number of the step whose loss or
    gradient was not finite, or that brought the mean loss over 20 steps after warm-up above twice the loss of step 0.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Mapping[str, Any]],
        *,
        objective: RectifiedFlow | DDPM,
        data: Dataset,
        training: Training,
        evaluation: Evaluation,
        replicate: int,
        fold: Mapping[str, float],
        predict: Predict = call_plainly,
        features_NTE: torch.Tensor | None = None,
        grad_clip: float | None = None,
        device: str = "cpu",
    ) -> None:
        self.model = model.to(device).train()
        self.objective, self.data, self.training, self.evaluation = objective, data, training, evaluation
        self.device = torch.device(device)
        self.step = 0
        self.diverged_at: int | None = None
        self.points: list[Point] = []
        self.train_seconds = 0.0
        self._predict, self._features_NTE = predict, features_NTE
        self._names = [name for group in groups for name in group["names"]]
        self._params = [param for group in groups for param in group["params"]]
        self._source = (training.seed, replicate)
        self._dtype = self._params[0].dtype
        self._check_groups(fold)
        self._optimizer = build_adamw(groups)
        self._clip = Clip(self._params, [fold.get(name, 1.0) for name in self._names], grad_clip)
        self._average = AveragedWeights(self._params, fraction=training.ema_fraction, steps=training.steps)
        self._stream = Stream(
            data.train,
            num_classes=data.num_classes,
            batch_size=training.batch_size,
            label_dropout=training.label_dropout,
            seed=training.seed,
            replicate=replicate,
        )
        self._chunk_steps = 1 if self.device.type == "cpu" else CHUNK_ON_GPU
        self._ahead = Ahead(self._stream.batch) if self.device.type == "cuda" else None
        self._first_loss: float | None = None
        self._recent: deque[float] = deque(maxlen=DIVERGENCE_WINDOW)
        self._unreported: list[tuple[float, float]] = []

    @property
    def finished(self) -> bool:
        """Whether every step is done and none diverged."""
        return self.step >= self.training.steps and self.diverged_at is None

    def advance(self, seconds: float, on_checkpoint: "Callable[[Trainer], None] | None" = None) -> list[Point]:
        """Train for about so long (one step at least), to the end or to divergence; returns the new points.

        `on_checkpoint` is called between steps, at every `checkpoint_every` and at the end. It is not kept: a trainer
        that holds its holder is a cycle, and fills the device until garbage is collected, some trials later.
        """
        num_points = len(self.points)
        stop_at = time.perf_counter() + seconds
        while self.step < self.training.steps and self.diverged_at is None:
            self._run_chunk()
            boundary = self.step % self.training.checkpoint_every == 0 or self.step == self.training.steps
            if boundary and self.diverged_at is None and on_checkpoint is not None:
                on_checkpoint(self)
            if time.perf_counter() >= stop_at:
                break
        return self.points[num_points:]

    def validate(self) -> float:
        """Mean loss of the averaged weights over the validation pictures and the fixed grid of times and noise.

        Not finite: the last update diverged, and `diverged_at` says so.
        """
        began = time.perf_counter()
        split = self.data.validation
        num_pictures = min(len(split), VALIDATION_MAX_PICTURES)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self._seed_forward("validation", self.step)
        with self.averaged(), torch.no_grad(), self._autocast():
            for i in range(self.evaluation.timesteps):
                u = (i + 0.5) / self.evaluation.timesteps
                for start in range(0, num_pictures, VALIDATION_BATCH):
                    x_BCHW = split.images(slice(start, min(start + VALIDATION_BATCH, num_pictures)))
                    batch = Batch(
                        x_BCHW=x_BCHW,
                        y_B=split.labels_N[start : start + len(x_BCHW)],
                        u_B=torch.full((len(x_BCHW),), u, dtype=torch.float64),
                        noise_BCHW=torch.randn(x_BCHW.shape, generator=generator_of("validation", i, start)),
                        index_B=torch.arange(start, start + len(x_BCHW)),
                    )
                    total += self._losses(*self._place(batch)).double().sum()
        metric = total.item() / (num_pictures * self.evaluation.timesteps)
        self.train_seconds += time.perf_counter() - began
        if not math.isfinite(metric):
            self.diverged_at = self.step
        return metric

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model in evaluation mode with its averaged weights in place; the trained ones return afterwards."""
        self._swap()
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train()
            self._swap()

    def averaged_state(self) -> dict[str, torch.Tensor]:
        """The model's state with averaged weights, by name: what a target hands out. Not a copy."""
        return {**self._model_state(), **dict(zip(self._names, self._average.weights, strict=True))}

    def state(self) -> Snapshot:
        """All that `restore` needs. Its tensors are the live ones: write them before the next step."""
        adam = self._optimizer.state
        return Snapshot(
            step=self.step,
            tensors={
                "model": self._model_state(),
                "ema": dict(zip(self._names, self._average.weights, strict=True)),
                "optimizer": {
                    f"{name}.{kind}": adam[param][kind]
                    for name, param in zip(self._names, self._params, strict=True)
                    if param in adam
                    for kind in ADAM_STATE
                },
            },
            state={
                "first_loss": self._first_loss,
                "recent": list(self._recent),
                "unreported": self._unreported,
                "points": [[point.name, point.step, point.value] for point in self.points],
                "train_seconds": self.train_seconds,
                "device": str(self.device),
            },
        )

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot of the same trial. Raises ValueError when it is another model's."""
        _copy(self._model_state(), snapshot.tensors["model"])
        _copy(dict(zip(self._names, self._average.weights, strict=True)), snapshot.tensors["ema"])
        saved = snapshot.tensors["optimizer"]
        self._optimizer.state.clear()
        for name, param in zip(self._names, self._params, strict=True):
            if f"{name}.step" in saved:
                self._optimizer.state[param] = {
                    kind: saved[f"{name}.{kind}"].to(self.device, copy=True) for kind in ADAM_STATE
                }
        state = snapshot.state
        self.step = snapshot.step
        self._first_loss = state["first_loss"]
        self._recent = deque(state["recent"], maxlen=DIVERGENCE_WINDOW)
        self._unreported = [(loss, norm) for loss, norm in state["unreported"]]
        self.points = [Point(name=name, step=step, value=value) for name, step, value in state["points"]]
        self.train_seconds = state["train_seconds"]

    def _run_chunk(self) -> None:
        began = time.perf_counter()
        limit = self.training.checkpoint_every - self.step % self.training.checkpoint_every
        last = min(self.step + min(self._chunk_steps, limit), self.training.steps)
        measured = torch.stack([self._run_step(step) for step in range(self.step, last)])
        for loss, norm in measured.tolist():  # the one wait for the device
            self._settle(loss, norm)
            if self.diverged_at is not None:
                break
        self.train_seconds += time.perf_counter() - began

    def _run_step(self, step: int) -> torch.Tensor:
        """One update; returns the loss and the unfolded gradient norm [2], still on the device."""
        batch = self._ahead.take(step) if self._ahead is not None else self._stream.batch(step)
        self._seed_forward("step", step)
        with self._autocast():
            loss = self._losses(*self._place(batch), self._features_of(batch)).mean()
        loss.backward()
        norm = self._clip()
        set_rates(self._optimizer, rate_multiplier(self.training, step))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._average.update(step + 1)
        return torch.stack([loss.detach(), norm])

    def _settle(self, loss: float, norm: float) -> None:
        """Take in one step's numbers: divergence, or one step more and perhaps its points."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.diverged_at = self.step
            return
        if self._first_loss is None:
            self._first_loss = loss
        if self.step >= self.training.warmup_steps:
            self._recent.append(loss)
        if len(self._recent) == DIVERGENCE_WINDOW:
            mean = sum(self._recent) / DIVERGENCE_WINDOW
            if mean > DIVERGENCE_FACTOR * self._first_loss:
                self.diverged_at = self.step
                return
        self._unreported.append((loss, norm))
        self.step += 1
        if self.step % self.training.report_every == 0 or self.step == self.training.steps:
            for name, values in zip(("train_loss", "grad_norm"), zip(*self._unreported, strict=True), strict=True):
                self.points.append(Point(name=name, step=self.step, value=sum(values) / len(values)))
            self._unreported = []

    def _losses(
        self,
        x_BCHW: torch.Tensor,
        y_B: torch.Tensor,
        t_B: torch.Tensor,
        noise_BCHW: torch.Tensor,
        features_BTE: torch.Tensor | None = None,
    ) -> torch.Tensor:
        model = functools.partial(self._predict, self.model)
        return objectives.losses(self.objective, model, x_BCHW, y_B, t_B, noise_BCHW, features_BTE)

    def _seed_forward(self, *content: int | str) -> None:
        """What a model draws in its own forward (dropout, the label drop of diffusers' DiT) is the step's, as all else.

        Seeds torch's global generators, at 5 µs a step (2026-11): no model is asked first whether it draws; ours don't.
        """
        seed = generator_of(*self._source, "forward", *content).initial_seed()
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _features_of(self, batch: Batch) -> torch.Tensor | None:
        if self._features_NTE is None:
            return None
        return self._features_NTE[batch.index_B].to(self.device, self._dtype, non_blocking=True)

    def _place(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images, labels, times and noise on the device, floating point in the weights' precision."""
        t_B = objectives.timesteps(self.objective, batch.u_B)
        if t_B.is_floating_point():
            t_B = t_B.to(self._dtype)
        placed = (batch.x_BCHW.to(self._dtype), batch.y_B, t_B, batch.noise_BCHW.to(self._dtype))
        if self.device.type == "cpu":
            return placed
        x_BCHW, y_B, t_B, noise_BCHW = (tensor.pin_memory().to(self.device, non_blocking=True) for tensor in placed)
        return x_BCHW, y_B, t_B, noise_BCHW

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        wanted = self.training.precision
        if wanted == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            wanted = "bfloat16"
        if wanted != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _swap(self) -> None:
        for param, average in zip(self._params, self._average.weights, strict=True):
            param.data, average.data = average.data, param.data

    def _model_state(self) -> dict[str, torch.Tensor]:
        """Parameters and persistent buffers, each once, by name."""
        params = {name: param.detach() for name, param in self.model.named_parameters()}
        every = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return params | {name: value for name, value in self.model.state_dict().items() if name not in every}

    def _check_groups(self, fold: Mapping[str, float]) -> None:
        given = dict(zip(self._names, self._params, strict=True))
        wanted = {name: param for name, param in self.model.named_parameters() if param.requires_grad}
        same = given.keys() == wanted.keys() and all(given[name] is wanted[name] for name in wanted)
        if not same or len(given) != len(self._names):
            differing = sorted(given.keys() ^ wanted.keys())[:3]
            raise ValueError(f"groups must hold every trainable parameter once, by its name; differing: {differing}")
        if unknown := sorted(fold.keys() - {name for name, _ in self.model.named_parameters()}):
            raise ValueError(f"fold names what the model does not have: {unknown[:3]}")


def _copy(to: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> None:
    if to.keys() != saved.keys():
        raise ValueError(f"the snapshot is another model's; differing: {sorted(to.keys() ^ saved.keys())[:3]}")
    for name, tensor in to.items():
        if tensor.shape != saved[name].shape:
            raise ValueError(f"the snapshot is another model's: {name} is {tuple(saved[name].shape)} there")
        tensor.copy_(saved[name])
