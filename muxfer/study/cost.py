"""What training costs, in numbers known before anything runs, and which proxies a budget pays for. Pure arithmetic: the
counts of a model are measured elsewhere and passed in.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from muxfer.config.parse import setting_value
from muxfer.config.settings import with_setting
from muxfer.config.study import Search, Space
from muxfer.config.task import Model, Task
from muxfer.errors import BadInput
from muxfer.trial import Setting

SIZES = ("width", "depth", "batch_size", "steps")  # the settings that decide what a trial costs

STEP_SHARES = (1.0, 0.75, 0.5, 0.25, 0.15)
"""Shares of the target's steps that a proposal may train for. The smallest is the paper's own: 30K of 200K (MMDiT)."""
LEAST_SETTINGS = 5  # Fewer settings do not show both sides of an optimum. The papers tuned PixArt-α with five.


def training_flops(macs: float, *, samples: float) -> float:
    """FLOPs of training: two for each multiply-accumulate, and a backward pass that costs twice the forward pass.
    `macs` are multiply-accumulates of one sample's forward pass, `samples` the batch size times the steps.
    """
    return 6.0 * macs * samples


def estimated_macs(model: Model) -> float:
    """Multiply-accumulates of one sample's forward pass through a transformer of this size, from its keys alone. It
    only orders a queue. Each token and block counts projections (4 D^2), MLP (2 r D^2) and attention (2 T D).
    Embedders, the modulation and the readout are left out.
    """
    tokens = (model.image_size // model.patch) ** 2
    per_token = (4 + 2 * model.mlp_ratio) * model.width**2 + 2 * tokens * model.width
    return float(model.depth * tokens * per_token)


def most_parameters(model: Model) -> float:
    """An upper bound of the parameters of our families at these sizes, at worst a few times too large. It shows without
    torch that a disk holds the checkpoints. A block has at most the two streams of an MMDiT, 2 (10 + 2 r) D^2, and its
    biases. Embedders and the projector of REPA are counted at their largest.
    """
    width, tokens = model.width, (model.image_size // model.patch) ** 2
    blocks = model.depth * ((24 + 4 * model.mlp_ratio) * width**2 + 64 * width)
    pixels = 4 * model.channels * model.patch**2
    sizes = [getattr(model, key, None) or 0 for key in ("num_classes", "text_dim", "text_dim", "pooled_dim")]
    dim = getattr(model, "repa_dim", None) or 0
    projector = 4 * dim * (width + 2 * dim + 1)
    return float(blocks + 16 * width**2 + (1024 + tokens + pixels + sum(sizes)) * width + projector)


def estimated_flops(task: Task) -> float:
    return training_flops(estimated_macs(task.model), samples=samples_seen(task))


def samples_seen(task: Task) -> int:
    return task.training.steps * task.training.batch_size


def tuning_ratio(proxies: Sequence[tuple[float, float]], target: tuple[float, float]) -> float:
    """Cost of tuning over the cost of the target: the sum of parameters x samples over trials, over the target's. Each
    pair is (parameters, samples seen). Equation 1 of "Scaling Diffusion Transformers Efficiently via μP".
    """
    parameters, samples = target
    return sum(n * seen for n, seen in proxies) / (parameters * samples)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The trials of a study that cost the same: their sizes, their task, and how many there are."""

    sizes: Setting
    task: Task
    trials: int


def parts(task: Task, search: Search, settings: Iterable[Setting]) -> list[Part]:
    """What a whole search trains, finalists included. `settings` are the combinations of its grids. A size that a
    sampler draws counts at its largest: a plan says what a study costs at most. The tasks have no warm-up, which costs
    nothing.
    """
    task = replace(task, training=replace(task.training, warmup_steps=0))
    drawn = {name: _largest(name, space) for name, space in search.spaces.items() if name in SIZES}
    counts: Counter[tuple[tuple[str, float | int | str], ...]] = Counter()
    for setting in settings:
        sizes = {name: setting[name] for name in SIZES if name in setting} | drawn
        counts[tuple(sizes.items())] += search.seeds * (search.num_settings or 1)
    by_size = [Part(sizes=dict(key), task=with_setting(task, dict(key)), trials=n) for key, n in counts.items()]
    if search.finalists and search.finalist_steps is not None:
        largest = max(by_size, key=lambda part: estimated_flops(part.task))
        sizes = {**largest.sizes, "steps": search.finalist_steps}
        trials = search.finalists * search.seeds
        by_size.append(Part(sizes=sizes, task=with_setting(task, sizes), trials=trials))
    return by_size


def _largest(name: str, space: Space) -> float | int:
    top = max(space.bounds)
    value: float | int = setting_value(name, 2.0**top if space.log2 else top)
    return value


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A proxy that a budget pays for: size, length, number of settings, and their share of the target's FLOPs."""

    width: int
    steps: int
    settings: int
    share: float


def propose(
    share_per_step: Mapping[int, float],
    lengths: Sequence[int],
    *,
    budget: float,
    wanted: int,
    seeds: int,
    unit: int = 1,
    final_steps: int = 0,
) -> list[Proposal]:
    """For each width the longest training at which the budget pays for the most settings; best first.

    `share_per_step` is the share of the target's FLOPs that one step costs, by width. `lengths` are the steps to choose
    from, `final_steps` those of all finalists together. Settings come in multiples of `unit`. More settings rank above
    a larger width, and a larger width above longer training. BadInput where nothing fits says what the cheapest costs.
    """
    least = math.ceil(min(LEAST_SETTINGS, wanted) / unit) * unit
    if not lengths or not share_per_step:
        why = "no proxy is smaller than the target and trains for longer than its warm-up"
        raise BadInput(f"--budget: {why}; give a larger target, target.width and target.steps")
    proposals, cheapest = [], None
    for width, share in share_per_step.items():
        fitting = []
        for steps in lengths:
            each, final = seeds * steps * share, seeds * final_steps * share
            settings = min(wanted, int((budget - final) / each)) // unit * unit
            while settings > 0 and settings * each + final > budget:  # rounding
                settings -= unit
            if settings >= least:
                fitting.append(Proposal(width=width, steps=steps, settings=settings, share=settings * each + final))
            needed = Proposal(width=width, steps=steps, settings=least, share=least * each + final)
            cheapest = needed if cheapest is None or needed.share < cheapest.share else cheapest
        if fitting:
            proposals.append(max(fitting, key=lambda one: (one.settings, one.steps)))
    if not proposals:
        assert cheapest is not None
        enough = f"--budget {_above(cheapest.share):g}, or " if cheapest.share < 0.9 else ""
        what = f"{cheapest.settings} settings{' and the finalists' if final_steps else ''}"
        raise BadInput(
            f"--budget {budget:g}: the cheapest proxy, width {cheapest.width} for {cheapest.steps} steps at {what},"
            f" costs {100 * cheapest.share:.2g} % of the target; give {enough}a larger target"
        )
    return sorted(proposals, key=lambda one: (-one.settings, -one.width, -one.steps))


def _above(share: float) -> float:
    """A share rounded up to two digits: enough, and short to type."""
    digits = f"{share:.1e}"
    return float(digits) if float(digits) >= share else float(f"{share * 1.05:.1e}")
