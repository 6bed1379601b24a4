"""How often the verdict is right, on synthetic studies whose truth is known: `python -m benchmarks.calibration`.

A study has widths 64, 128, 256, rates one grid step apart, and losses level x (1 + shape(x - optimum)) x (1 + noise).
The optimum of the middle width is drawn within half a step of the grid's middle. It drifts by a fixed number of steps
per doubling. The command writes docs/data/calibration.json and prints the table of docs/verdict.md.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from muxfer.analysis.cells import Cell, Table
from muxfer.analysis.transferability import judge_table
from muxfer.files import replace_file
from muxfer.trial import Outcome, Verdict, VerdictKind

ROOT = Path(__file__).parents[1]
WIDTHS = (64.0, 128.0, 256.0)
LEVELS = (1.0, 0.8, 0.65)
CURVATURE = 0.015


def quadratic(x: np.ndarray) -> np.ndarray:
    return CURVATURE * x**2


def skewed(x: np.ndarray) -> np.ndarray:
    """Three times as steep on the right as on the left, as learning rates are. Smooth at the optimum."""
    return np.where(x > 0, 1.5, 0.5) * CURVATURE * x**2


def cliff(x: np.ndarray) -> np.ndarray:
    """A quadratic with a third power that grows to the right: +1 step costs 2.2 %, -1 step 0.8 %."""
    return CURVATURE * x**2 + 0.5 * CURVATURE * np.clip(x, -1.5, None) ** 3


SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"quadratic": quadratic, "skewed": skewed, "cliff": cliff}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of study: its curve, its numbers of rates and seeds, and its drift in steps per doubling."""

    shape: str = "quadratic"
    rates: int
    seeds: int
    drift: float
    noise: float = 0.01
    block: float = 0.0
    """Relative standard deviation of what a seed adds to all its trials of one width alike."""


def synthetic(case: Case, rng: np.random.Generator) -> tuple[Table, np.ndarray]:
    """Cells by width and log2 of the rate, and the true optimum of each width."""
    x = _grid(case)
    optimum = rng.uniform(-0.5, 0.5) + case.drift * (np.arange(len(WIDTHS)) - (len(WIDTHS) - 1) / 2)
    table: dict[float, dict[float, Cell]] = {}
    for width, level, place in zip(WIDTHS, LEVELS, optimum, strict=True):
        blocks = case.block * rng.standard_normal(case.seeds)
        noise = case.noise * rng.standard_normal((case.rates, case.seeds))
        loss = level * (1 + SHAPES[case.shape](x - place))[:, None] * (1 + noise + blocks)
        table[width] = {hp: _cell(width, hp, row) for hp, row in zip(x.tolist(), loss, strict=True)}
    return table, optimum


def _cell(width: float, hp: float, losses: np.ndarray) -> Cell:
    metrics, mean = dict(enumerate(losses.tolist())), float(losses.mean())
    return Cell(axis=width, hp=hp, outcome=Outcome.FINISHED, metrics=metrics, mean=mean, step=1)


def measured(case: Case, *, studies: int, seed: int = 0) -> dict[str, Any]:
    """Shares of verdicts, and how often the 95 % intervals of optimum, drift and regret hold the truth."""
    place = sorted(SHAPES).index(case.shape)
    rng = np.random.default_rng([seed, case.rates, case.seeds, round(10 * case.drift), place])
    verdicts: Counter[VerdictKind] = Counter()
    covers: dict[str, list[bool]] = {"optimum": [], "drift": [], "regret": []}
    for _ in range(studies):
        table, truth = synthetic(case, rng)
        judged = judge_table(table, axis="width", hp="rate", log2_hp=False)
        verdicts[judged.verdict] += 1
        _note_coverage(judged, case, truth, covers)
    return {
        **{str(kind): verdicts[kind] / studies for kind in VerdictKind},
        **{f"{name}_covered": float(np.mean(covered)) if covered else None for name, covered in covers.items()},
        "optima_fitted": len(covers["optimum"]) / (studies * len(WIDTHS)),
    }


def _note_coverage(judged: Verdict, case: Case, truth: np.ndarray, covers: dict[str, list[bool]]) -> None:
    """Add to `covers`, for each interval of this verdict, whether it holds the truth."""
    for place, optimum in zip(truth, judged.optimum.values(), strict=True):
        if optimum.low is not None or optimum.high is not None:  # None: open on that side
            low, high = optimum.low, optimum.high
            covers["optimum"].append((low is None or low <= place) and (high is None or place <= high))
    low, high = judged.drift_per_doubling["low"], judged.drift_per_doubling["high"]
    if low is not None and high is not None:
        covers["drift"].append(bool(low <= case.drift <= high))
    shape = SHAPES[case.shape]
    rates = _grid(case)
    best = (1 + shape(rates - truth[-1])).min()
    for regret in judged.regret:
        if regret.low is not None and regret.high is not None and regret.choice is not None:
            true = float((1 + shape(np.array([regret.choice - truth[-1]])))[0] / best - 1)
            covers["regret"].append(bool(regret.low - 1e-12 <= true <= regret.high + 1e-12))


def _grid(case: Case) -> np.ndarray:
    """The rates, in steps from the grid's middle."""
    return np.arange(case.rates) - (case.rates - 1) / 2


def cases() -> list[Case]:
    quadratics = [Case(rates=r, seeds=s, drift=d) for r in (5, 7) for s in (1, 3) for d in (0.0, 0.5, 1.0)]
    blocks = [Case(rates=7, seeds=3, drift=d, block=0.02) for d in (0.0, 1.0)]
    kinds = product(("skewed", "cliff"), (1, 3), (0.0, 1.0))
    others = [Case(shape=shape, rates=7, seeds=s, drift=d) for shape, s, d in kinds]
    return [*quadratics, *blocks, *others]


def table_text(rows: Sequence[tuple[Case, dict[str, Any]]]) -> str:
    lines = [
        "| curve | rates | seeds | drift | transfers | drifts | abstains | optimum | drift | regret |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, row in rows:
        shape = case.shape + (f", seeds differ by {100 * case.block:g} %" if case.block else "")
        shares = " | ".join(f"{100 * row[name]:.1f} %" for name in VerdictKind)
        covered = " | ".join(
            "-" if (share := row[f"{name}_covered"]) is None else f"{100 * share:.1f} %"
            for name in ("optimum", "drift", "regret")
        )
        lines.append(f"| {shape} | {case.rates} | {case.seeds} | {case.drift:g} | {shares} | {covered} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    rows = [(case, measured(case, studies=studies)) for case in cases()]
    content = [{**vars(case), **row, "studies": studies} for case, row in rows]
    replace_file(ROOT / "docs" / "data" / "calibration.json", (json.dumps(content, indent=1) + "\n").encode())
    print(table_text(rows))


if __name__ == "__main__":
    main()
