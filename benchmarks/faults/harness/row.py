"""One row of the fault bench."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Case = Callable[[int, Path, int], int]
"""`case(seed, empty folder, faults)`: cause so many faults, raise where the promise breaks; how many were caused."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault: what it is, what is right, how often the gate and the full bench cause it, and `batch` a case."""

    name: str
    fault: str
    right: str
    gate: int
    full: int
    case: Case
    batch: int = 1
    test: int = 1
    """How many faults the test suite's one case causes."""
    brief: Case | None = None
    """The test suite's case, where it is another one: rows that name the same one share it."""
    waits: bool = False
    """Whether a case mostly waits: then it goes beside the others."""
