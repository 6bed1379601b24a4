"""Does the best value of a setting stay put while the task grows, and how surely?

A person who reads the argmin off a grid believes it, and learns at the large run that it was wrong. So the question is
asked in loss, with error bars: what does the largest task lose by using the optimum of a smaller one? The answer is

    transfers   the 95 % upper bound of that regret is at most TOLERATED_REGRET, or every axis value has the same grid
                optimum; and every optimum lies inside the grid
    drifts      the optimum's drift per doubling excludes 0, and the regret surely exceeds NOTABLE_REGRET or the optimum
                of the smallest diverges at the largest (there a grid optimum that marches on is drift enough)
    abstains    otherwise: the optimum at the grid's edge, too few points, noise larger than the differences

with one sentence that says why, and from which axis value on it transfers. Curves, noise and their intervals are
`muxfer.analysis.curves`. Records of a target, and trials that failed, say nothing here. A trial that diverged says that
the optimum lies to its side: it closes a bracket, it is not dropped.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from muxfer.analysis.cells import (
    CLOSES,
    TOLERATED_REGRET,
    Best,
    Table,
    best_slice,
    bracket,
    percent,
    setting_number,
    settled_table,
    shown,
)
from muxfer.analysis.rows import Band, FittedTable
from muxfer.analysis.scattered import best_scattered, is_scattered, judge_scattered
from muxfer.trial import Record, Regret, Verdict

NOTABLE_REGRET = 0.005
"""An optimum that drifts is worth a word once the largest task surely loses more than this share."""


def judge(records: Sequence[Record], *, axis: str, hp: str, log2_hp: bool = True) -> Verdict:
    """Whether the optimum of `hp` transfers along `axis`.

    `log2_hp` takes log2 of the setting before a curve is fitted; leave it off where it is log2 already. Where further
    settings vary they are held at their best (see `at_best_others`). BadInput when a record lacks one of the two
    settings, or has text for it.
    """
    if is_scattered(records, axis, hp):
        return judge_scattered(records, axis=axis, hp=hp)
    return judge_table(settled_table(records, axis, hp), axis=axis, hp=hp, log2_hp=log2_hp)


def judge_table(table: Table, *, axis: str, hp: str, log2_hp: bool = True, paired: bool = True) -> Verdict:
    """As `judge`, from cells. `paired` False: replicates of different cells share nothing."""
    study = FittedTable(table, log2_hp=log2_hp, paired=paired)
    rows = study.rows
    optimum = {value: row.optimum() for value, row in rows.items()}
    regret = study.regrets()
    drift = study.drift()
    reading, why, from_ = _read(study, regret, drift, axis, hp)
    return Verdict(
        verdict=reading,
        why=why,
        axis=axis,
        hp=hp,
        log2_hp=log2_hp,
        optimum=optimum,
        drift_per_doubling=drift,
        regret=regret,
        from_=from_,
        noise=None if study.noise is None else math.sqrt(study.noise.variance),
    )


def bands(records: Sequence[Record], *, axis: str, hp: str, log2_hp: bool = True) -> Mapping[float, Band]:
    """The fitted curve of each axis value that has one, between the outermost points that shape it."""
    if is_scattered(records, axis, hp):
        return {}
    study = FittedTable(settled_table(records, axis, hp), log2_hp=log2_hp, paired=True)
    found = {}
    for value, row in study.rows.items():
        if (curve := row.curve) is None:
            continue
        used = row.points.positions[curve.used]
        x = np.linspace(used[0], used[-1], 41)
        mean, level = curve.at(x), row.points.level
        spread = np.zeros_like(mean)
        if (noise := study.noise) is not None:
            spread = noise.quantile * np.sqrt(noise.variance * curve.variance_at(x))
        found[value] = Band(
            positions=tuple(row.setting_at(place) for place in x),
            mean=tuple((level * mean).tolist()),
            low=tuple((level * (mean - spread)).tolist()),
            high=tuple((level * (mean + spread)).tolist()),
        )
    return found


def best_setting(records: Sequence[Record], *, axis: str, hp: str, log2_hp: bool = True) -> Best | None:
    """What the study recommends: the smoothed choice at the largest axis value. None: nothing finished there."""
    if is_scattered(records, axis, hp):
        found = best_scattered(records, axis=axis)
        return None if found is None else Best(setting=found[0], metric=found[1], records=found[2])
    records = best_slice(records, axis, hp)
    table = settled_table(records, axis, hp)
    if not table:
        return None
    row = FittedTable(table, log2_hp=log2_hp, paired=True).rows[max(table)]
    if row.choice is None or row.choice.mean is None:
        return None
    place = (row.choice.axis, row.choice.hp)
    same = [r for r in records if (setting_number(r, axis), setting_number(r, hp)) == place and r.metric is not None]
    same.sort(key=lambda record: (record.metric, record.replicate))
    return Best(setting=dict(same[0].setting), metric=row.choice.mean, records=tuple(same))


def inside_grid(records: Sequence[Record], *, axis: str, hp: str) -> bool:
    """Whether the best setting at the largest axis value has a settled neighbour on both sides, diverged or not."""
    if is_scattered(records, axis, hp):
        return best_scattered(records, axis=axis) is not None  # drawn between bounds: there is no next value to try
    table = settled_table(records, axis, hp)
    if not table:
        return False
    row = FittedTable(table, log2_hp=True, paired=True).rows[max(table)]
    return row.choice is not None and None not in bracket(row.cells, row.choice)


def _transfers_from(study: FittedTable, regret: Sequence[Regret], first: float) -> bool:
    """Whether the axis values from `first` on transfer to the largest."""
    rows = {axis: row for axis, row in study.rows.items() if axis >= first}
    if len(rows) < 2 or any(row.choice is None or not row.closed(row.choice) for row in rows.values()):
        return False
    if any(sum(cell.outcome in CLOSES for cell in row.cells.values()) < 3 for row in rows.values()):
        return False
    own = [r for r in regret if r.from_ >= first]
    if len(own) < len(rows) - 1:
        return False
    grids = {row.grid.hp for row in rows.values() if row.grid is not None}
    if len(grids) == 1 and all(row.grid is not None and row.closed(row.grid) for row in rows.values()):
        return True
    return all(r.high is not None and r.high <= TOLERATED_REGRET * (1 + 1e-9) for r in own)


def _read(
    study: FittedTable, regret: Sequence[Regret], drift: Mapping[str, float | None], axis: str, hp: str
) -> tuple[str, str, float | None]:
    rows = study.rows
    if len(rows) < 2:
        held = f"every trial has {axis} {min(rows):g}" if rows else "no trial has settled"
        return "abstains", f"{held}: transfer needs at least two values of {axis}", None
    smallest, largest = min(rows), max(rows)
    for value, row in rows.items():
        num_points = sum(cell.outcome in CLOSES for cell in row.cells.values())
        if row.grid is None:
            return "abstains", f"no {hp} of the {num_points} tried has a finite loss at {axis} {value:g}", None
        if num_points < 3:
            why = f"{axis} {value:g} has {num_points} values of {hp}: an optimum needs at least 3"
            return "abstains", why, None
    from_ = next((value for value in rows if _transfers_from(study, regret, value)), None)
    later = f"; from {axis} {from_:g} on it transfers" if from_ not in (None, smallest) else ""
    chosen = rows[smallest].choice
    assert chosen is not None
    subject = f"the optimum of {axis} {smallest:g} ({hp} {shown(chosen.hp)})"
    found = next((r for r in regret if r.from_ == smallest), None)
    if found is None:
        return "abstains", f"{subject} has no result at {axis} {largest:g}: run it there{later}", from_
    low, high = drift["low"], drift["high"]
    moves = low is not None and high is not None and (low > 0 or high < 0)
    # An optimum at the grid's end does not soften these two: the true one lies farther out, and would cost more.
    if found.estimate is None:
        surely = moves or (low is None and study.marches())
        return "drifts" if surely else "abstains", f"{subject} diverges at {axis} {largest:g}{later}", from_
    cost = f"{subject} costs {percent(found.estimate)}{_at_most(found)} at {axis} {largest:g}"
    if moves and any(r.low is not None and r.low > NOTABLE_REGRET for r in regret):
        assert drift["value"] is not None
        unit = "in log2 " if study.log2_hp else ""
        return "drifts", f"{cost}, and it moves by {drift['value']:+.2f} {unit}per doubling{later}", from_
    for value, row in rows.items():
        if (best := row.choice) is None:
            continue
        below, above = bracket(row.cells, best)
        if len(row.finished) > 2 and len({cell.mean for cell in row.finished}) == 1:
            return "abstains", f"at {axis} {value:g} the metric does not depend on {hp}{later}", from_
        if below is None or above is None:
            end, side = ("lower", "below") if below is None else ("upper", "above")
            at_end = f"the optimum of {axis} {value:g} is the grid's {end} end ({hp} {shown(best.hp)})"
            return "abstains", f"{at_end}: extend the grid {side} it{later}", from_
    if from_ == smallest:
        if found.high is None or found.high <= TOLERATED_REGRET:
            return "transfers", f"{cost}, and the optimum lies inside the grid at every {axis}", from_
        same = f"every {axis} has the same grid optimum ({hp} {shown(found.setting)}), inside the grid"
        return "transfers", f"{same}; noise alone bounds its cost by {percent(found.high)}", from_
    if study.noise is None:
        return "abstains", f"{cost}, and nothing tells the noise: add values of {hp} or seeds{later}", from_
    bound = max((r for r in regret if r.high is not None), key=lambda r: r.high or 0.0, default=found)
    unsure = f"{cost}; it may be more than the tolerated {100 * TOLERATED_REGRET:g} %"
    if bound is not found and (found.high or 0.0) <= TOLERATED_REGRET:
        unsure = f"the optimum of {axis} {bound.from_:g} may cost {percent(bound.high or 0.0)} at {axis} {largest:g}"
    noise = percent(math.sqrt(study.noise.variance))
    return "abstains", f"{unsure}, and one trial's noise is {noise}: add seeds or values of {hp}{later}", from_


def _at_most(regret: Regret) -> str:
    return "" if regret.high is None else f" (at most {percent(regret.high)})"
