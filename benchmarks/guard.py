"""`python -m benchmarks.guard`: how often the guard halts a healthy target, and how soon it halts one with a high rate.

Each study trains its proxies at two widths; the wider one chooses the best of three rates. Then it trains healthy
targets of several widths and lengths, and targets at 2 to 16 times the rate. All train to their end without the guard,
so that false alarms and missed ones are both seen. Prints the table of docs/guard.md and writes docs/guard.json.
"""

import argparse
import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from benchmarks.commands import ROOT
from muxfer.analysis.loss_band import LossBand, LossCurve, Smoother, first_breach, loss_band
from muxfer.config.hydra_compose import compose
from muxfer.config.models import with_num_classes
from muxfer.config.parse import parse
from muxfer.config.study import Config
from muxfer.data.source import load_dataset
from muxfer.executors.base import TrialJob
from muxfer.executors.inline import InlineExecutor
from muxfer.study.trials import make_trial
from muxfer.training.optim import rate_multiplier

TINY = [
    *("model.base_width=32", "model.depth=1", "model.patch=4", "training.steps=60", "training.warmup_steps=6"),
    *("training.batch_size=16", "training.report_every=3", "training.checkpoint_every=100000"),
    "evaluation.timesteps=2",
]
STUDIES: Mapping[str, Sequence[str]] = {
    "constant": [],
    "cosine": ["training.schedule=cosine"],
    "no warm-up": ["training.warmup_steps=0"],
    "DDPM": ["objective=ddpm"],
}
RATES = (2**-7, 2**-6, 2**-5)
PROXIES = (16, 32)
HEALTHY = [(width, times) for width in (32, 64, 128) for times in (0.5, 1, 2, 5)]
WRONG = (2, 4, 8, 16)
WRONG_SIZE = (64, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """One run: its curve, its schedule and how it ended."""

    width: int
    points: list[tuple[int, float]]
    rates: list[float]
    metric: float | None
    step: int


def train(config: Config, *, width: int, times: float, base_lr: float) -> Trained:
    """Train at this width and rate, `times` as long as the proxies. The warm-up is stretched alike."""
    training, data = config.training, load_dataset(config.data)
    steps = round(times * training.steps)
    task = dataclasses.replace(
        config.task,
        model=dataclasses.replace(with_num_classes(config.model, data.num_classes), width=width),
        optimizer=dataclasses.replace(config.optimizer, base_lr=base_lr),
        training=dataclasses.replace(training, steps=steps, warmup_steps=round(times * training.warmup_steps)),
    )
    trial = make_trial(task, {}, replicate=0, fingerprint=data.fingerprint)
    executor = InlineExecutor()
    points: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        executor.submit([TrialJob(trial=trial, folder=folder, epoch=1)])
        record = None
        while record is None:
            for update in executor.updates(1.0):
                points += [(point.step, point.value) for point in update.points if point.name == "train_loss"]
                record = update.record
    rates = [rate_multiplier(task.training, step) for step in range(steps)]
    return Trained(width=width, points=points, rates=rates, metric=record.metric, step=record.step)


def study(name: str, seed: int) -> Iterator[dict[str, Any]]:
    """One row per target: how far its loss exceeded the limit, and at which step the guard would have halted it."""
    config = parse(compose("lr-width", [*TINY, *STUDIES[name], f"training.seed={seed}"]))
    by_rate = {lr: train(config, width=PROXIES[-1], times=1, base_lr=lr) for lr in RATES}
    best = min(RATES, key=lambda lr: math.inf if by_rate[lr].metric is None else by_rate[lr].metric or 0.0)
    proxies = [train(config, width=width, times=1, base_lr=best) for width in PROXIES[:-1]] + [by_rate[best]]
    curves = [LossCurve(size=run.width, points=run.points, rates=run.rates) for run in proxies]
    targets = [(1, width, times) for width, times in HEALTHY] + [(factor, *WRONG_SIZE) for factor in WRONG]
    for factor, width, times in targets:
        run = train(config, width=width, times=times, base_lr=factor * best)
        band = loss_band(curves, size=width, rates=run.rates)
        assert band is not None
        breach = first_breach(band, run.points)
        yield {
            "study": name,
            "seed": seed,
            "base_lr": factor * best,
            "rate": factor,
            "width": width,
            "times": times,
            "steps": len(run.rates),
            "diverged_at": None if run.metric is not None else run.step,
            "metric": run.metric,
            "excess": _excess(band, run.points),
            "halted_at": None if breach is None else breach.step,
        }


def _excess(band: LossBand, points: Sequence[tuple[int, float]]) -> float:
    """The largest relative excess of the smoothed loss over its limit. Negative if it was always below."""
    smoother = Smoother(band.smoothing_steps)
    return max(smoother.take(step, loss) / band.at(step)[1] - 1 for step, loss in points)


def report_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """False alarms among healthy targets, and when each wrong rate is noticed."""
    healthy = [row for row in rows if row["rate"] == 1]
    alarms = [row for row in healthy if row["halted_at"] is not None]
    yield f"healthy targets: {len(healthy)}, halted: {len(alarms)}"
    yield f"the highest against its limit, if only for a while: {100 * max(row['excess'] for row in healthy):+.1f} %"
    for row in alarms:
        yield f"  false alarm: {row['study']}, seed {row['seed']}, width {row['width']}, {row['steps']} steps"
    yield ""
    stop_column = "share of the steps at the stop, median (range)"
    loss_column = "loss against the best rate's, of those that finished"
    yield f"| rate | targets | halted | diverged | stopped by either | {stop_column} | {loss_column} |"
    yield "|---|---|---|---|---|---|---|"
    for factor in WRONG:
        group = [row for row in rows if row["rate"] == factor]
        halted = [row for row in group if row["halted_at"] is not None]
        diverged = [row for row in group if row["diverged_at"] is not None]
        ends = [min(row["halted_at"] or math.inf, row["diverged_at"] or math.inf) / row["steps"] for row in group]
        shares = sorted(end for end in ends if end < math.inf)
        when = "-"
        if shares:
            when = f"{100 * shares[len(shares) // 2]:.0f} % ({100 * shares[0]:.0f} to {100 * shares[-1]:.0f} %)"
        counts = f"{len(group)} | {len(halted)} | {len(diverged)} | {len(shares)}"
        costs = [row["metric"] / _same_at_best(healthy, row)["metric"] - 1 for row in group if row["metric"]]
        cost = f"{100 * min(costs):+.1f} to {100 * max(costs):+.1f} %" if costs else "-"
        yield f"| {factor}x | {counts} | {when} | {cost} |"


def _same_at_best(healthy: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The healthy target of the same study, seed, width and length."""
    names = ("study", "seed", "width", "times")
    return next(other for other in healthy if all(other[name] == row[name] for name in names))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="seeds per study")
    seeds = parser.parse_args(arguments).seeds
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for name in STUDIES:
            rows += study(name, seed)
            print(f"{name}, seed {seed}: {len(rows)} targets", file=sys.stderr, flush=True)
    print("\n".join(report_lines(rows)))
    (ROOT / "docs" / "guard.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
