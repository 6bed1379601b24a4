"""One attempt at a trial always ends in a record: an exception ends that trial alone, with its error in the record.

Every executor runs its jobs through `Attempt`. The class that trains is named by a string. So this module loads no
torch, and a process that was started elsewhere imports that class itself.
"""

import importlib
from typing import Any

from muxfer.errors import MuxferError
from muxfer.executors.base import TrialJob, TrialUpdate
from muxfer.trial import Outcome

TRIAL_RUN = "muxfer.executors.worker:TrialRun"
"""The class that trains, as `module:Class`. It is made from a TrialJob and advanced until its update is final."""
MAX_MESSAGE_CHARS = 400


class Attempt:
    """Runs one job and turns an exception into a FAILED record. `reusable` becomes False once an exception that is not
    a MuxferError was raised. Such an exception may leave half a CUDA context or a patched global in the process, so the
    process must not run another trial.
    """

    def __init__(self, job: TrialJob, *, worker: str) -> None:
        self.job = job
        self.reusable = True
        self._worker = worker
        self._run: Any = None
        self._newest: TrialUpdate | None = None

    def advance(self, seconds: float) -> TrialUpdate:
        """Run for about this long and return the attempt's next update. Never raises an Exception."""
        try:
            if self._run is None:
                module, _, name = self._worker.partition(":")
                self._run = getattr(importlib.import_module(module), name)(self.job)
            self._newest = self._run.advance(seconds)
        except Exception as error:
            self.reusable = isinstance(error, MuxferError)
            return failed_update(self.job, error_line(error), newest=self._newest)
        return self._newest


def failed_update(job: TrialJob, error: str, *, newest: TrialUpdate | None = None) -> TrialUpdate:
    """The final update of a job that ended without a result. `newest` is the update that came before, if any."""
    step, train_seconds = (newest.step, newest.train_seconds) if newest else (0, 0.0)
    record = job.record(Outcome.FAILED, metric=None, step=step, train_seconds=train_seconds, error=error)
    return TrialUpdate(key=job.trial.key, step=step, train_seconds=train_seconds, record=record)


def error_line(error: BaseException) -> str:
    """Describe an exception in one line: muxfer's own message, or the type, the message and where it was raised."""
    message = " ".join(str(error).split())
    if isinstance(error, MuxferError):
        return message
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f" ({frame.tb_frame.f_code.co_filename}:{frame.tb_lineno})" if frame is not None else ""
    return f"{type(error).__name__}: {message[:MAX_MESSAGE_CHARS]}{place}"
