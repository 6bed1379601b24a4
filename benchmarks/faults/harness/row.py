"""One row of the fault bench, and the case that causes its fault."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Case = Callable[[int, Path, int], int]
"""`case(seed, empty folder, faults)` causes that many faults and returns how many it caused.

It raises AssertionError where the promise is broken.
"""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many faults the gate, the full bench, one case of the gate and the test suite cause."""

    gate: int
    full: int
    batch: int = 1
    test: int = 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault, what is right after it, and how often it is caused."""

    name: str
    fault: str
    right: str
    counts: Counts
    case: Case
    brief: Case | None = None
    """The case of the test suite, if it differs from `case`. Rows with the same brief case share one run of it."""
    waits: bool = False
    """Whether a case waits most of the time. Such a case runs beside the others."""
