"""`python -m benchmarks.evidence`: what a transferred rate loses at 8 times the width, and μP's target beside SP's.

It reads docs/data/evidence-*.csv, the trials of the sweeps that docs/evidence.md names. It writes that page's tables
and docs/img/evidence.png. `--export NAME FOLDER [OVERRIDE ...]` takes the trials from the ledger in FOLDER first. Costs
are parameters x samples (equation 1 of the μP paper), in runs of the target. Choices are made on the sweeps' own three
seeds. The two compared targets were run with more seeds, which count for their losses alone.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import recorded
from benchmarks.page import replace_section
from muxfer.analysis.cells import percent, settled_table, shown
from muxfer.analysis.proxy_size import parameters_times_samples
from muxfer.analysis.quantiles import t_quantile
from muxfer.analysis.transferability import bands, judge
from muxfer.files import replace_file
from muxfer.report.figures.u_curves import compare_figure
from muxfer.trial import Record

SMALLEST, TARGET = 32.0, 256.0
COST = parameters_times_samples(64)
"""By the batch size of every run."""
NUM_SEEDS = 3
"""Seeds of the sweeps. Every choice is made on these."""
PAGE = recorded.DATA.parent / "evidence.md"
PICTURE = recorded.DATA.parent / "img" / "evidence.png"
START, END = "<!-- written by python -m benchmarks.evidence -->", "<!-- end -->"
GOAL = 0.01
"""The largest regret that the transferred setting may have at 8 times the smallest width."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean over seeds of a relative difference, with its 95 % t interval."""

    mean: float
    low: float
    high: float
    num_seeds: int

    def __str__(self) -> str:
        interval = f"{100 * self.low:+.2f} to {100 * self.high:+.2f}; {self.num_seeds} seeds"
        return f"{100 * self.mean:+.2f} % ({interval})"


