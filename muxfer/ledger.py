"""What a study needs of the place where its records are kept, and the spool that outlives that place's outages.

One driver writes; workers only report to it. Every write is an operation that may be applied twice without harm, so
it is appended to a spool on disk first, and applied to the ledger by a thread of its own, off the path of training.
What is not yet acknowledged when the driver dies is replayed by the next one. NaN and infinity are refused: a point is
finite, and divergence is an outcome.
"""

import contextlib
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from muxfer.errors import BadInput, LedgerUnreachable, StudyBusy
from muxfer.lease import Holder
from muxfer.trial import Point, Record, Study, Trial

_logger = logging.getLogger(__name__)

Operation = Mapping[str, Any]
"""One write, as plain data: applying it again, or a whole run of them again in order, changes nothing."""

CHUNK_BYTES = 1 << 20
LEAST_BYTES = 1 << 15
CHUNK_SECONDS = 5.0
"""How much of a spool is applied at a time, at most and at least, and how long that should take.

What is applied is acknowledged only then. A ledger that is slow, or was away, gets little at a time, so that a
command which is stopped has delivered something; a quick one much, for then more points of a trial go in one request.
Measured on 2026-11-29, on SQLite: 15,360 points of 64 trials take 3 s so, or in one piece, and 17 s in pieces of 32 kB.
"""
LINGER_SECONDS = 0.2
"""How long a write waits for others to share its batch."""
BACKOFF_SECONDS = (0.1, 5.0)
"""First and longest pause between attempts while the ledger is away."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a trial stands in a ledger: its record, or how far the attempt that has none yet is known to be.

    `running` is what the last driver said: where that one is dead, it was cut off.
    """

    key: str
    kind: str
    record: Record | None
    running: bool = False
    step: int = 0
    loss: float | None = None


class Lease(Protocol):
    """The right to drive a study. `epoch` grows with every holder; every reader ignores a record of a lower one."""

    epoch: int

    def held(self) -> bool:
        """Whether it is still ours; False once another driver took over (we are fenced and must end)."""

    def release(self) -> None: ...


class Ledger(Protocol):
    """Reads raise LedgerUnreachable when there is no answer; writes never do, `flush` does."""

    def studies(self, name: str | None = None) -> list[Study]:
        """Every study recorded under this sweep name; None: under any."""

    def acquire(self, study: Study) -> Lease:
        """Become the one driver of a study. StudyBusy when another one is."""

    def config(self, study: Study) -> Mapping[str, Any]:
        """The configuration that the study was last opened with, without secrets. BadInput if there is none."""

    def open(self, study: Study, config: Mapping[str, Any] | None, lease: Lease) -> None:
        """Find or create the study's parent run and replay what an earlier driver could not deliver.

        Afterwards its trials can be written. `config` None: the recorded one stays.
        """

    def records(self, study: Study) -> list[Record]:
        """The settled records of a study's trials and target, one a key, as the newest epoch has them."""

    def standings(self, study: Study) -> list[Standing]:
        """How every trial and target stands that was ever begun, one a key."""

    def driver(self, study: Study) -> Holder | None:
        """Who holds the study's lease, dead or alive; None where it was given back. Writes nothing."""

    def curves(self, study: Study, name: str) -> Mapping[str, Sequence[Point]]:
        """One curve of every trial, by trial key: one query a trial."""

    def begin(self, trial: Trial) -> None: ...

    def report(self, key: str, points: Sequence[Point]) -> None: ...

    def settle(self, record: Record, artifacts: Iterable[Path] = ()) -> None: ...

    def attach(self, artifacts: Iterable[Path], *, key: str | None = None) -> None:
        """Files for the parent run (figures, the report), or for the run of trial `key`."""

    def flush(self, timeout_seconds: float, *, brief: bool = False) -> None:
        """Wait until everything written is in the ledger, for as long as it takes something within the timeout.

        `brief`: no longer than that in all. LedgerUnreachable says how much waits in the spool.
        """

    def close(self) -> None: ...


