"""How often the verdict is right, on synthetic studies whose truth is known: `python -m benchmarks.calibration`.

A study has widths 64, 128, .. and rates one grid step apart. A loss is level x (1 + cost(x - optimum)) x (1 + noise),
x and the optimum in log2 of the rate. The optimum of the middle width is drawn within half a step of the grid's middle;
it moves by `drift` per doubling. `SHAPES` has the costs. The command writes docs/data/calibration.json and prints the
table of docs/verdict.md.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from muxfer.analysis.cells import TOLERATED_REGRET, Cell, Table
from muxfer.analysis.transferability import judge_table
from muxfer.files import replace_file
from muxfer.trial import Outcome, Verdict, VerdictKind

ROOT = Path(__file__).parents[1]
INTERVALS = ("optimum", "drift", "regret")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """left · d² / (1 + |d| / bend) below the optimum, right · d² above it, d in log2; diverged beyond `wall`."""

    left: float
    right: float
    bend: float = np.inf
    wall: float = np.inf

    def cost(self, d: np.ndarray) -> np.ndarray:
        """NaN where the run diverges."""
        cost = np.where(d < 0, self.left * d**2 / (1 + np.abs(d) / self.bend), self.right * d**2)
        return np.where(d > self.wall, np.nan, cost)


SHAPES = {
    "quadratic": Shape(left=0.015, right=0.015),
    "language": Shape(left=0.005, bend=3, right=0.02, wall=1.6),
    "digits": Shape(left=0.06, bend=3, right=0.13, wall=1.7),
    "flat": Shape(left=0.0015, bend=2, right=0.03, wall=1.1),
    "kink": Shape(left=0.0225, right=0.0075),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of study. `noise` is relative, and `drift`, `step` and `offset` are in log2 of the rate.

    `block`: standard deviation of what a seed adds to all its trials of a width. `growth`: powers of two by which the
    noise grows per doubling of the rate. `missing`: share of cells that were not run. `outliers`: share of trials that
    lose ten times the noise more. `offset`: where the optimum lies, from the grid's middle. `sharpening`: by how much
    the curve's cost grows per doubling of the width.
    """

    shape: str
    noise: float
    seeds: int
    drift: float = 0.0
    widths: int = 3
    rates: int = 7
    step: float = 1.0
    block: float = 0.0
    growth: float = 0.0
    missing: float = 0.0
    outliers: float = 0.0
    offset: float = 0.0
    sharpening: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Study:
    """A drawn study: its cells by width and log2 of the rate, the true optimum and the true costs of each width."""

    table: Table
    optimum: dict[float, float]
    costs: dict[float, dict[float, float]]
    """NaN where the run diverges."""

    def true_regret(self, width: float, rate: float) -> float:
        """Against the best rate that was run at this width."""
        tried = [self.costs[width][hp] for hp in self.table[width]]
        return (1 + self.costs[width][rate]) / (1 + np.nanmin(tried)) - 1


@dataclass
class Tally:
    """What was seen over the studies of a case."""

    verdicts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, VerdictKind), 0))
    covered: dict[str, list[bool]] = field(default_factory=lambda: {name: [] for name in INTERVALS})
    wrong: int = 0
    """Verdicts `transfers` although the largest width loses more than the tolerated share."""
    choice: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    """True regret at a width of the value that muxfer takes, and of the lowest mean."""


