"""Run jobs in the calling process, one after another: for tests and for a debugger."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from muxfer.executors.attempt import TRIAL_RUN, Attempt
from muxfer.executors.base import TrialJob, TrialUpdate


class InlineExecutor:
    """The Executor that starts no process: `updates` itself trains, for about as long as its timeout."""

    slots = 1

    def __init__(self, *, device: str = "cpu", worker: str = TRIAL_RUN) -> None:
        self.device, self._worker = device, worker
        self._queue: deque[TrialJob] = deque()
        self._attempt: Attempt | None = None

    def submit(self, jobs: Sequence[TrialJob]) -> None:
        self._queue.extend(replace(job, device=self.device) for job in jobs)

    def updates(self, timeout_seconds: float) -> list[TrialUpdate]:
        new: list[TrialUpdate] = []
        stop_at = time.monotonic() + timeout_seconds
        while self._attempt is not None or self._queue:
            if self._attempt is None:
                self._attempt = Attempt(self._queue.popleft(), worker=self._worker)
            new.append(self._attempt.advance(timeout_seconds))
            if new[-1].final:
                self._attempt = None
            if time.monotonic() >= stop_at:
                break
        return new

    def close(self) -> None:
        self._queue.clear()
        self._attempt = None

    kill = close
