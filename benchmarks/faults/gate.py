"""The gate."""

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

from benchmarks.faults.harness.row import Row
from benchmarks.faults.harness.settings import BRIEF, CACHE, ROOT

LANES = 2
CASE_SECONDS = 1500.0
STATE = ROOT / "dist" / "faults.json"


@dataclass(kw_only=True)
class Tally:
    """How often a row was caused, from which seed to go on, what it took, and each failure with its seed."""

    caused: int = 0
    next_seed: int = 0
    seconds: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)


def run(rows: Sequence[Row], *, full: bool, minutes: float) -> dict[str, Tally]:
    """Every row up to its number, LANES cases at a time, from both ends, and one that mostly waits beside them.

    No case starts after so many minutes; a row with three failures is given up.
    """
    known = json.loads(STATE.read_text()) if full and STATE.exists() else {}
    tallies = {row.name: Tally(**known.get(row.name, {})) for row in rows}
    lock = threading.Lock()
    began = time.monotonic()
    underway = dict.fromkeys(tallies, 0)
    again = [(row, failure["seed"], failure["faults"]) for row in rows for failure in tallies[row.name].failures]
    unproven = {(row.name, seed) for row, seed, _ in again}  # what failed in an earlier run may have been mended

    def take(order: Sequence[Row], *, waiting: bool) -> tuple[Row, int, int] | None:
        with lock:
            if time.monotonic() - began > 60 * minutes:
                return None
            if again:
                return again.pop()
            for row in sorted(order, key=lambda row: underway[row.name]):
                if row.waits != waiting:
                    continue
                tally = tallies[row.name]
                left = missing(row, tally, full=full) - underway[row.name]
                failed = sum((row.name, failure["seed"]) not in unproven for failure in tally.failures)
                if left > 0 and failed < 3:
                    faults = min(row.batch, left)
                    seed, tally.next_seed = tally.next_seed, tally.next_seed + 1
                    underway[row.name] += faults
                    return row, seed, faults
            return None

    def lane(cache: str, order: Sequence[Row], waiting: bool) -> None:
        while (job := take(order, waiting=waiting)) is not None:
            row, seed, faults = job
            start = time.monotonic()
            caused, told = run_case(row, seed, faults, cache=cache)
            seconds = time.monotonic() - start
            with lock:
                tally = tallies[row.name]
                if (row.name, seed) in unproven:  # counted then, and known until now
                    unproven.remove((row.name, seed))
                    tally.failures = [failure for failure in tally.failures if failure["seed"] != seed]
                    tally.caused -= faults
                else:
                    underway[row.name] -= faults
                tally.caused += caused
                tally.seconds += seconds
                if told is not None:
                    tally.failures.append({"seed": seed, "faults": faults, "told": told})
                if full:
                    STATE.parent.mkdir(exist_ok=True)
                    STATE.write_text(json.dumps({**known, **{name: vars(t) for name, t in tallies.items()}}))
                ended = "ok" if told is None else "FAILED"
                print(f"{row.name} seed {seed}: {ended}, {caused} in {seconds:.0f} s", file=sys.stderr, flush=True)
                if told is not None:
                    print(told, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="muxfer-faults-") as cache, ThreadPoolExecutor() as pool:
        ways = [(rows, True), *itertools.islice(itertools.cycle([(rows, False), (rows[::-1], False)]), LANES)]
        for ended in [pool.submit(lane, cache, order, waiting) for order, waiting in ways]:
            ended.result()
    return tallies


def run_case(row: Row, seed: int, faults: int, *, cache: str, brief: bool = False) -> tuple[int, str | None]:
    """One case in a process of its own: how often the fault was caused, and what went wrong, if anything did."""
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
    """Whether nothing failed, and the gate was caused as a whole; the full bench adds up over several runs."""
    return not tally.failures and (full or missing(row, tally, full=False) == 0)


def missing(row: Row, tally: Tally, *, full: bool) -> int:
    """How many faults are still to be caused."""
    return max(0, (row.full if full else row.gate) - tally.caused)


def table(rows: Sequence[Row], tallies: Mapping[str, Tally], *, full: bool) -> str:
    """One row a fault: caused, asked for, failures by seed, minutes, and the test that causes it once."""
    lines = ["| row and test | fault | right | caused | gate | full | failed | minutes |"]
    lines += ["|---|---|---|--:|--:|--:|---|--:|"]
    for row in rows:
        tally = tallies[row.name]
        failed = ", ".join(f"seed {failure['seed']}" for failure in tally.failures) or "none"
        told = f" ({count:,} still to be caused)" if (count := missing(row, tally, full=full)) else ""
        cells = [f"`{row.name}`", row.fault, row.right, f"{tally.caused:,}", f"{row.gate:,}", f"{row.full:,}"]
        lines.append(f"| {' | '.join(cells)} | {failed}{told} | {tally.seconds / 60:.1f} |")
    return "\n".join(lines)
