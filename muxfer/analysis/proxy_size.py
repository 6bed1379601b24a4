"""How small may the proxy be? Every task of a study as a candidate, held against the largest one.

A study that tunes one setting over widths, depths, batches or steps knows of each smaller task what its sweep cost,
what it would have chosen, and what the largest task loses by that choice, with an interval: optimum and regret are
`muxfer.analysis.transferability`'s. Cost against the upper bound of the regret is a front,
and the cheapest proxy under a tolerance the recommendation. No front is drawn where tasks cannot be ordered (none is
the largest in everything) or where a second setting is tuned with the first: then `why` says so.

Each interval stands for its own proxy. The cheapest of many is picked by them without a correction: proxies that make
the same choice have the same regret, so the choices are few.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

from muxfer.analysis.cells import percent, shown
from muxfer.analysis.transferability import inside_grid, judge
from muxfer.config.settings import AXES
from muxfer.trial import Optimum, Outcome, Record, Regret

TOLERANCES = (0.01, 0.02)
"""Regrets up to which a recommendation is made."""

REPEATED = 0.5
"""A choice that other seeds would less often make again than not is luck, and recommends no proxy."""

CANDIDATE, LARGEST = 1.0, 2.0
"""The two values of an axis that stands for all the ways in which tasks differ."""

Sizes = tuple[float, ...]
"""A value for each of the varied axes, in the order of AXES."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One smaller task as the proxy of the largest.

    `cost` is its whole sweep's, `share` the same over one run of the largest task. `sureness` is the probability that
    the sweep, run again with other seeds, makes the same choice; None where its points do not curve. `regret` is None
    where the choice was never run at the largest task, or diverged there (`diverges`). `why` says what keeps the upper
    bound from being known or from being trusted; empty: nothing does.
    """

    task: Mapping[str, float]
    num_trials: int
    cost: float
    share: float
    choice: float | None
    sureness: float | None
    regret: Regret | None
    why: str = ""
    diverges: bool = False
    on_front: bool = False

    @property
    def upper(self) -> float | None:
        """The 95 % upper bound of the regret, relative; None where `why` stands against it."""
        return None if self.why or self.regret is None else self.regret.high

    def to_dict(self) -> dict[str, Any]:
        regret = self.regret
        return {
            "task": dict(self.task),
            "num_trials": self.num_trials,
            "cost": self.cost,
            "share": self.share,
            "choice": self.choice,
            "sureness": self.sureness,
            "relative": None if regret is None else regret.relative,
            "estimate": None if regret is None else regret.estimate,
            "low": None if regret is None else regret.low,
            "high": None if regret is None else regret.high,
            "on_front": self.on_front,
            "why": self.why,
        }


@dataclass(frozen=True, kw_only=True)
class ProxyFront:
    """The candidates, cheapest first. None of them: no front can be drawn, and `why` says why.

    `run_cost` is that of one run of the largest task. `why` is the recommendation otherwise, in one sentence.
    """

    hp: str
    axes: tuple[str, ...]
    largest: Mapping[str, float]
    run_cost: float
    candidates: tuple[Candidate, ...]
    why: str

    @property
    def front(self) -> tuple[Candidate, ...]:
        """Those that no cheaper candidate equals in the upper bound of the regret, cheapest first."""
        return tuple(candidate for candidate in self.candidates if candidate.on_front)

    def within(self, tolerance: float) -> Candidate | None:
        """The cheapest candidate whose regret is surely at most the tolerance, by a choice that is no luck, or None."""
        sure = (c for c in self.candidates if c.sureness is not None and c.sureness >= REPEATED)
        return next((c for c in sure if c.upper is not None and c.upper <= tolerance), None)

    def to_dict(self) -> dict[str, Any]:
        recommended = {f"{tolerance:g}": self.within(tolerance) for tolerance in TOLERANCES}
        return {
            "hp": self.hp,
            "axes": list(self.axes),
            "largest": dict(self.largest),
            "run_cost": self.run_cost,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "recommended": {key: None if found is None else dict(found.task) for key, found in recommended.items()},
            "why": self.why,
        }


def parameters_times_samples(batch_size: int) -> Callable[[Record], float]:
    """What a trial cost by equation 1 of the μP paper; `batch_size` is that of studies that do not vary it."""
    return lambda record: record.num_parameters * record.step * float(record.setting.get("batch_size", batch_size))


def proxy_front(
    records: Sequence[Record], *, hp: str, cost: Callable[[Record], float], log2_hp: bool = True
) -> ProxyFront:
    """What each task's sweep costs and what its choice of `hp` loses at the largest task.

    `cost` is that of one trial, in any unit. BadInput when a record has text, or nothing, for `hp` or for an axis.
    """
    settled = [record for record in records if record.kind == "proxy" and record.outcome is not Outcome.FAILED]
    varied = {name for record in settled for name in record.setting} - {hp}
    varied = {name for name in varied if len({repr(record.setting.get(name)) for record in settled}) > 1}
    axes = tuple(name for name in AXES if name in varied)
    tasks: dict[Sizes, list[Record]] = {}
    for record in settled:
        tasks.setdefault(tuple(float(record.setting[name]) for name in axes), []).append(record)
    run_cost = {task: max(cost(record) for record in own) for task, own in tasks.items()}
    largest = max(tasks, key=lambda task: (run_cost[task], task), default=())
    front = ProxyFront(
        hp=hp,
        axes=axes,
        largest=dict(zip(axes, largest, strict=True)),
        run_cost=run_cost.get(largest, 0.0),
        candidates=(),
        why="",
    )
    if reason := _no_front(front, tasks, varied):
        return replace(front, why=reason)
    found = []
    for task, own in tasks.items():
        if task != largest:
            total = math.fsum(cost(record) for record in own)
            held = _candidate(own, tasks[largest], hp=hp, log2_hp=log2_hp)
            named = dict(zip(axes, task, strict=True))
            found.append(replace(held, task=named, cost=total, share=total / front.run_cost))
    found.sort(key=lambda candidate: (candidate.cost, math.inf if candidate.upper is None else candidate.upper))
    front = replace(front, candidates=_marked(found))
    return replace(front, why=_recommendation(front))


def describe_task(task: Mapping[str, float]) -> str:
    """width 64, batch size 16, 180 steps."""
    words = {"batch_size": "batch size {:g}", "steps": "{:g} steps"}
    return ", ".join(words.get(name, name + " {:g}").format(value) for name, value in task.items())


def _no_front(front: ProxyFront, tasks: Mapping[Sizes, Sequence[Record]], varied: set[str]) -> str:
    """Why there is no front; empty: there is one."""
    if len(tasks) < 2:
        return "all trials have the same task: a front needs a smaller one to choose from"
    if front.hp in AXES:
        return f"{front.hp} is a size and no setting that a proxy could choose"
    if others := sorted(varied - set(front.axes)):
        return f"{', '.join(others)} is tuned together with {front.hp}: a front is drawn for one setting at a time"
    if not front.run_cost > 0:
        return "the trials lack their numbers of parameters or steps: their cost is not known"
    for name, column in zip(front.axes, zip(*tasks, strict=True), strict=True):
        if front.largest[name] < max(column):
            return (
                f"no task is the largest in everything: the costliest has {name} {front.largest[name]:g},"
                f" another {max(column):g}"
            )
    return ""


def _candidate(own: Sequence[Record], of_largest: Sequence[Record], *, hp: str, log2_hp: bool) -> Candidate:
    """What this task's records say of the largest one; its name and cost are the caller's to fill in.

    The choice is judged by the task's own noise, the regret by the largest task's: small batches are the noisier ones.
    """
    small, large = _placed(own, CANDIDATE, hp), _placed(of_largest, LARGEST, hp)
    optimum = judge(small, axis="task", hp=hp, log2_hp=log2_hp).optimum[CANDIDATE]
    there = [record for record in large if record.setting[hp] == optimum.choice]
    judged = judge([*_placed(there, CANDIDATE, hp), *large], axis="task", hp=hp, log2_hp=log2_hp)
    regret = next((r for r in judged.regret if r.from_ == CANDIDATE), None)
    finished = sorted({float(record.setting[hp]) for record in small if record.outcome is Outcome.FINISHED})
    why = ""
    if optimum.choice is None:
        why = "no trial has a finite loss"
    elif any(record.outcome is Outcome.DIVERGED for record in there):
        why = f"the largest task diverges at {hp} {shown(optimum.choice)}"
    elif not inside_grid(small, axis="task", hp=hp):
        why = f"its optimum is the grid's end, {hp} {shown(optimum.choice)}"
    elif regret is None:
        why = f"{hp} {shown(optimum.choice)} has no result at the largest task"
    elif not inside_grid(large, axis="task", hp=hp):
        why = "the optimum of the largest task is the grid's end"
    elif regret.high is None:
        why = "nothing tells the noise"
    return Candidate(
        task={},
        num_trials=len(own),
        cost=0.0,
        share=0.0,
        choice=optimum.choice,
        sureness=_sureness(optimum, finished, log2_hp=log2_hp),
        regret=regret,
        why=why,
        diverges=why.startswith("the largest task diverges"),
    )


def _placed(records: Sequence[Record], place: float, hp: str) -> list[Record]:
    return [replace(record, setting={"task": place, hp: record.setting[hp]}) for record in records]


def _sureness(optimum: Optimum, settings: Sequence[float], *, log2_hp: bool) -> float | None:
    """How often the setting nearest to the vertex is the choice, the vertex spread as its 95 % interval says.

    The choice is the lowest point of a parabola, so the one nearest to its vertex. The interval's two sides differ: a
    normal for each.
    """
    if optimum.choice is None or optimum.fitted is None or optimum.low is None or optimum.high is None:
        return None
    place = math.log2 if log2_hp else float
    vertex, low, high = place(optimum.fitted), place(optimum.low), place(optimum.high)

    def below(x: float) -> float:
        side = vertex - low if x < vertex else high - vertex
        return NormalDist().cdf(1.96 * (x - vertex) / max(side, 1e-12))

    under = max((place(other) for other in settings if other < optimum.choice), default=-math.inf)
    over = min((place(other) for other in settings if other > optimum.choice), default=math.inf)
    here = place(optimum.choice)
    return below((here + over) / 2) - below((under + here) / 2)


def _marked(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    lowest, marked = math.inf, []
    for candidate in candidates:
        better = candidate.upper is not None and candidate.upper < lowest
        lowest = candidate.upper if better and candidate.upper is not None else lowest
        marked.append(replace(candidate, on_front=better))
    return tuple(marked)


def _recommendation(front: ProxyFront) -> str:
    if not front.front:
        return f"no proxy's regret is known at {describe_task(front.largest)}: {front.candidates[-1].why}"
    parts: list[str] = []
    last: Candidate | None = None
    for tolerance in TOLERANCES:
        found = front.within(tolerance)
        if found is None or found is last:
            continue
        last = found
        assert found.regret is not None
        assert found.choice is not None
        assert found.regret.high is not None
        parts.append(
            f"the cheapest proxy that surely loses at most {100 * tolerance:g} % is {describe_task(found.task)}: its"
            f" {found.num_trials} trials cost {found.share:.3g} runs of {describe_task(front.largest)}, which loses at most"
            f" {percent(found.regret.high)} by its choice, {front.hp} {shown(found.choice)}"
        )
    if parts:
        return "; ".join(parts)
    nearest = front.front[-1]
    assert nearest.upper is not None
    if nearest.upper <= max(TOLERANCES):
        return (
            f"no proxy is recommended: {describe_task(nearest.task)} made a choice that other seeds may not make again"
        )
    return (
        f"no proxy surely loses at most {100 * max(TOLERANCES):g} %: the nearest, {describe_task(nearest.task)}, may lose"
        f" {percent(nearest.upper)} at {describe_task(front.largest)}"
    )