@dataclass(frozen=True, kw_only=True)
class Side:
    """The sweep under one parametrization, and `more` seeds of the target at the setting that it chose."""

    name: str
    records: Sequence[Record]
    more: Sequence[Record]

    def losses(self, rate: float) -> Mapping[int, float]:
        """The target's loss at this rate by seed; empty where a seed diverged, or the rate was never run."""
        cell = settled_table([*self.records, *self.more], "width", "base_lr")[TARGET].get(rate)
        return cell.metrics if cell is not None and cell.mean is not None else {}


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to tune the target's rate: its name, its cost, its choice and the target's losses by seed."""

    name: str
    cost: float
    choice: float
    losses: Mapping[int, float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses.values()) if self.losses else math.inf


def paired(losses: Mapping[int, float], others: Mapping[int, float]) -> Difference:
    """The relative excess of `losses` over `others`, seed by seed: batches and noise of a seed are the same."""
    seeds = sorted(losses.keys() & others.keys())
    excesses = [losses[seed] / others[seed] - 1 for seed in seeds]
    mean = statistics.fmean(excesses)
    spread = t_quantile(len(excesses) - 1) * statistics.stdev(excesses) / math.sqrt(len(excesses))
    return Difference(mean=mean, low=mean - spread, high=mean + spread, num_seeds=len(excesses))


def cost_of(records: Sequence[Record], run: float) -> float:
    return math.fsum(COST(record) for record in records) / run


def run_cost(records: Sequence[Record]) -> float:
    return max(COST(record) for record in records if record.setting["width"] == TARGET)


def at_width(records: Sequence[Record], width: float) -> list[Record]:
    return [record for record in records if record.setting["width"] == width]


def chosen(records: Sequence[Record], width: float) -> float:
    """The smoothed choice of a sweep, from this width alone."""
    choice = judge(at_width(records, width), axis="width", hp="base_lr").optimum[width].choice
    assert choice is not None
    return choice


def regret_table(side: Side) -> list[str]:
    mup = side.records
    judged = judge(mup, axis="width", hp="base_lr")
    table = settled_table(mup, "width", "base_lr")
    run = run_cost(mup)
    band = bands(mup, axis="width", hp="base_lr")[TARGET]
    best = chosen(mup, TARGET)
    lines = [
        f"Regret at width {TARGET:g} of what a smaller width chooses, against the best of width {TARGET:g}'s own sweep"
        f" ({shown(best)}):",
        "",
        "| tuned at width | cost, runs of the target | choice | seeds that alone choose so | regret, by seed |"
        " regret, 95 % upper bound | fitted optimum (95 %) | regret of the fitted optimum |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for regret in judged.regret:
        width, choice = regret.from_, regret.choice
        assert choice is not None
        assert regret.high is not None
        optimum = judged.optimum[width]
        assert optimum.fitted is not None
        seeds = sorted({record.replicate for record in at_width(mup, width)})
        alone = [min((c.metrics[s], c.hp) for c in table[width].values() if s in c.metrics)[1] for s in seeds]
        by_seed = str(paired(side.losses(choice), side.losses(best))) if choice != best else "0, the same rate"
        fitted = np.interp(optimum.fitted, band.positions, band.mean) / min(band.mean) - 1
        lines.append(
            f"| {width:g} | {cost_of(at_width(mup, width), run):.3f} | {shown(choice)} | {alone.count(choice)} of"
            f" {len(seeds)} | {by_seed} | {percent(regret.high)} | {_log2(optimum.fitted)}"
            f" ({_log2(optimum.low)} to {_log2(optimum.high)}) | {percent(float(fitted))} |"
        )
    first = judged.regret[0]
    assert first.high is not None
    met = "met" if first.from_ == SMALLEST and first.high <= GOAL else "**not met**"
    drift = judged.drift_per_doubling
    lines += [
        "",
        f"The goal, at most {100 * GOAL:g} % from width {SMALLEST:g} to {TARGET:g}: {met}. `muxfer verdict`:"
        f" {judged.verdict}; {judged.why}. The fitted optimum moves by {drift['value']:+.2f}"
        f" ({drift['low']:+.2f} to {drift['high']:+.2f}) in log2 of the rate per doubling of the width.",
    ]
    return lines


def _log2(rate: float | None) -> str:
    return "unknown" if rate is None else f"2^{math.log2(rate):.2f}"


def ways(mup: Side, sp: Side, shorts: Mapping[int, Sequence[Record]]) -> dict[float, tuple[Way, list[Way]]]:
    """For each proxy width the μP target, and the SP targets whose tuning cost as much; `shorts` by their steps.

    Proxies of the same size cost the same, except for runs that diverged. Short runs are taken where they cost at most
    as much.
    """
    run = run_cost(mup.records)
    by_width: dict[float, tuple[Way, list[Way]]] = {}
    for width in (32.0, 64.0):
        own = at_width(mup.records, width)
        rates = {record.setting["base_lr"] for record in own}
        same = [record for record in at_width(sp.records, width) if record.setting["base_lr"] in rates]
        ours = _way(f"μP tuned at width {width:g}", own, width, mup, run)
        theirs = [_way(f"SP tuned at width {width:g}, the same rates and seeds", same, width, sp, run)]
        for steps, short in shorts.items():
            if cost_of(short, run) <= ours.cost:
                name = f"SP tuned at width {TARGET:g}, {len(short)} runs of {steps} steps, one seed"
                theirs.append(_way(name, short, TARGET, sp, run))
        by_width[width] = (ours, theirs)
    return by_width


def _way(name: str, tuned_on: Sequence[Record], width: float, side: Side, run: float) -> Way:
    choice = chosen(tuned_on, width)
    return Way(name=name, cost=cost_of(tuned_on, run), choice=choice, losses=side.losses(choice))


def comparison_table(mup: Side, sp: Side, shorts: Mapping[int, Sequence[Record]]) -> list[str]:
    lines = [
        f"The target: width {TARGET:g}, 180 steps; its loss is the mean over its seeds. The difference is the μP"
        " target's loss over this one's, paired by seed, with a 95 % t interval; below 0 μP wins.",
        "",
        "| how the rate was found | tuning cost, runs of the target | rate | target's loss | μP target against it |",
        "|---|---|---|---|---|",
    ]
    judgements = []
    by_width = ways(mup, sp, shorts)
    for ours, theirs in by_width.values():
        lines.append(f"| **{ours.name}** | {ours.cost:.3f} | {shown(ours.choice)} | {ours.mean:.4f} | |")
        lines += [f"| {way.name} | {_row(way, ours)} |" for way in theirs]
        judgements.append(_judgement(ours, min(theirs, key=lambda way: way.mean)))
    ours, _ = by_width[SMALLEST]
    oracle = _oracle(sp, run_cost(mup.records))
    lines += [f"| {way.name} | {_row(way, ours)} |" for way in (oracle, _oracle(mup, run_cost(mup.records)))]
    ratio = (
        f"In the paper's terms (equation 1) μP tuned at width {SMALLEST:g} has a tuning cost ratio of"
        f" {percent(ours.cost)}, {percent(ours.cost / NUM_SEEDS)} a seed, for a target that trains no longer than its"
        " proxies."
    )
    return [*lines, "", *judgements, _judgement(ours, oracle), "", ratio]


def _oracle(side: Side, run: float) -> Way:
    """The way that tunes the target itself."""
    own = at_width(side.records, TARGET)
    num_rates = len({record.setting["base_lr"] for record in own})
    name = f"{side.name} tuned at the target itself, {num_rates} rates x {NUM_SEEDS} seeds"
    return _way(name, own, TARGET, side, run)


def _row(way: Way, ours: Way) -> str:
    loss = f"{way.mean:.4f}" if way.losses else "diverged"
    same = "the same" if way.losses == ours.losses else ""
    difference = same or str(paired(ours.losses, way.losses)) if way.losses else ""
    return f"{way.cost:.3f} | {shown(way.choice)} | {loss} | {difference}"


def _judgement(ours: Way, best: Way) -> str:
    pair = f"- {ours.name} against {best.name}"
    if not best.losses:
        return f"{pair}: **μP wins**, SP's target diverges."
    difference = paired(ours.losses, best.losses)
    first = paired({seed: loss for seed, loss in ours.losses.items() if seed < NUM_SEEDS}, best.losses)
    alone = "" if difference.num_seeds == first.num_seeds else f"; the sweeps' own seeds alone say {first}"
    if difference.low <= 0 <= difference.high:
        return f"{pair}: **undecided**, {difference}{alone}."
    return f"{pair}: **{'μP' if difference.high < 0 else 'SP'} wins**, {difference}{alone}."


def load() -> tuple[Side, Side, dict[int, list[Record]]]:
    sides = []
    for name, file in (("μP", "mup"), ("SP", "sp")):
        records = recorded.read(recorded.DATA / f"evidence-{file}.csv")
        more = recorded.read(recorded.DATA / f"evidence-{file}-seeds.csv")
        sides.append(Side(name=name, records=records, more=more))
    shorts = [recorded.read(path) for path in recorded.DATA.glob("evidence-sp-short-*.csv")]
    by_steps = {max(record.step for record in short): short for short in shorts}
    return sides[0], sides[1], dict(sorted(by_steps.items()))


def tables() -> str:
    mup, sp, shorts = load()
    return "\n".join([*regret_table(mup), "", *comparison_table(mup, sp, shorts)])


def draw() -> None:
    mup, sp, _ = load()
    panels = [(side.name, side.records, judge(side.records, axis="width", hp="base_lr")) for side in (mup, sp)]
    with tempfile.TemporaryDirectory() as folder:
        png, *_ = compare_figure(panels, Path(folder) / "evidence")
        replace_file(PICTURE, png.read_bytes())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--export", nargs="+", metavar=("NAME", "FOLDER"), help="mup, sp, ...; then overrides")
    request = parser.parse_args()
    if request.export:
        name, folder, *overrides = request.export
        os.chdir(folder)
        path, is_more = recorded.DATA / f"evidence-{name}.csv", name.endswith("-seeds")
        records = recorded.export("lr-width", overrides, path)
        recorded.write([record for record in records if (record.replicate >= NUM_SEEDS) == is_more], path)
    PAGE.write_text(replace_section(PAGE.read_text(), START, END, tables()))
    draw()
    print(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
