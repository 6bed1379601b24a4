"""Moments at which a command is hurt."""

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

MOMENTS = 0.7
"""Up to which part of an uninterrupted sweep a command is hurt: the next ones, with less to do, come to their ends."""


def stop_between_writes(pid: int, database: Path | None) -> None:
    """SIGSTOP; again, where it stands in a write to this SQLite file, which nobody could write to meanwhile."""
    files = [] if database is None else [database, database.with_name(database.name + "-shm")]
    while True:
        os.kill(pid, signal.SIGSTOP)
        while (found := status(pid)) is not None and found[0] not in "TZX":
            time.sleep(0.001)
        if locking_process(files) != pid:
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]", *, seconds: float = 120.0) -> bool:
    """True when it holds; False when the process ends, or the time, before it does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    return False


def random_moment(sweep: Sweep, process: "subprocess.Popen[str]", rng: random.Random) -> bool:
    """Wait for a moment: mostly any, else one where something is half written. Whether the process still runs then."""
    spots: Mapping[str, str] = {
        "a checkpoint is being written": "muxfer/*/trials/*/attempt-*/.step-*",
        "a spool has come into being": "muxfer/*/spool-*.jsonl",
        "the database is being made": "mlflow.db*",
        "the report is being written": "muxfer/*/*.svg",
    }
    seconds = rng.uniform(0.0, MOMENTS * reference(sweep.name, sweep.overrides)["wall_seconds"])
    if rng.random() < 0.4:
        pattern = rng.choice(list(spots.values()))
        wait_for(lambda: next(sweep.folder.glob(pattern), None) is not None, process, seconds=seconds)
        time.sleep(rng.uniform(0.0, 0.05))
    else:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    return process.poll() is None
