"""The thread that applies spooled operations to a ledger, off the path of training."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

from muxfer.errors import LedgerUnreachable, StudyBusy
from muxfer.ledger.base import Operation
from muxfer.ledger.spool import CHUNK_BYTES, Spool

_logger = logging.getLogger(__name__)

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