def synthetic(case: Case, rng: np.random.Generator) -> Study:
    shape = SHAPES[case.shape]
    x = (np.arange(case.rates) - (case.rates - 1) / 2) * case.step
    doublings = np.arange(case.widths) - (case.widths - 1) / 2
    optima = case.offset + rng.uniform(-0.5, 0.5) * case.step + case.drift * doublings
    table: dict[float, dict[float, Cell]] = {}
    costs = {}
    for k, optimum in enumerate(optima):
        cost = shape.cost(x - optimum) * (1 + case.sharpening) ** k
        scale = case.noise * 2.0 ** (case.growth * (x - optimum))
        noise = scale[:, None] * rng.standard_normal((case.rates, case.seeds))
        noise = noise + case.block * rng.standard_normal(case.seeds)
        noise = noise + 10 * case.noise * (rng.random(noise.shape) < case.outliers)
        losses = 0.85**k * (1 + cost[:, None]) * (1 + noise)
        kept = rng.random(case.rates) >= case.missing
        width = 64.0 * 2**k
        table[width] = {
            hp: _cell(width, hp, row) for hp, row, keep in zip(x.tolist(), losses, kept, strict=True) if keep
        }
        costs[width] = dict(zip(x.tolist(), cost.tolist(), strict=True))
    return Study(table=table, optimum=dict(zip(table, optima.tolist(), strict=True)), costs=costs)


def _cell(width: float, hp: float, losses: np.ndarray) -> Cell:
    if np.isnan(losses).any():
        return Cell(axis=width, hp=hp, outcome=Outcome.DIVERGED, metrics={}, mean=None, step=1)
    metrics, mean = dict(enumerate(losses.tolist())), float(losses.mean())
    return Cell(axis=width, hp=hp, outcome=Outcome.FINISHED, metrics=metrics, mean=mean, step=1)


def measured(case: Case, *, studies: int, seed: int = 0) -> dict[str, Any]:
    """Shares of verdicts, coverage of the 95 % intervals that were printed, and the mean true regret of the choice."""
    rng = np.random.default_rng([seed, crc32(repr(case).encode())])
    tally = Tally()
    for _ in range(studies):
        study = synthetic(case, rng)
        judged = judge_table(study.table, axis="width", hp="rate", log2_hp=False)
        _note(tally, judged, study, case)
    printed = {f"{name}_printed": len(tally.covered[name]) for name in INTERVALS}
    return {
        **{kind: count / studies for kind, count in tally.verdicts.items()},
        "wrong": tally.wrong / studies,
        **{f"{name}_covered": _mean(tally.covered[name]) for name in INTERVALS},
        **printed,
        "choice": _mean(tally.choice),
        "plain": _mean(tally.plain),
    }


def _note(tally: Tally, judged: Verdict, study: Study, case: Case) -> None:
    tally.verdicts[judged.verdict] += 1
    largest = max(study.table)
    smallest = judged.optimum[min(study.table)].choice
    if judged.verdict is VerdictKind.TRANSFERS and smallest is not None:
        tally.wrong += not study.true_regret(largest, smallest) <= TOLERATED_REGRET
    for width, optimum in judged.optimum.items():
        _note_coverage(tally, "optimum", optimum.low, study.optimum[width], optimum.high)
        if optimum.grid is not None and optimum.choice is not None:
            tally.choice.append(study.true_regret(width, optimum.choice))
            tally.plain.append(study.true_regret(width, optimum.grid))
    drift = judged.drift_per_doubling
    _note_coverage(tally, "drift", drift["low"], case.drift, drift["high"])
    for regret in judged.regret:
        true = study.true_regret(largest, regret.choice) if regret.choice is not None else 0.0
        _note_coverage(tally, "regret", regret.low, true, regret.high)


