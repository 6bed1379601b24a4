"""One training step of ours, beside a step as the reference code writes it, and beside a bare matrix product."""

import copy
import tempfile
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.timing import Row, interleaved, ratios, spread
from muxfer.config.settings import with_setting
from muxfer.config.task import Task
from muxfer.data.source import load_dataset
from muxfer.data.stream import Stream
from muxfer.executors.base import TrialJob
from muxfer.executors.worker import TrialRun
from muxfer.models.build import build_model
from muxfer.models.count import measure
from muxfer.mup import param_groups
from muxfer.study.cost import training_flops
from muxfer.study.resolve import resolve
from muxfer.study.trials import make_trial
from muxfer.training import objective as objectives
from muxfer.training.optim import build_adamw, rate_multiplier, set_rates
from muxfer.trial import Trial

WIDTHS = (128, 256)
ENDLESS = ("training.steps=1000000", "training.checkpoint_every=1000000", "training.report_every=1")
CLIP = "optimizer.grad_clip=1000000"
"""Far above any norm. Both sides pay for the clip, but it changes no number."""


def proxy(width: int, *overrides: str) -> tuple[Task, Trial]:
    """The main job's task at this width and one of its rates, and its trial. Sets torch to one thread, as in a slot."""
    torch.set_num_threads(1)
    request = resolve("lr-width", overrides)
    setting = {"width": width, "base_lr": 2.0**-7}
    task = with_setting(request.config.task, setting)
    return task, make_trial(task, setting, replicate=0, fingerprint=request.fingerprint)


class Reference:
    """The loop of the DiT repositories: unfused AdamW, clip, EMA tensor by tensor, and the loss read at every step.

    Weights, batches, timesteps, noise, rates and forward pass are those of our trainer.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.step = task, 0
        self.model, scales = build_model(task, replicate=0)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        adamw = task.optimizer
        betas = (adamw.beta1, adamw.beta2)
        numbers: Mapping[str, Any] = {"base_lr": adamw.base_lr, "weight_decay": adamw.weight_decay, "eps": adamw.eps}
        merged = build_adamw(param_groups(self.model, scales, **numbers, betas=betas)).param_groups
        kept = ("params", "lr", "initial_lr", "weight_decay", "eps", "betas")
        groups = [{name: group[name] for name in kept} for group in merged]
        self.optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
        data, training = load_dataset(task.data), task.training
        self.stream = Stream(
            data.train,
            num_classes=data.num_classes,
            batch_size=training.batch_size,
            label_dropout=training.label_dropout,
            seed=training.seed,
            replicate=0,
        )

    def run_step(self) -> float:
        batch, objective = self.stream.batch(self.step), self.task.objective
        t_B = objectives.timesteps(objective, batch.u_B).float()
        loss = objectives.losses(objective, self.model, batch.x_BCHW, batch.y_B, t_B, batch.noise_BCHW).mean()
        self.optimizer.zero_grad()
        loss.backward()
        assert self.task.optimizer.grad_clip is not None
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.task.optimizer.grad_clip, foreach=False)
        set_rates(self.optimizer, rate_multiplier(self.task.training, self.step))
        self.optimizer.step()
        averages = dict(self.average.named_parameters())
        with torch.no_grad():
            for name, param in self.model.named_parameters():
                averages[name].mul_(0.9999).add_(param.data, alpha=1 - 0.9999)
        self.step += 1
        return loss.item()


def step(*, quick: bool) -> list[Row]:
    return [row for width in WIDTHS for row in _at_width(width, quick=quick)]


def _at_width(width: int, *, quick: bool) -> list[Row]:
    num_steps, rounds = (2, 3) if quick else (5, 15)
    task, trial = proxy(width, *ENDLESS, CLIP)
    with tempfile.TemporaryDirectory() as folder:
        ours = TrialRun(TrialJob(trial=trial, folder=folder, epoch=1)).trainer
    theirs = Reference(task)
    losses: list[tuple[float, float]] = [(ours.advance(0.0)[0].value, theirs.run_step()) for _ in range(2)]  # warm

    tokens = (task.model.image_size // task.model.patch) ** 2
    rows, hidden = task.training.batch_size * tokens, int(width * task.model.mlp_ratio)
    x_ND, w_DH, out_NH = torch.randn(rows, width), torch.randn(width, hidden), torch.empty(rows, hidden)
    step_flops = training_flops(measure(task.model).macs, samples=task.training.batch_size)
    product_flops = 2.0 * rows * width * hidden
    num_products = max(1, round(num_steps * step_flops / product_flops / 4))

    our_losses: list[float] = []
    their_losses: list[float] = []
    seconds = interleaved(
        {
            "theirs": lambda: their_losses.extend(theirs.run_step() for _ in range(num_steps)),
            "ours": lambda: our_losses.extend(ours.advance(0.0)[0].value for _ in range(num_steps)),
            "product": lambda: [torch.mm(x_ND, w_DH, out=out_NH) for _ in range(num_products)],
        },
        rounds=rounds,
    )
    losses += zip(our_losses, their_losses, strict=True)
    apart = max(abs(a - b) / b for a, b in losses)
    our_rates = [num_steps * step_flops / each / 1e9 for each in seconds["ours"]]
    product_rates = [num_products * product_flops / each / 1e9 for each in seconds["product"]]
    beside = {
        "reference_step_seconds": spread([each / num_steps for each in seconds["theirs"]]),
        "our_step_seconds": spread([each / num_steps for each in seconds["ours"]]),
    }
    rates = {"our_step_gflop_per_second": spread(our_rates), "product_gflop_per_second": spread(product_rates)}
    note = (
        f"CPU, one thread, fp32, batch {task.training.batch_size}, {tokens} tokens, depth {task.model.depth};"
        f" losses of {len(losses)} steps at most {apart:.0e} apart"
    )
    product = f"the same thread; [{rows}, {width}] @ [{width}, {hidden}], the largest linear; 6 FLOPs a MAC"
    ratio, share = ratios(seconds["theirs"], seconds["ours"]), ratios(our_rates, product_rates)
    name = f"reference-style DiT step / our step, width {width}"
    achieved = f"achieved FLOP/s of our step / matrix-product rate, width {width}"
    return [
        Row(name=name, value=ratio, unit="x", at_least=1.3, contestants=beside, note=note),
        Row(name=achieved, value=share, at_least=0.6, contestants=rates, note=product),
    ]
