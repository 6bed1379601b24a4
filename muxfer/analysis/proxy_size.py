"""How small may the proxy be? Every smaller task of a study is a candidate, compared with the largest one.

A study that tunes one setting over widths, depths, batches or steps shows three things of each smaller task: what its
sweep cost, what it chose, and what the largest task loses by that choice, with an interval. Optimum and regret are
those of `muxfer.analysis.transferability`. Cost against the upper bound of the regret is a front. The cheapest proxy
under a tolerance is the recommendation.

No front is drawn where tasks cannot be ordered (none is the largest in everything), or where a second setting is tuned
with the first. Then `why` gives the reason.

Each interval holds for its own proxy. The cheapest of many is chosen by them without a correction: proxies that make
the same choice have the same regret, so the choices are few.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from muxfer.analysis.cells import percent, settled_table, shown, varied_names
from muxfer.analysis.rows import FittedTable
from muxfer.analysis.transferability import inside_grid, judge
from muxfer.config.settings import AXES
from muxfer.trial import Outcome, Record, Regret

TOLERANCES = (0.01, 0.02)
"""Regrets up to which a recommendation is made."""

REPEATED = 0.5
"""A choice that is the best of its own task with a lower probability is luck. Its proxy is not recommended."""

CANDIDATE, LARGEST = 1.0, 2.0
"""The two values of the axis "task", which replaces all the axes in which tasks differ."""

Sizes = tuple[float, ...]
"""A value for each of the varied axes, in the order of AXES."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One smaller task as the proxy of the largest.

    `cost` is its whole sweep's; `share` is the same in runs of the largest task. `sureness` is the probability that
    no other setting is better for its own task; None where nothing tells the noise. `regret` is None
    where the choice was never run at the largest task. `diverges`: the choice diverged there. `why` is the reason why
    the upper bound is unknown or not trusted; empty: it is known.
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
        """The 95 % upper bound of the relative regret; None where `why` gives a reason against it."""
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
    """The candidates, cheapest first. Without candidates no front can be drawn, and `why` is the reason.

    With candidates `why` is the recommendation in one sentence. `run_cost` is that of one run of the largest task.
    """

    hp: str
    axes: tuple[str, ...]
    largest: Mapping[str, float]
    run_cost: float
    candidates: tuple[Candidate, ...]
    why: str

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The candidates whose upper bound of the regret is below that of every cheaper one, cheapest first."""
        return tuple(candidate for candidate in self.candidates if candidate.on_front)

    def within(self, tolerance: float) -> Candidate | None:
        """The cheapest candidate whose upper bound is at most the tolerance and whose choice is no luck, or None."""
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
            "recommended": {key: None if one is None else dict(one.task) for key, one in recommended.items()},
            "why": self.why,
        }


def parameters_times_samples(batch_size: int) -> Callable[[Record], float]:
    """A trial's cost by equation 1 of the μP paper; `batch_size` is that of studies that do not vary it."""
    return lambda record: record.num_parameters * record.step * float(record.setting.get("batch_size", batch_size))


def proxy_front(
    records: Sequence[Record], *, hp: str, cost: Callable[[Record], float], log2_hp: bool = True
) -> ProxyFront:
    """What each task's sweep costs and what its choice of `hp` loses at the largest task.

    `cost` is that of one trial, in any unit. BadInput when a record has text, or nothing, for `hp` or for an axis.
    """
    settled = [record for record in records if record.kind == "proxy" and record.outcome.settled]
    varied = varied_names([record.setting for record in settled]) - {hp}
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
    candidates = []
    for task, own in tasks.items():
        if task != largest:
            total = math.fsum(cost(record) for record in own)
            candidate = _candidate(own, tasks[largest], hp=hp, log2_hp=log2_hp)
            named = dict(zip(axes, task, strict=True))
            candidates.append(replace(candidate, task=named, cost=total, share=total / front.run_cost))
    candidates.sort(key=lambda candidate: (candidate.cost, math.inf if candidate.upper is None else candidate.upper))
    front = replace(front, candidates=_marked(candidates))
    return replace(front, why=_recommendation(front))


def describe_task(task: Mapping[str, float]) -> str:
    """A task as text: width 64, batch size 16, 180 steps."""
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
    """This task as a candidate; the caller fills in its name and cost.

    The choice is judged by the task's own noise and the regret by the largest task's, because small batches are
    noisier.
    """
    small, large = _placed(own, CANDIDATE, hp), _placed(of_largest, LARGEST, hp)
    row = FittedTable(settled_table(small, "task", hp), log2_hp=log2_hp).largest
    optimum = row.optimum()
    at_choice = [record for record in large if record.setting[hp] == optimum.choice]
    judged = judge([*_placed(at_choice, CANDIDATE, hp), *large], axis="task", hp=hp, log2_hp=log2_hp)
    regret = next((r for r in judged.regret if r.from_ == CANDIDATE), None)
    why = ""
    if optimum.choice is None:
        why = "no trial has a finite loss"
    elif any(record.outcome is Outcome.DIVERGED for record in at_choice):
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
        sureness=row.sureness,
        regret=regret,
        why=why,
        diverges=why.startswith("the largest task diverges"),
    )


def _placed(records: Sequence[Record], place: float, hp: str) -> list[Record]:
    return [replace(record, setting={"task": place, hp: record.setting[hp]}) for record in records]


def _marked(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    lowest, marked = math.inf, []
    for candidate in candidates:
        better = candidate.upper is not None and candidate.upper < lowest
        lowest = candidate.upper if better and candidate.upper is not None else lowest
        marked.append(replace(candidate, on_front=better))
    return tuple(marked)


def _recommendation(front: ProxyFront) -> str:
    """The cheapest proxy within each tolerance, or why there is none."""
    largest = describe_task(front.largest)
    if not front.front:
        return f"no proxy's regret is known at {largest}: {front.candidates[-1].why}"
    parts: list[str] = []
    last: Candidate | None = None
    for tolerance in TOLERANCES:
        proxy = front.within(tolerance)
        if proxy is None or proxy is last:
            continue
        last = proxy
        assert proxy.regret is not None
        assert proxy.choice is not None
        assert proxy.regret.high is not None
        parts.append(
            f"the cheapest proxy that surely loses at most {100 * tolerance:g} % is {describe_task(proxy.task)}: its"
            f" {proxy.num_trials} trials cost {proxy.share:.3g} runs of {largest}, which loses at most"
            f" {percent(proxy.regret.high)} by its choice, {front.hp} {shown(proxy.choice)}"
        )
    if parts:
        return "; ".join(parts)
    nearest = front.front[-1]
    assert nearest.upper is not None
    task = describe_task(nearest.task)
    if nearest.upper <= max(TOLERANCES):
        return f"no proxy is recommended: {task} made a choice that other seeds may not make again"
    return (
        f"no proxy surely loses at most {100 * max(TOLERANCES):g} %: the nearest, {task}, may lose"
        f" {percent(nearest.upper)} at {largest}"
    )
