"""Bad input must be refused with BadInput, or with one line by the command, within limits on time."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.harness.settings import ROOT
from muxfer.errors import BadInput

CPU_SECONDS = 5.0
"""Processor time of the call itself. Another case runs beside it, so wall time would measure that one too."""
COMMAND_SECONDS = 10.0
"""Processor time of a whole command: a valid `plan` that imports torch, Optuna and pandas needs 4 to 6 s of it."""
WALL_SECONDS = 60.0


class TooLong(BaseException):
    """A call exceeded its limit. Not an Exception: code that reads bad input turns those into refusals."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise TooLong after CPU_SECONDS of processor time, or after WALL_SECONDS if the call only waits."""

    def stop(signum: int, frame: object) -> None:
        raise TooLong(f"it took more than {CPU_SECONDS:g} s")

    for kind in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(kind, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def run_command(home: Path, words: Sequence[str], more: Mapping[str, str] | None = None) -> tuple[int, str, str, float]:
    """Run `muxfer WORDS`: its exit code, its stdout and stderr, and the processor seconds it took.

    `more` are environment variables of this command.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1"}
    command: list[str | bytes] = [sys.executable, "-m", "muxfer", *(os.fsencode(word) for word in words)]
    environment |= more or {}
    done = subprocess.run(
        command, cwd=home, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=WALL_SECONDS
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"), seconds


def refusal(act: Callable[[], object]) -> str:
    """The message of the refusal; empty if the call was not refused."""
    try:
        act()
    except BadInput as error:
        return str(error)
    return ""


def assert_refused(act: Callable[[], object], *words: str) -> None:
    """The call must be refused, with a message that contains each of the words."""
    message = refusal(act)
    assert message, "it was accepted"
    assert all(word in message for word in words), message