class Spool:
    """An append-only file of operations, one JSON object a line, and beside it the offset that is acknowledged.

    The file comes with the first operation and goes when all are acknowledged, so a study with nothing to write leaves
    nothing behind. A line cut by a crash was never promised to anybody: it is dropped. Safe between two threads.
    BadInput where something else stands in the place of its files: a folder, a pipe, a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._acknowledged_path = path.with_suffix(".offset")
        self._lock = threading.RLock()
        self._file: Any = None
        self._unsynced = False
        self._waiting: list[bytes] = []
        self._taken = 0
        self._expect_files()
        self.appended = self._whole_lines()
        self.acknowledged = self._read_offset()

    @property
    def pending_bytes(self) -> int:
        with self._lock:
            return self.appended - self.acknowledged + sum(map(len, self._waiting))

    @property
    def in_memory(self) -> bool:
        """Whether something waits that the disk has not taken."""
        return bool(self._waiting)

    def append(self, operation: Operation) -> None:
        """Write one operation down. What a full disk does not take stays in memory, and is read from there."""
        line = json.dumps(operation, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self._lock:
            self._waiting.append(line)
            with contextlib.suppress(OSError):
                self._write_waiting()

    def sync(self) -> None:
        """Force what was appended to the disk. Raises OSError when the disk does not take it."""
        with self._lock:
            self._write_waiting()
            if self._unsynced:
                os.fsync(self._file.fileno())
                self._unsynced = False

    def read(self, limit_bytes: int = CHUNK_BYTES) -> tuple[list[Operation], int]:
        """The oldest operations not yet acknowledged, and the offset to acknowledge once they are applied.

        At most so many bytes of them, the last one whole.
        """
        with self._lock:
            start, stop = self.acknowledged, self.appended
            if start == stop:
                self._taken = len(self._waiting)
                return [json.loads(line) for line in self._waiting], -self._taken
        with self.path.open("rb") as file:
            file.seek(start)
            chunk = file.read(min(limit_bytes, stop - start))
            if not chunk.endswith(b"\n"):
                chunk += file.readline()
        operations = []
        for line in chunk.splitlines():
            if (operation := _operation(line)) is not None:
                operations.append(operation)
            else:
                _logger.warning("a damaged line of %s was left out: %r", self.path, line[:80])
        return operations, start + len(chunk)

    def acknowledge(self, offset: int) -> None:
        with self._lock:
            if offset < 0:  # read from memory
                del self._waiting[: self._taken]
                self._taken = 0
                return
            self.acknowledged = offset
            if offset == self.appended or not self.path.exists():  # who took us over has applied and removed it
                self._remove()
                return
            temporary = self._acknowledged_path.with_suffix(".tmp")
            temporary.write_text(str(offset))
            temporary.replace(self._acknowledged_path)

    def take_back(self) -> None:
        """What was read is not acknowledged; what of it was in memory alone may go to the disk again."""
        with self._lock:
            self._taken = 0

    def discard(self) -> None:
        """Let go of what waits, for good."""
        with self._lock:
            self._waiting.clear()
            self._remove()

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
            if self.appended == self.acknowledged:  # nothing of use is in it: a full disk took no line of it, say
                self.path.unlink(missing_ok=True)
                self._acknowledged_path.unlink(missing_ok=True)

    def _write_waiting(self) -> None:
        if not self._waiting or self._taken:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.appended:
                self._acknowledged_path.unlink(missing_ok=True)
            self._file = self.path.open("ab", buffering=0)
            self._file.truncate(self.appended)
        while self._waiting:
            line = self._waiting[0]
            try:
                if self._file.write(line) != len(line):
                    raise OSError("the disk took a part of a line only")
            except OSError:
                self._file.truncate(self.appended)
                raise
            self._waiting.pop(0)
            self.appended += len(line)
            self._unsynced = True

    def _remove(self) -> None:
        self.close()
        for path in self._files():
            path.unlink(missing_ok=True)
        self.appended = self.acknowledged = 0
        self._unsynced = False

    def _files(self) -> tuple[Path, Path, Path]:
        return self.path, self._acknowledged_path, self._acknowledged_path.with_suffix(".tmp")

    def _expect_files(self) -> None:
        for path in self._files():
            try:
                if stat.S_ISREG(path.lstat().st_mode) and os.access(path, os.R_OK | os.W_OK):
                    continue
            except FileNotFoundError:
                continue
            raise BadInput(
                f"{path} is no file that we may read and write: expected a spool of muxfer's, or nothing;"
                " move it away and run the same command again"
            )

    def _whole_lines(self) -> int:
        """Length of the file up to the end of its last whole line."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                while size:
                    start = max(0, size - CHUNK_BYTES)
                    file.seek(start)
                    end = file.read(size - start).rfind(b"\n")
                    if end >= 0:
                        return start + end + 1
                    size = start
                return 0
        except FileNotFoundError:
            return 0

    def _read_offset(self) -> int:
        """0, all of it again, where what stands there can't be: that does no harm."""
        try:
            offset = int(self._acknowledged_path.read_text())
        except (FileNotFoundError, ValueError):
            return 0
        return offset if 0 <= offset <= self.appended else 0


