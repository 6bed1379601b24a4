"""Run jobs on any executor to their records, and read from the updates which processes ran them."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from muxfer.executors.base import Executor, TrialJob, TrialUpdate
from muxfer.trial import Record


def run_jobs(executor: Executor, jobs: Sequence[TrialJob]) -> list[TrialUpdate]:
    """Every update until each job has a record."""
    executor.submit(jobs)
    keys = {job.trial.key for job in jobs}
    return collect_updates(executor, until=lambda updates: keys <= records_of(updates).keys())


def collect_updates(
    executor: Executor, *, until: Callable[[Sequence[TrialUpdate]], bool], seconds: float = 240.0
) -> list[TrialUpdate]:
    updates: list[TrialUpdate] = []
    end = time.monotonic() + seconds
    while not until(updates):
        assert time.monotonic() < end, f"only {sorted(records_of(updates))} ended"
        updates += executor.updates(0.1)
    return updates


def records_of(updates: Sequence[TrialUpdate]) -> dict[str, Record]:
    return {update.key: update.record for update in updates if update.record is not None}


def pids_of(updates: Sequence[TrialUpdate], key: str | None = None) -> list[int]:
    """The processes that ran the trials, or the one trial, in their order."""
    values = [p.value for update in updates if key in (None, update.key) for p in update.points if p.name == "pid"]
    return list(dict.fromkeys(int(value) for value in values))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still not so after {seconds} s"
        time.sleep(0.02)
