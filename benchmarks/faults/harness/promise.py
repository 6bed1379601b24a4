"""The promise that must hold after any fault, once the same command was typed again.

- One FINISHED run a trial key.
- Every point of it once.
- Every number and every averaged weight bit for bit that of the uninterrupted sweep.
- At most one checkpoint interval of work done again.
- No process, lock or temporary file of ours left behind.

All of it is read from the database and the disk, not through muxfer's own readers. The uninterrupted sweep, with which
all is compared, also says when a command may be interrupted.
"""

import fcntl
import hashlib
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.faults.harness.settings import CACHE, STEPS
from benchmarks.faults.harness.sweep import Process, Sweep, wait_for

LATEST_MOMENT = 0.7
"""A command is interrupted within this part of an uninterrupted sweep's time.

Later commands have less to do and would end before a later moment.
"""
HALF_WRITTEN = ("muxfer/*/trials/*/attempt-*/.step-*", "muxfer/*/spool-*.jsonl", "mlflow.db*", "muxfer/*/*.svg")
"""What exists while a checkpoint, a spool, the database and the report are written."""


def assert_promise(sweep: Sweep, result: Mapping[str, Any]) -> None:
    """Compare the folder, the database and the command's result with those of the uninterrupted sweep."""
    expected = reference(sweep.name, sweep.overrides)
    trials = results(result)
    assert trials == expected["results"], f"results differ from the uninterrupted sweep's: {trials}"
    assert result["best"] == expected["best"]
    runs = sweep.runs()
    assert runs.keys() == trials.keys()
    for key, run in runs.items():
        assert run.status == "FINISHED", f"trial {key} has the status {run.status}"
        points = [list(point) for point in run.points]
        assert points == expected["points"][key], f"trial {key}: points differ from the uninterrupted sweep's"
        before = sweep.newest_checkpoint(key, before=run.epoch)
        done = run.record["step"] if run.record["outcome"] == "diverged" else STEPS
        assert run.record["resumed_at"] >= min(before, done), (
            f"trial {key} started again at {run.record['resumed_at']}, although it had a checkpoint at {before}"
        )
    assert sweep.weights() == expected["weights"], "weights differ from the uninterrupted sweep's"
    sweep.assert_clean()


def results(result: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Outcome, metric and step of every trial in a sweep's JSON, by trial key."""
    return {trial["key"]: [trial["outcome"], trial["metric"], trial["step"]] for trial in result["trials"]}


def reference(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What the uninterrupted sweep ends with. It is trained once per CACHE folder, else once per process."""
    cache = Path(os.environ.setdefault(CACHE, tempfile.gettempdir() + f"/muxfer-faults-{os.getpid()}"))
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / (hashlib.sha256(json.dumps([name, *overrides]).encode()).hexdigest()[:16] + ".json")
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                file.write_text(json.dumps(_run_uninterrupted(Sweep(Path(folder), overrides, name=name))))
    return dict(json.loads(file.read_text()))


def _run_uninterrupted(sweep: Sweep) -> dict[str, Any]:
    began = time.monotonic()
    result = sweep.finish()
    wall_seconds = time.monotonic() - began
    sweep.assert_clean()
    return {
        "results": results(result),
        "best": result["best"],
        "points": {key: [list(point) for point in run.points] for key, run in sweep.runs().items()},
        "weights": sweep.weights(),
        "wall_seconds": wall_seconds,
    }


def random_moment(sweep: Sweep, process: Process, rng: random.Random) -> bool:
    """Wait for a random moment, in 4 of 10 cases one of HALF_WRITTEN. Returns whether the process still runs then."""
    seconds = rng.uniform(0.0, LATEST_MOMENT * reference(sweep.name, sweep.overrides)["wall_seconds"])
    if rng.random() < 0.4:
        pattern = rng.choice(HALF_WRITTEN)
        wait_for(lambda: next(sweep.folder.glob(pattern), None) is not None, process, seconds=seconds)
        time.sleep(rng.uniform(0.0, 0.05))
    else:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    return process.poll() is None