def _operation(line: bytes) -> Operation | None:
    """What a line of a spool says; None where the disk, or somebody else, has changed it."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class Writer:
    """The thread that applies spools to a ledger, oldest first, and comes back for as long as it takes.

    `apply` may be given the same operations again. `held` is the lease's: a driver that was taken over writes no more;
    `surely_held` is asked before each write, and may ask the store for it.
    """

    def __init__(
        self,
        spools: Sequence[Spool],
        apply: Callable[[Sequence[Operation]], None],
        *,
        held: Callable[[], bool],
        where: str,
        surely_held: Callable[[], bool] | None = None,
    ) -> None:
        """The last of the spools is ours, and takes what is written from now on."""
        self.spool = spools[-1]
        self._spools = list(spools)
        self._apply = apply
        self._held = held
        self._surely_held = surely_held or held
        self._where = where
        self._chunk_bytes = LEAST_BYTES
        self._trouble: Exception | None = None
        self._changed = threading.Condition()
        self._hurried = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="muxfer-ledger", daemon=True)
        self._thread.start()

    def write(self, operation: Operation) -> None:
        self.spool.append(operation)
        with self._changed:
            self._changed.notify_all()

    @property
    def pending_bytes(self) -> int:
        return sum(spool.pending_bytes for spool in self._spools)

    def flush(self, timeout_seconds: float, *, brief: bool = False) -> None:
        """Raises LedgerUnreachable when nothing went through for so long, StudyBusy if we were taken over.

        `brief`: when something still waits after so long.
        """
        deadline = time.monotonic() + timeout_seconds
        before = self.pending_bytes
        with self._changed:
            self._hurried += 1
            self._changed.notify_all()
            try:
                while waiting := self.pending_bytes:
                    if not self._held():
                        raise StudyBusy("another driver took this study over; this one writes no more")
                    if waiting < before and not brief:
                        deadline = time.monotonic() + timeout_seconds
                    before = waiting
                    left = deadline - time.monotonic()
                    if left <= 0 or not self._thread.is_alive():
                        why = f" ({self._trouble})" if self._trouble else ""
                        where = self.spool.path.parent
                        told = f"{waiting} bytes wait in {where}; nothing is lost"
                        if self.spool.in_memory:
                            told = f"{where} can't take them either, but the checkpoints hold them: free some space"
                        raise LedgerUnreachable(
                            f"{self._where} took nothing more within {timeout_seconds:g} s{why}:"
                            f" {told}, run the same command again when it answers"
                        )
                    self._changed.wait(min(left, 0.5))
            finally:
                self._hurried -= 1

    def stop(self, timeout_seconds: float, *, fenced: bool = False) -> None:
        """End the thread; what is not applied stays in the spool, unless we were taken over.

        Who took us over goes on from the checkpoints, which hold all of it; nobody would ever come for our spool.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        with contextlib.suppress(OSError):
            if fenced:
                self.spool.discard()
            self.spool.sync()
        for spool in self._spools:
            spool.close()

    def _run(self) -> None:
        pause = BACKOFF_SECONDS[0]
        while True:
            with self._changed:
                while not (self._stopping or self.pending_bytes):
                    self._changed.wait()
                if not (self._stopping or self._hurried or self.pending_bytes > CHUNK_BYTES):
                    self._changed.wait_for(lambda: self._stopping or self._hurried, LINGER_SECONDS)
                if self._stopping:
                    return
            try:
                self._step()
                self._trouble = None
                pause = BACKOFF_SECONDS[0]
            except Exception as error:  # of whatever kind: the operations stay in the spool, and flush tells
                self._trouble = error
                self._chunk_bytes = LEAST_BYTES
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, pause)
                pause = min(2 * pause, BACKOFF_SECONDS[1])
            with self._changed:
                self._changed.notify_all()

    def _step(self) -> None:
        try:
            self.spool.sync()
        except OSError as error:
            _logger.warning(
                "%s can't be written (%s); its lines wait in memory", self.spool.path, error.strerror or error
            )
        spool = next((spool for spool in self._spools if spool.pending_bytes), None)
        if spool is None:
            return
        if not self._surely_held():
            raise StudyBusy("the lease is not ours")
        began, before = time.monotonic(), spool.acknowledged
        try:
            operations, offset = spool.read(self._chunk_bytes)
        except FileNotFoundError:
            if spool is self.spool:
                raise
            spool.discard()  # its own driver, which we took over, woke up and took it away
            return
        try:
            self._apply(operations)
        except BaseException:
            spool.take_back()
            raise
        spool.acknowledge(offset)
        fit = 2.0 if time.monotonic() - began < CHUNK_SECONDS else 0.5
        self._chunk_bytes = min(max(int(fit * (offset - before)), LEAST_BYTES), CHUNK_BYTES)
