"""The promise after a fault."""

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.harness.settings import CACHE, STEPS
from benchmarks.faults.harness.sweep import Sweep


def results(answer: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {trial["key"]: [trial["outcome"], trial["metric"], trial["step"]] for trial in answer["trials"]}


def assert_promise(sweep: Sweep, answer: Mapping[str, Any]) -> None:
    """Hold what is there now to what the uninterrupted sweep left."""
    expected = reference(sweep.name, sweep.overrides)
    given = results(answer)
    assert given == expected["results"], f"other results than the uninterrupted sweep's: {given}"
    assert answer["best"] == expected["best"]
    runs = sweep.runs()
    assert runs.keys() == given.keys()
    for key, run in runs.items():
        assert run.status == "FINISHED", f"trial {key} stands as {run.status}"
        assert [list(point) for point in run.points] == expected["points"][key], f"trial {key}: other points"
        before = sweep.newest_checkpoint(key, before=run.epoch)
        done = run.record["step"] if run.record["outcome"] == "diverged" else STEPS
        assert run.record["resumed_at"] >= min(before, done), (
            f"trial {key} began again at {run.record['resumed_at']} with a checkpoint at {before}"
        )
    assert sweep.weights() == expected["weights"], "other weights than the uninterrupted sweep's"
    sweep.nothing_left()


def reference(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What the sweep that nobody hurts ends with; made once where CACHE says, else once a process."""
    cache = Path(os.environ.setdefault(CACHE, tempfile.gettempdir() + f"/muxfer-faults-{os.getpid()}"))
    cache.mkdir(parents=True, exist_ok=True)
    place = cache / (hashlib.sha256(json.dumps([name, *overrides]).encode()).hexdigest()[:16] + ".json")
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                sweep = Sweep(Path(folder), overrides, name=name)
                began = time.monotonic()
                answer = sweep.finish()
                wall_seconds = time.monotonic() - began
                points = {key: [list(point) for point in run.points] for key, run in sweep.runs().items()}
                found = {
                    "results": results(answer),
                    "best": answer["best"],
                    "points": points,
                    "weights": sweep.weights(),
                    "wall_seconds": wall_seconds,
                }
                sweep.nothing_left()
            place.write_text(json.dumps(found))
    return dict(json.loads(place.read_text()))
