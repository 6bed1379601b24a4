"""The verdict: does the best value of a setting stay the same while the task grows, and how sure is that?

The argmin of a grid looks certain, and may prove wrong at the large run. So the question is asked in loss, with
intervals: what does the largest task lose by using the optimum of a smaller one? There are three verdicts:

    transfers   the 95 % upper bound of that regret is at most TOLERATED_REGRET, and every optimum lies inside the grid.
                Where nothing tells the noise, one grid optimum for all axis values takes the bound's place. An optimum
                that surely moves may transfer: the sentence then says by how much
    drifts      it does not transfer, the 95 % interval of the optimum's drift per doubling excludes 0, and the lower
                bound of a regret exceeds NOTABLE_REGRET or the optimum of the smallest diverges at the largest (there a
                grid optimum that marches on is drift enough)
    abstains    otherwise: the optimum at the grid's edge, too few points, noise larger than the differences

A verdict has one sentence that says why, and the axis value from which on the optimum transfers. Curves, noise and
their intervals are `muxfer.analysis.curves`; what is a result is `muxfer.analysis.cells`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from muxfer.analysis.cells import (
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
from muxfer.analysis.rows import Band, FittedRow, FittedTable
from muxfer.analysis.scattered import best_scattered, is_scattered, judge_scattered, one_value_reason
from muxfer.trial import Record, Regret, Verdict, VerdictKind

NOTABLE_REGRET = 0.005
"""An optimum that drifts matters once the largest task loses more than this share with 95 % certainty."""


def judge(records: Sequence[Record], *, axis: str, hp: str, log2_hp: bool = True) -> Verdict:
    """Whether the optimum of `hp` transfers along `axis`.

    `log2_hp` takes log2 of the setting before a curve is fitted; leave it off where the setting is log2 already.
    Further settings that vary are held at their best (see `best_slice`). BadInput when a record lacks one of the two
    settings, or has text for it.
    """
    if is_scattered(records, axis, hp):
        return judge_scattered(records, axis=axis, hp=hp)
    return judge_table(settled_table(records, axis, hp), axis=axis, hp=hp, log2_hp=log2_hp)


def judge_table(table: Table, *, axis: str, hp: str, log2_hp: bool = True, paired: bool = True) -> Verdict:
    """As `judge`, from cells. `paired` False: replicates of different cells share no randomness."""
    fitted = FittedTable(table, log2_hp=log2_hp, paired=paired)
    evidence = _Evidence(fitted=fitted, regret=fitted.regrets(), drift=fitted.drift, axis=axis, hp=hp)
    kind, why = evidence.verdict()
    return Verdict(
        verdict=kind,
        why=why,
        axis=axis,
        hp=hp,
        log2_hp=log2_hp,
        optimum={value: row.optimum() for value, row in fitted.rows.items()},
        drift_per_doubling=evidence.drift,
        regret=evidence.regret,
        from_=evidence.from_,
        noise=None if fitted.noise is None else fitted.noise.deviation,
    )


def bands(records: Sequence[Record], *, axis: str, hp: str, log2_hp: bool = True) -> Mapping[float, Band]:
    """The fitted curve of each axis value that has one, between the outermost points that shape it."""
    if is_scattered(records, axis, hp):
        return {}
    rows = FittedTable(settled_table(records, axis, hp), log2_hp=log2_hp).rows
    return {value: band for value, row in rows.items() if (band := row.band()) is not None}


def best_setting(records: Sequence[Record], *, axis: str, hp: str, log2_hp: bool = True) -> Best | None:
    """The setting that the study recommends: the smoothed choice at the largest axis value. None: nothing finished."""
    if is_scattered(records, axis, hp):
        return best_scattered(records, axis=axis)
    records = best_slice(records, axis, hp)
    table = settled_table(records, axis, hp)
    choice = FittedTable(table, log2_hp=log2_hp).largest.choice if table else None
    if choice is None or choice.mean is None:
        return None
    place = (choice.axis, choice.hp)
    at_place = [r for r in records if (setting_number(r, axis), setting_number(r, hp)) == place]
    return Best.of(at_place, metric=choice.mean)


def inside_grid(records: Sequence[Record], *, axis: str, hp: str) -> bool:
    """Whether the best setting at the largest axis value has a settled neighbour on both sides, diverged or not.

    Settings drawn between bounds have no next value to run, so any best setting among them counts as inside.
    """
    if is_scattered(records, axis, hp):
        return best_scattered(records, axis=axis) is not None
    table = settled_table(records, axis, hp)
    if not table:
        return False
    row = FittedTable(table, log2_hp=True).largest
    return row.choice is not None and row.is_inside(row.choice)


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """What a verdict is read from, and the rules of it in their order. Each rule gives a sentence."""

    fitted: FittedTable
    regret: tuple[Regret, ...]
    drift: Mapping[str, float | None]
    axis: str
    hp: str

    def verdict(self) -> tuple[VerdictKind, str]:
        if missing := self._missing():
            return VerdictKind.ABSTAINS, missing
        kind, why = self._weigh()
        is_later = self.from_ is not None and self.from_ != self.smallest
        return kind, f"{why}; from {self.axis} {self.from_:g} on it transfers" if is_later else why

    @cached_property
    def from_(self) -> float | None:
        """The smallest axis value from which on the optimum transfers to the largest; None: there is none."""
        if self._missing():
            return None
        return next((value for value in self.rows if self._transfers_from(value)), None)

    @property
    def rows(self) -> Mapping[float, FittedRow]:
        return self.fitted.rows

    @property
    def smallest(self) -> float:
        return min(self.rows)

    @property
    def largest(self) -> float:
        return max(self.rows)

    def _missing(self) -> str:
        """Why nothing can be judged; empty: the evidence is enough to be weighed."""
        if reason := one_value_reason(self.rows, self.axis):
            return reason
        for value, row in self.rows.items():
            if row.grid is None:
                return f"no {self.hp} of the {row.num_settled} tried has a finite loss at {self.axis} {value:g}"
            if row.num_settled < 3:
                return f"{self.axis} {value:g} has {row.num_settled} values of {self.hp}: an optimum needs at least 3"
        return ""

    def _transfers_from(self, first: float) -> bool:
        """Whether the optimum transfers from each axis value of at least `first` to the largest."""
        rows = {axis: row for axis, row in self.rows.items() if axis >= first}
        if len(rows) < 2 or any(row.choice is None or not row.is_inside(row.choice) for row in rows.values()):
            return False
        own = [r for r in self.regret if r.from_ >= first]
        if len(own) < len(rows) - 1:
            return False
        if self.fitted.noise is None:  # then one grid optimum for all is the strongest evidence that there can be
            return len({row.grid.hp for row in rows.values() if row.grid is not None}) == 1
        return all(r.high is not None and r.high <= TOLERATED_REGRET * (1 + 1e-9) for r in own)

    def _weigh(self) -> tuple[VerdictKind, str]:
        chosen = self.rows[self.smallest].choice
        assert chosen is not None
        subject = f"the optimum of {self.axis} {self.smallest:g} ({self.hp} {shown(chosen.hp)})"
        at_largest = f"at {self.axis} {self.largest:g}"
        regret = next((r for r in self.regret if r.from_ == self.smallest), None)
        if regret is None:
            return VerdictKind.ABSTAINS, f"{subject} has no result {at_largest}: run it there"
        low, high = self.drift["low"], self.drift["high"]
        moves = low is not None and high is not None and (low > 0 or high < 0)
        # An optimum at the grid's end does not weaken these two: the true one lies farther out, and would cost more.
        if regret.estimate is None:
            drifts = moves or (low is None and self.fitted.marches())
            return VerdictKind.DRIFTS if drifts else VerdictKind.ABSTAINS, f"{subject} diverges {at_largest}"
        at_most = "" if regret.high is None else f" (at most {percent(regret.high)})"
        cost = f"{subject} costs {percent(regret.estimate)}{at_most} {at_largest}"
        unit = "in log2 " if self.fitted.log2_hp else ""
        moves_by = f"it moves by {self.drift['value'] or 0:+.2f} {unit}per doubling"
        if self.from_ == self.smallest:
            why = f"{cost}, and the optimum lies inside the grid at every {self.axis}"
            return VerdictKind.TRANSFERS, f"{why}, though {moves_by}" if moves else why
        if not_run := self._not_run():
            return VerdictKind.ABSTAINS, f"{not_run}: run it there"
        if moves and any(r.low is not None and r.low > NOTABLE_REGRET for r in self.regret):
            return VerdictKind.DRIFTS, f"{cost}, and {moves_by}"
        if open_bracket := self._open_bracket():
            return VerdictKind.ABSTAINS, open_bracket
        return VerdictKind.ABSTAINS, self._why_it_is_uncertain(regret, cost)

    def _not_run(self) -> str:
        """Which setting that decides has no result, and where; empty: there is none."""
        judged = {regret.from_ for regret in self.regret} | {self.largest}
        values = sorted({hp for row in self.rows.values() for hp in row.cells})
        for value, row in self.rows.items():
            if value not in judged and row.choice is not None:
                optimum = f"the optimum of {self.axis} {value:g} ({self.hp} {shown(row.choice.hp)})"
                return f"{optimum} has no result at {self.axis} {self.largest:g}"
            if (hole := row.hole(values)) is not None:
                return f"{self.hp} {shown(hole)}, beside the optimum, has no result at {self.axis} {value:g}"
        return ""

    def _open_bracket(self) -> str:
        """Which row has no optimum inside the grid; empty: each has one."""
        for value, row in self.rows.items():
            if (best := row.choice) is None:
                continue
            below, above = bracket(row.cells, best)
            if len(row.finished) > 2 and len({cell.mean for cell in row.finished}) == 1:
                return f"at {self.axis} {value:g} the metric does not depend on {self.hp}"
            if below is None or above is None:
                end, side = ("lower", "below") if below is None else ("upper", "above")
                at_end = f"the optimum of {self.axis} {value:g} is the grid's {end} end ({self.hp} {shown(best.hp)})"
                return f"{at_end}: extend the grid {side} it"
        return ""

    def _why_it_is_uncertain(self, regret: Regret, cost: str) -> str:
        if self.fitted.noise is None:
            return f"{cost}, and nothing tells the noise: add values of {self.hp} or seeds"
        uncertain = f"{cost}; it may be more than the tolerated {100 * TOLERATED_REGRET:g} %"
        worst = max((r for r in self.regret if r.high is not None), key=lambda r: r.high or 0.0, default=regret)
        if worst is not regret and (regret.high or 0.0) <= TOLERATED_REGRET:
            cost = f"may cost {percent(worst.high or 0.0)} at {self.axis} {self.largest:g}"
            uncertain = f"the optimum of {self.axis} {worst.from_:g} {cost}"
        noise = percent(self.fitted.noise.deviation)
        return f"{uncertain}, and one trial's noise is {noise}: add seeds or values of {self.hp}"
