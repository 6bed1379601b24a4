"""Causes the faults of rows, several cases at a time, counts them, and prints the table."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from benchmarks.faults.harness.settings import BRIEF, CACHE, ROOT, Case

LANES = 2
CASE_SECONDS = 1500.0
MAX_FAILURES = 3
STATE = ROOT / "dist" / "faults.json"
"""Where the full bench keeps its tallies between runs."""


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


@dataclass(kw_only=True)
class Tally:
    """How many faults of a row were caused, the next seed, the time it took, and each failure with its seed."""

    caused: int = 0
    next_seed: int = 0
    seconds: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One case to run. `again`: it failed in an earlier run of the full bench, and may work now."""

    row: Row
    seed: int
    faults: int
    again: bool = False


class Gate:
    """The tallies of all rows, and which case comes next. Several threads share it; `_lock` guards all of it."""

    def __init__(self, rows: Sequence[Row], *, full: bool, minutes: float) -> None:
        self._full = full
        self._known = json.loads(STATE.read_text()) if full and STATE.exists() else {}
        self.tallies = {row.name: Tally(**self._known.get(row.name, {})) for row in rows}
        self._lock = threading.Lock()
        self._until = time.monotonic() + 60 * minutes
        self._underway = dict.fromkeys(self.tallies, 0)
        self._again = [
            Job(row=row, seed=failure["seed"], faults=failure["faults"], again=True)
            for row in rows
            for failure in self.tallies[row.name].failures
        ]
        self._num_again = {row.name: len(self.tallies[row.name].failures) for row in rows}

    def take(self, order: Sequence[Row], *, waiting: bool) -> Job | None:
        """The next case: a failure of an earlier run, else the first row of `order` with the fewest under way.

        None when the time is over or nothing is missing. A row with three new failures is given up.
        """
        with self._lock:
            if time.monotonic() > self._until:
                return None
            if self._again:
                return self._again.pop()
            for row in sorted(order, key=lambda row: self._underway[row.name]):
                tally = self.tallies[row.name]
                remaining = missing(row, tally, full=self._full) - self._underway[row.name]
                num_new_failures = len(tally.failures) - self._num_again[row.name]
                if row.waits == waiting and remaining > 0 and num_new_failures < MAX_FAILURES:
                    faults = min(row.counts.batch, remaining)
                    seed, tally.next_seed = tally.next_seed, tally.next_seed + 1
                    self._underway[row.name] += faults
                    return Job(row=row, seed=seed, faults=faults)
            return None

    def count(self, job: Job, *, caused: int, error: str | None, seconds: float) -> None:
        """Add the end of a case to its row's tally, save the full bench's tallies, and print a line."""
        with self._lock:
            name, tally = job.row.name, self.tallies[job.row.name]
            if job.again:  # it was counted when it failed, and its failure was kept until now
                self._num_again[name] -= 1
                tally.failures = [failure for failure in tally.failures if failure["seed"] != job.seed]
                tally.caused -= job.faults
            else:
                self._underway[name] -= job.faults
            tally.caused += caused
            tally.seconds += seconds
            if error is not None:
                tally.failures.append({"seed": job.seed, "faults": job.faults, "error": error})
            if self._full:
                STATE.parent.mkdir(exist_ok=True)
                STATE.write_text(json.dumps({**self._known, **{name: vars(t) for name, t in self.tallies.items()}}))
            state = "ok" if error is None else "FAILED"
            print(f"{name} seed {job.seed}: {state}, {caused} in {seconds:.0f} s", file=sys.stderr, flush=True)
            if error is not None:
                print(error, file=sys.stderr, flush=True)

    def run_lane(self, cache: str, order: Sequence[Row], *, waiting: bool) -> None:
        """Run one case after the other until none comes."""
        while (job := self.take(order, waiting=waiting)) is not None:
            start = time.monotonic()
            caused, error = run_case(job.row, job.seed, job.faults, cache=cache)
            self.count(job, caused=caused, error=error, seconds=time.monotonic() - start)


def run(rows: Sequence[Row], *, full: bool, minutes: float) -> dict[str, Tally]:
    """Cause every row as often as it asks, LANES cases at a time, from both ends of the table.

    One case that mostly waits runs beside them. No case starts after so many minutes.
    """
    gate = Gate(rows, full=full, minutes=minutes)
    with tempfile.TemporaryDirectory(prefix="muxfer-faults-") as cache, ThreadPoolExecutor() as pool:
        orders = itertools.islice(itertools.cycle([rows, rows[::-1]]), LANES)
        lanes = [pool.submit(gate.run_lane, cache, rows, waiting=True)]
        lanes += [pool.submit(gate.run_lane, cache, order, waiting=False) for order in orders]
        for lane in lanes:
            lane.result()
    return gate.tallies


def run_case(row: Row, seed: int, faults: int, *, cache: str, brief: bool = False) -> tuple[int, str | None]:
    """Run one case in a process of its own. Returns how many faults it caused, and the error if it failed."""
    command = [sys.executable, "-m", "benchmarks.faults", "--case", row.name, str(seed), str(faults)]
    environment = {**os.environ, CACHE: cache, "PYTHONPATH": str(ROOT), **({BRIEF: "1"} if brief else {})}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=CASE_SECONDS)
    except subprocess.TimeoutExpired:
        return faults, f"the case did not end within {CASE_SECONDS:g} s"
    if done.returncode == 0:
        return int(done.stdout.split()[-1]), None
    return faults, done.stderr.strip()[-3000:] or f"the case ended with {done.returncode}"


def passed(row: Row, tally: Tally, *, full: bool) -> bool:
    """Whether nothing failed and nothing is missing. The full bench takes several runs, so it may miss some."""
    return not tally.failures and (full or missing(row, tally, full=False) == 0)


def missing(row: Row, tally: Tally, *, full: bool) -> int:
    """How many faults are still to be caused."""
    return max(0, (row.counts.full if full else row.counts.gate) - tally.caused)


def table(rows: Sequence[Row], tallies: Mapping[str, Tally], *, full: bool) -> str:
    """The table of docs/reliability.md: one line per row."""
    lines = ["| row and test | fault | right | caused | gate | full | failed | minutes |"]
    lines += ["|---|---|---|--:|--:|--:|---|--:|"]
    for row in rows:
        tally = tallies[row.name]
        failed = ", ".join(f"seed {failure['seed']}" for failure in tally.failures) or "none"
        if count := missing(row, tally, full=full):
            failed += f" ({count:,} still to be caused)"
        counts = [f"{count:,}" for count in (tally.caused, row.counts.gate, row.counts.full)]
        cells = [f"`{row.name}`", row.fault, row.right, *counts, failed]
        lines.append(f"| {' | '.join(cells)} | {tally.seconds / 60:.1f} |")
    return "\n".join(lines)
