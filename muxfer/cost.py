"""What training costs, in numbers that can be had before anything runs. Pure arithmetic."""

from collections.abc import Sequence

from muxfer.config import Model, Task


def training_flops(macs: float, *, samples: float) -> float:
    """FLOPs of training: two a multiply-accumulate, and a backward pass of twice the forward one.

    `macs` are multiply-accumulates of one sample's forward pass, `samples` the batch size times the steps.
    """
    return 6.0 * macs * samples


def estimated_macs(model: Model) -> float:
    """Multiply-accumulates of one sample's forward pass through a transformer of this size, from its keys alone.

    Only to order a queue: projections (4 D^2), MLP (2 r D^2) and attention (2 T D) a token and block; embedders, the
    modulation and the readout are left out.
    """
    tokens = (model.image_size // model.patch) ** 2
    per_token = (4 + 2 * model.mlp_ratio) * model.width**2 + 2 * tokens * model.width
    return float(model.depth * tokens * per_token)


def estimated_flops(task: Task) -> float:
    return training_flops(estimated_macs(task.model), samples=task.training.steps * task.training.batch_size)


def tuning_ratio(proxies: Sequence[tuple[int, int]], target: tuple[int, int]) -> float:
    """Share of the target's cost that tuning took: the sum over trials of parameters x samples over the target's.

    Each pair is (parameters, samples seen). Equation 1 of "Scaling Diffusion Transformers Efficiently via μP".
    """
    parameters, samples = target
    return sum(n * seen for n, seen in proxies) / (parameters * samples)
