"""Run jobs in this very process, one after another, with nothing in between: for tests and for a debugger.

Also what every executor does with a job wherever it runs (`Attempt`): the worker is named by an importable path, and
whatever it raises ends this trial alone, in a record that says why.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from muxfer.executors.attempt import TRIAL_RUN, Attempt
from muxfer.executors.base import TrialJob, TrialUpdate


class InlineExecutor:
    """The Executor that needs nothing: `reports` itself trains, for about as long as it may wait."""

    slots = 1

    def __init__(self, *, device: str = "cpu", worker: str = TRIAL_RUN) -> None:
        self.device = device
        self._worker = worker
        self._queue: deque[TrialJob] = deque()
        self._attempt: Attempt | None = None

    def submit(self, jobs: Sequence[TrialJob]) -> None:
        self._queue.extend(replace(job, device=self.device) for job in jobs)

    def updates(self, timeout_seconds: float) -> list[TrialUpdate]:
        came_in: list[TrialUpdate] = []
        end = time.monotonic() + timeout_seconds
        while self._attempt is not None or self._queue:
            if self._attempt is None:
                self._attempt = Attempt(self._queue.popleft(), worker=self._worker)
            report = self._attempt.advance(timeout_seconds)
            came_in.append(report)
            if report.final:
                self._attempt = None
            if time.monotonic() >= end:
                break
        return came_in

    def close(self) -> None:
        self._queue.clear()
        self._attempt = None

    def kill(self) -> None:
        self.close()
