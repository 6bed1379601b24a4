"""Limits."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.harness.settings import ROOT

CPU_SECONDS = 5.0
"""Of its own: another case runs beside it, and the time on the wall is not ours."""
WALL_SECONDS = 60.0


def run_command(home: Path, words: Sequence[str]) -> tuple[int, str, str, float]:
    """A command's exit code, its two outputs, and its seconds of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "muxfer", *(os.fsencode(word) for word in words)],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WALL_SECONDS,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"), seconds


class TooLong(BaseException):
    """Not an Exception: what reads bad input turns those into a refusal."""


@contextmanager
def limited() -> Iterator[None]:
    """Fail what takes too long: of the processor, or of the clock where it only waits."""

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
