"""The update: AdamW by groups, a schedule that keeps each group's own rate, gradient clipping, averaged weights.

The scales of a parametrization are numbers by group and by parameter name. This module does not know where they come
from. Every operation runs over lists of tensors (foreach, fused) and never waits for the device.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from muxfer.config.task import Training


def build_adamw(groups: Iterable[Mapping[str, Any]]) -> torch.optim.AdamW:
    """Fused AdamW. Groups with the same lr, weight_decay, eps and betas are merged, for fewer kernels. Each group holds
    `params`, `lr`, `weight_decay`, `eps`, `betas`. The schedule multiplies the group's `initial_lr`.
    """
    merged: dict[tuple[Any, ...], list[torch.Tensor]] = {}
    for group in groups:
        numbers = (float(group["lr"]), float(group["weight_decay"]), float(group["eps"]), tuple(group["betas"]))
        merged.setdefault(numbers, []).extend(group["params"])
    return torch.optim.AdamW(
        [
            {"params": params, "lr": lr, "initial_lr": lr, "weight_decay": weight_decay, "eps": eps, "betas": betas}
            for (lr, weight_decay, eps, betas), params in merged.items()
        ],
        fused=True,
    )


def rate_multiplier(training: Training, step: int) -> float:
    """The schedule's factor of every rate at step 0..steps-1: linear warm-up, then constant or cosine to 0."""
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    if training.schedule == "constant":
        return 1.0
    progress = (step - training.warmup_steps) / (training.steps - training.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_rates(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier


class Clip:
    """Clips by the global norm of the unfolded gradients: a gradient g counts as fold * g (mup-rules.md). Where all
    folds are 1 it equals `torch.nn.utils.clip_grad_norm_`. With `max_norm` None it only measures.
    """

    def __init__(self, params: Sequence[torch.Tensor], folds: Sequence[float], max_norm: float | None) -> None:
        self._params = list(params)
        self._max_norm = max_norm
        self._fold_P: torch.Tensor | None = None
        if any(fold != 1 for fold in folds):
            self._fold_P = torch.tensor(list(folds), dtype=params[0].dtype, device=params[0].device)

    def __call__(self) -> torch.Tensor:
        """Clip the gradients in place. Returns their unfolded norm from before, a scalar on the device."""
        # TODO: DTensor gradients (FSDP2) need their own reduction of the norm. FSDP2 is not supported yet.
        used = [i for i, param in enumerate(self._params) if param.grad is not None]
        grads = [grad for param in self._params if (grad := param.grad) is not None]
        norm_P = torch.stack(torch._foreach_norm(grads))
        if self._fold_P is not None:
            norm_P = norm_P * (self._fold_P if len(used) == len(self._params) else self._fold_P[used])
        norm = torch.linalg.vector_norm(norm_P)
        if self._max_norm is not None:
            # 1e-6 and the clamp are torch's, so that both clip alike
            torch._foreach_mul_(grads, torch.clamp(self._max_norm / (norm + 1e-6), max=1.0))
        return norm


class AveragedWeights:
    """Exponential moving average of weights, free of bias from the start. After n updates it is the sum of d^(n-i) w_i
    over i = 1..n, divided by the sum of d^(n-i), with d = 1 - 1 / max(1, fraction * steps). The initial weights have no
    part in it, so short and long runs follow the same rule.
    """

    def __init__(self, params: Sequence[torch.Tensor], *, fraction: float, steps: int) -> None:
        self._params = list(params)
        self.decay = 1 - 1 / max(1.0, fraction * steps)
        self.weights = [param.detach().clone() for param in params]

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Add the current weights to the average, after update number `num_updates` = 1, 2, ..."""
        share = (1 - self.decay) / (1 - self.decay**num_updates)
        torch._foreach_lerp_(self.weights, self._params, share)
