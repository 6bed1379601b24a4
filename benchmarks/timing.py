"""How a benchmark measures, in rounds in which every contestant runs once, and the rows that it returns."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, smallest and largest of `num_samples` samples."""

    median: float
    low: float
    high: float
    num_samples: int

    def __str__(self) -> str:
        if self.num_samples == 1:
            return _number(self.median)
        return f"{_number(self.median)} ({_number(self.low)}–{_number(self.high)})"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published figure. `value` None: not measured, `note` says why. `contestants` are named with their unit."""

    name: str
    value: Spread | None
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    contestants: Mapping[str, Spread] = field(default_factory=dict)
    note: str = ""

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f">= {_number(self.at_least)}{self.unit}"
        return "" if self.at_most is None else f"<= {_number(self.at_most)}{self.unit}"

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None where there is no goal, or no value."""
        if self.value is None or not self.goal:
            return None
        if self.at_least is not None:
            return self.value.median >= self.at_least
        return self.at_most is not None and self.value.median <= self.at_most

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": None if self.value is None else vars(self.value),
            "unit": self.unit.strip(),
            "goal": self.goal,
            "met": self.met,
            "contestants": {name: vars(spread) for name, spread in self.contestants.items()},
            "note": self.note,
        }


def interleaved(contestants: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each contestant in each round. Every round starts with another contestant."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for first in range(rounds):
        for i in range(len(names)):
            name = names[(first + i) % len(names)]
            began = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def spread(samples: Sequence[float]) -> Spread:
    return Spread(median=statistics.median(samples), low=min(samples), high=max(samples), num_samples=len(samples))


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Ratios round by round, so that a slow round cancels out."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
