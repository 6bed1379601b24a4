"""The one training loop of proxies and target: steps, validation of the averaged weights, divergence, snapshots.

A trainer trains for about the requested number of seconds and returns the new points. The same steps give the same
numbers wherever a trainer stopped in between (on a CPU bit for bit). Losses are read from a GPU in chunks, yet
divergence is dated to its exact step.

Axes: B batch, C channels, H and W pixels, N pictures, T patches, E features.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from muxfer.config.task import DDPM, Evaluation, RectifiedFlow, Training
from muxfer.data.dataset import Dataset
from muxfer.data.randomness import generator_of
from muxfer.data.stream import Batch, BatchPrefetcher, Stream, num_validation_pictures, validation_batches
from muxfer.training import objective as objectives
from muxfer.training.checkpoint import Snapshot
from muxfer.training.divergence import DivergenceDetector
from muxfer.training.optim import AveragedWeights, Clip, build_adamw, rate_multiplier, set_rates
from muxfer.trial import Point

CHUNK_STEPS_ON_GPU = 20  # Steps between two reads of losses from a GPU, which runs ahead of Python
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")

Predict = Callable[..., torch.Tensor]  # `predict(model, x_BCHW, t_B, y_B)`: see `muxfer.training.conditioning`


def call_model(model: nn.Module, x_BCHW: torch.Tensor, t_B: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    return model(x_BCHW, t_B, y_B)


class Trainer:
    """Trains one model at one setting.

    `groups` are AdamW's, each with `params`, `names` (one a parameter), `lr`, `weight_decay`, `eps`, `betas`. Together
    they hold every trainable parameter once. `fold` is the factor by which a parameter's gradient enters the clipping
    norm, by name, and 1 where absent. `predict` calls the model. `features` [N, T, E] of the training pictures, on the
    CPU, are what REPA aligns a middle block with.

    `step` counts the steps done. Steps are numbered from 0. `diverged_at` is the number of the step at which
    `muxfer.training.divergence` found divergence.
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
        predict: Predict = call_model,
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
        self._validate_groups(fold)
        self._optimizer = build_adamw(groups)
        self._clip = Clip(self._params, [fold.get(name, 1.0) for name in self._names], grad_clip)
        self._average = AveragedWeights(self._params, fraction=training.ema_fraction, steps=training.steps)
        stream = Stream(
            data.train,
            num_classes=data.num_classes,
            batch_size=training.batch_size,
            label_dropout=training.label_dropout,
            seed=training.seed,
            replicate=replicate,
        )
        self._batches = BatchPrefetcher(stream.batch) if self.device.type == "cuda" else stream
        self._chunk_steps = 1 if self.device.type == "cpu" else CHUNK_STEPS_ON_GPU
        self._divergence = DivergenceDetector(warmup_steps=training.warmup_steps)
        self._unreported: list[tuple[float, float]] = []

    @property
    def finished(self) -> bool:
        """Whether every step is done and none diverged."""
        return self.step >= self.training.steps and self.diverged_at is None

    def advance(self, seconds: float, on_checkpoint: "Callable[[Trainer], None] | None" = None) -> list[Point]:
        """Train for about this long (one step at least), to the end or to divergence. Returns the new points.
        `on_checkpoint` is called between steps, at every `checkpoint_every` and at the end. The trainer does not keep
        it: a trainer that holds its owner is a cycle, which would fill the device until garbage is collected.
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
        """Mean loss of the averaged weights over the validation grid. A loss that is not finite sets `diverged_at`."""
        began = time.perf_counter()
        split, num_timesteps = self.data.validation, self.evaluation.timesteps
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self._seed_forward("validation", self.step)
        with self.averaged(), torch.no_grad(), self._autocast():
            for batch in validation_batches(split, num_timesteps=num_timesteps):
                total += self._losses(*self._place(batch)).double().sum()
        metric = total.item() / (num_validation_pictures(split) * num_timesteps)
        self.train_seconds += time.perf_counter() - began
        if not math.isfinite(metric):
            self.diverged_at = self.step
        return metric

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model in evaluation mode with its averaged weights. The trained weights return afterwards."""
        self._swap_weights()
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train()
            self._swap_weights()

    def state(self) -> Snapshot:
        """All that `restore` needs. Its tensors are the live ones: write them before the next step."""
        adam = self._optimizer.state
        return Snapshot(
            step=self.step,
            tensors={
                "model": self._model_state(),
                "ema": self._averages(),
                "optimizer": {
                    f"{name}.{kind}": adam[param][kind]
                    for name, param in zip(self._names, self._params, strict=True)
                    if param in adam
                    for kind in ADAM_STATE
                },
            },
            state={
                **self._divergence.state(),
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
        _copy(self._averages(), snapshot.tensors["ema"])
        saved = snapshot.tensors["optimizer"]
        self._optimizer.state.clear()
        for name, param in zip(self._names, self._params, strict=True):
            if f"{name}.step" in saved:
                self._optimizer.state[param] = {
                    kind: saved[f"{name}.{kind}"].to(self.device, copy=True) for kind in ADAM_STATE
                }
        state = snapshot.state
        self.step = snapshot.step
        self._divergence.restore(state)
        self._unreported = [(loss, norm) for loss, norm in state["unreported"]]
        self.points = [Point(name=name, step=step, value=value) for name, step, value in state["points"]]
        self.train_seconds = state["train_seconds"]

    def _run_chunk(self) -> None:
        began = time.perf_counter()
        limit = self.training.checkpoint_every - self.step % self.training.checkpoint_every
        stop = min(self.step + min(self._chunk_steps, limit), self.training.steps)
        measured = torch.stack([self._run_step(step) for step in range(self.step, stop)])
        for loss, norm in measured.tolist():  # the one wait for the device
            self._finish_step(loss, norm)
            if self.diverged_at is not None:
                break
        self.train_seconds += time.perf_counter() - began

    def _run_step(self, step: int) -> torch.Tensor:
        """One update. Returns the loss and the unfolded gradient norm [2], still on the device."""
        batch = self._batches.batch(step)
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

    def _finish_step(self, loss: float, norm: float) -> None:
        """Count a step, or date divergence to it. Every `report_every` steps, add the mean loss and norm as points."""
        if self._divergence.diverges(self.step, loss=loss, norm=norm):
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
        """Make what a model draws in its own forward (dropout, the label drop of diffusers' DiT) depend on the step.
        Seeds torch's global generators for every model, at 5 µs a step (2026-11). muxfer's own models draw nothing.
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
        """Images, labels, times and noise on the device. Floating point is in the weights' precision."""
        t_B = objectives.timesteps(self.objective, batch.u_B)
        if t_B.is_floating_point():
            t_B = t_B.to(self._dtype)
        placed = (batch.x_BCHW.to(self._dtype), batch.y_B, t_B, batch.noise_BCHW.to(self._dtype))
        if self.device.type == "cpu":
            return placed
        x_BCHW, y_B, t_B, noise_BCHW = (tensor.pin_memory().to(self.device, non_blocking=True) for tensor in placed)
        return x_BCHW, y_B, t_B, noise_BCHW

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        precision = self.training.precision
        on_gpu = self.device.type == "cuda"
        if precision == "auto" and on_gpu and torch.cuda.is_bf16_supported(including_emulation=False):
            precision = "bfloat16"
        if precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _swap_weights(self) -> None:
        for param, average in zip(self._params, self._average.weights, strict=True):
            param.data, average.data = average.data, param.data

    def _averages(self) -> dict[str, torch.Tensor]:
        return dict(zip(self._names, self._average.weights, strict=True))

    def _model_state(self) -> dict[str, torch.Tensor]:
        """Parameters and persistent buffers, each once, by name."""
        params = {name: param.detach() for name, param in self.model.named_parameters()}
        every = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return params | {name: value for name, value in self.model.state_dict().items() if name not in every}

    def _validate_groups(self, fold: Mapping[str, float]) -> None:
        given = dict(zip(self._names, self._params, strict=True))
        expected = {name: param for name, param in self.model.named_parameters() if param.requires_grad}
        same = given.keys() == expected.keys() and all(given[name] is expected[name] for name in expected)
        if not same or len(given) != len(self._names):
            differing = sorted(given.keys() ^ expected.keys())[:3]
            raise ValueError(f"groups must hold every trainable parameter once, by its name; differing: {differing}")
        if unknown := sorted(fold.keys() - {name for name, _ in self.model.named_parameters()}):
            raise ValueError(f"fold has names of parameters that the model lacks: {unknown[:3]}")


def _copy(to: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> None:
    if to.keys() != saved.keys():
        raise ValueError(f"the snapshot is another model's; differing: {sorted(to.keys() ^ saved.keys())[:3]}")
    for name, tensor in to.items():
        if tensor.shape != saved[name].shape:
            raise ValueError(f"the snapshot is another model's: {name} is {tuple(saved[name].shape)} there")
        tensor.copy_(saved[name])