def _note_coverage(tally: Tally, name: str, low: float | None, truth: float, high: float | None) -> None:
    """None is an open end; an interval with two open ends is none."""
    if low is not None or high is not None:
        tally.covered[name].append((low is None or low <= truth + 1e-12) and (high is None or truth <= high + 1e-12))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def cases() -> list[Case]:
    return [
        *[Case(shape="quadratic", noise=0.01, seeds=s, drift=d, rates=5) for s in (1, 3) for d in (0, 0.5, 1)],
        *[Case(shape="quadratic", noise=0.01, seeds=s, drift=d) for s in (1, 3) for d in (0, 0.5, 1)],
        *[Case(shape="quadratic", noise=0.01, seeds=3, drift=d, block=0.02) for d in (0, 1)],
        *[Case(shape="quadratic", noise=n, seeds=3, drift=-0.3) for n in (0.002, 0.0002)],
        *[Case(shape="language", noise=0.002, seeds=s, drift=d) for s in (1, 3) for d in (0, -0.5, -1)],
        *[Case(shape="language", noise=0.0002, seeds=s, drift=-0.3) for s in (1, 3)],
        Case(shape="language", noise=0.002, seeds=2, drift=-0.5, growth=1),
        *[Case(shape="language", noise=0.002, seeds=2, drift=-0.5, step=s, rates=r) for s, r in ((0.5, 11), (2, 5))],
        *[Case(shape="language", noise=0.002, seeds=2, drift=d, widths=w) for w in (2, 5) for d in (0, -0.5)],
        Case(shape="language", noise=0.002, seeds=5, drift=-0.5, widths=4),
        *[Case(shape="digits", noise=n, seeds=s, drift=d) for n in (0.005, 0.02) for s in (1, 3) for d in (0, -1)],
        *[Case(shape="digits", noise=0.01, seeds=s, drift=d, widths=2) for s in (1, 2) for d in (0, -1)],
        *[Case(shape="digits", noise=0.01, seeds=2, drift=d, missing=m) for m in (0.15, 0.3) for d in (0, -0.5)],
        *[Case(shape="digits", noise=0.005, seeds=s, drift=-0.5, outliers=0.05) for s in (1, 3)],
        *[Case(shape="digits", noise=0.01, seeds=2, drift=d, offset=2.5) for d in (0, 0.5)],
        *[Case(shape="digits", noise=0.01, seeds=2, drift=d, sharpening=0.3) for d in (0, -0.5)],
        *[Case(shape="flat", noise=0.003, seeds=s, drift=d) for s in (1, 3) for d in (0, -1)],
        *[Case(shape="kink", noise=0.01, seeds=s, drift=d) for s in (1, 3) for d in (0, 1)],
    ]  # fmt: skip


def differences(case: Case) -> str:
    """The case in words: what differs from the defaults."""
    default = Case(shape="", noise=0, seeds=0)
    names = ("widths", "rates", "step", "block", "growth", "missing", "outliers", "offset", "sharpening")
    changed = [(name, getattr(case, name)) for name in names if getattr(case, name) != getattr(default, name)]
    return ", ".join([case.shape, *(f"{name} {value:g}" for name, value in changed)])


def table_text(rows: Sequence[tuple[Case, dict[str, Any]]]) -> str:
    lines = [
        "| curve | noise | seeds | drift | transfers | wrong | drifts | abstains | optimum | drift | regret | choice |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, row in rows:
        shares = " | ".join(f"{100 * row[name]:.1f}" for name in ("transfers", "wrong", "drifts", "abstains"))
        covered = " | ".join(
            "-" if (share := row[f"{name}_covered"]) is None else f"{100 * share:.1f}" for name in INTERVALS
        )
        regrets = f"{100 * row['choice']:.3f} ({100 * row['plain']:.3f})"
        settings = f"{differences(case)} | {100 * case.noise:g} | {case.seeds} | {case.drift:g}"
        lines.append(f"| {settings} | {shares} | {covered} | {regrets} |")
    return "\n".join(lines)


def _measured(case: Case, studies: int) -> dict[str, Any]:
    return measured(case, studies=studies)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.processes) as pool:
        results = list(pool.map(_measured, cases(), [arguments.studies] * len(cases())))
    rows = list(zip(cases(), results, strict=True))
    content = [{**asdict(case), **row, "studies": arguments.studies} for case, row in rows]
    replace_file(ROOT / "docs" / "data" / "calibration.json", (json.dumps(content, indent=1) + "\n").encode())
    print(table_text(rows))


if __name__ == "__main__":
    main()
