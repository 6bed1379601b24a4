"""When a command is interrupted: at a random moment, when a condition holds, or between two writes."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from benchmarks.faults.harness.promise import reference
from benchmarks.faults.harness.sweep import Sweep
from muxfer.processes import locking_process, status

LATEST_MOMENT = 0.7
"""A command is interrupted within this part of an uninterrupted sweep's time.

Later commands have less to do and would end before a later moment.
"""
HALF_WRITTEN: Mapping[str, str] = {
    "a checkpoint is being written": "muxfer/*/trials/*/attempt-*/.step-*",
    "a spool was made": "muxfer/*/spool-*.jsonl",
    "the database is being made": "mlflow.db*",
    "the report is being written": "muxfer/*/*.svg",
}


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]", *, seconds: float = 120.0) -> bool:
    """Whether the condition held before the process ended and before the time was over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    return False


def random_moment(sweep: Sweep, process: "subprocess.Popen[str]", rng: random.Random) -> bool:
    """Wait for a random moment, in 4 of 10 cases one of HALF_WRITTEN. Returns whether the process still runs then."""
    seconds = rng.uniform(0.0, LATEST_MOMENT * reference(sweep.name, sweep.overrides)["wall_seconds"])
    if rng.random() < 0.4:
        pattern = rng.choice(list(HALF_WRITTEN.values()))
        wait_for(lambda: next(sweep.folder.glob(pattern), None) is not None, process, seconds=seconds)
        time.sleep(rng.uniform(0.0, 0.05))
    else:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    return process.poll() is None


def stop_between_writes(pid: int, database: Path | None) -> None:
    """SIGSTOP a process, but not inside a write to this SQLite file: the file would stay locked for all others."""
    files = [] if database is None else [database, database.with_name(database.name + "-shm")]
    while True:
        os.kill(pid, signal.SIGSTOP)
        while (state := status(pid)) is not None and state[0] not in "TZX":
            time.sleep(0.001)
        if locking_process(files) != pid:
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)
