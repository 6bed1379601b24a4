"""The lease of a study: it has one holder at a time, and each holder has an epoch above the one before.

A holder claims epoch n+1 by a compare-and-set in the store. A driver that loses this race gets StudyBusy. Something of
the study may already bear epoch n+1 or a higher one, if the store came out of a backup or is a new one. The winner then
also claims the epoch above that. So all drivers that start at once compete for the same epoch first, whatever each of
them has seen.

A driver judges in two ways whether the holder of epoch n still lives. Neither uses a wall clock, so a step of any clock
changes nothing:

- by its process (boot id, process namespace, pid, start time), if we can see it. A dead holder is taken over at once. A
  living one means StudyBusy at once;
- by its heartbeat, a counter in the store, if we cannot see the process (another host, another container) or it is
  stopped. We look at the counter WATCHES times through one time-to-live. If it never changes, the holder is taken over.
  We count looks, not seconds: a driver that was itself stopped meanwhile did not look.

A holder that was taken over finds another epoch or another holder in the store, and ends. Its late writes carry its old
epoch, which every reader ignores. An outage of the store ends no lease: without a store, nobody can claim one.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from muxfer.errors import LedgerUnreachable, MuxferError, StudyBusy
from muxfer.ledger.holder import Holder

_logger = logging.getLogger(__name__)

RACE_SECONDS = 0.5  # How long the losers of a race may take to withdraw their claims, before a holder is named
WATCHES = 20  # How often a silent holder is looked at before it is taken over


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a store holds of one study's lease: the newest epoch, its holders, and the state of their heartbeats. An
    epoch has more than one holder only while a race for it is being settled. `holders` leaves out those that released
    their claim.
    """

    epoch: int = 0
    holders: tuple[Holder, ...] = ()
    beats: Mapping[str, str] = field(default_factory=dict)


class LeaseStore(Protocol):
    """Where the lease of one study is kept. Every call may raise LedgerUnreachable."""

    def read(self) -> Claims: ...
    def claim(self, epoch: int, holder: Holder) -> bool:
        """Compare-and-set: exactly one of all who claim an epoch gets True."""

    def beat(self, epoch: int, count: int) -> None: ...
    def release(self, epoch: int, holder: Holder) -> None: ...


class HeldLease:
    """A lease that this process holds. A thread keeps it by a heartbeat until `release`. Implements `base.Lease`."""

    def __init__(self, store: LeaseStore, epoch: int, holder: Holder, *, ttl_seconds: float) -> None:
        self.epoch = epoch
        self.before_release: Callable[[], None] | None = None
        self.after_release: Callable[[], None] | None = None
        self._holder = holder
        self._store = store
        self._ttl_seconds = ttl_seconds
        self._lost = False
        self._unreachable = False
        self._looked = time.monotonic()
        self._done = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="muxfer-lease", daemon=True)
        self._beating.start()

    @property
    def lost(self) -> bool:
        return self._lost

    def held(self) -> bool:
        return not (self._lost or self._done.is_set())

    def surely_held(self) -> bool:
        if time.monotonic() - self._looked > self._ttl_seconds:
            self._look()
        return self.held()

    def overtaken(self) -> bool:
        if not self._lost:
            with contextlib.suppress(LedgerUnreachable):
                self._look()
        return self._lost

    def release(self) -> None:
        """Let the next driver in at once. If the store is unreachable, the next driver finds our process dead."""
        if self._done.is_set():
            return
        try:
            if not self._lost and self.before_release is not None:
                self.before_release()
        finally:
            self._done.set()
            self._beating.join(timeout=1)
            if not (self._lost or self._unreachable):
                with contextlib.suppress(LedgerUnreachable):
                    self._store.release(self.epoch, self._holder)
            if self.after_release is not None:
                self.after_release()

    def _look(self) -> None:
        """Look whether the store still names us. A store that came out of a backup may not; the lease is lost then."""
        began = time.monotonic()
        claims = self._store.read()
        if claims.epoch != self.epoch or self._holder.token not in {holder.token for holder in claims.holders}:
            self._lost = True
        self._looked = began

    def _beat(self) -> None:
        count = 0
        while not self._done.is_set():
            try:
                self._look()
                if self._lost:
                    return
                self._store.beat(self.epoch, count)
                count += 1
                self._unreachable = False
            except LedgerUnreachable:
                self._unreachable = True  # nobody can have taken over
            except MuxferError:
                self._lost = True  # we may not read the store any more: a newer muxfer has written there
                return
            except Exception as error:  # of any kind: without a heartbeat another driver would take over unnoticed
                self._unreachable = True
                _logger.warning("the lease could not be read: %s", error)
            self._done.wait(self._ttl_seconds / 3)


def acquire(
    store: LeaseStore,
    label: str,
    *,
    ttl_seconds: float,
    highest_epoch: Callable[[], int],
    sleep: Callable[[float], None] = time.sleep,
) -> HeldLease:
    """Become the holder of the next epoch, which lies above every epoch that a part of the study bears.
    `highest_epoch()` returns the highest of those. Raises StudyBusy if another holder lives, and LedgerUnreachable.
    """
    us = replace(Holder.this_process(), ttl_seconds=ttl_seconds)
    for remaining_attempts in reversed(range(16)):
        claims = store.read()
        if claims.holders:
            living = [other for other in claims.holders if other.alive() is not False]
            seen = [other for other in living if other.alive()]
            if seen:
                # Beats of several runs mean a race. Its losers withdraw their claims.
                if len(claims.beats) > 1 and remaining_attempts:
                    sleep(RACE_SECONDS)
                    if len(seen) > 1 or store.read().holders != claims.holders:
                        continue
                raise _busy(label, seen[0])
            longest_ttl = max([ttl_seconds, *(other.ttl_seconds for other in living)])
            if living and not _silent(store, claims, ttl_seconds=longest_ttl, sleep=sleep):
                after = store.read()
                if after.epoch == claims.epoch and after.holders:
                    raise _busy(label, after.holders[0])
                continue
        following = claims.epoch + 1
        epoch = max(following, highest_epoch() + 1)
        if store.claim(following, us) and (epoch == following or store.claim(epoch, us)):
            return HeldLease(store, epoch, us, ttl_seconds=ttl_seconds)
    raise StudyBusy(f"study {label}: other drivers keep starting on it; stop them and try again")


def _silent(store: LeaseStore, claims: Claims, *, ttl_seconds: float, sleep: Callable[[float], None]) -> bool:
    """Watch for one time-to-live. True if neither the heartbeats nor the claims change."""
    for _ in range(WATCHES):
        sleep(ttl_seconds / WATCHES)
        if store.read() != claims:
            return False
    return True


def _busy(label: str, holder: Holder) -> StudyBusy:
    return StudyBusy(f"study {label} is being driven: {holder}; wait for it, or stop it, and try again")
