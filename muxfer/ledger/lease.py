"""Who may drive a study: one holder at a time, by epochs that only grow.

A holder claims epoch n+1 by a compare-and-set in the store; who loses it is told StudyBusy. Where something of the
study bears epoch n+1 or a higher one (the store came out of a backup, or is a new one), who won goes on to claim the
one above that: whatever they have seen, all who start at once compete for the same epoch. Whether the holder of epoch n
still lives is seen in two ways, and never on a wall clock, so a step of any clock changes nothing:

- by its process (boot id, process namespace, pid, start time), where we can see that: dead is taken over at once,
  alive is busy at once;
- by its heartbeat, a counter in the store, where we cannot (another host, another container) or where the process is
  stopped: one that we looked at WATCHES times through a time-to-live, and that stood still each time, is taken over.
  It is looks that count, not seconds: who was stopped itself has not looked.

A holder that was taken over finds another epoch in the store, or another holder, and ends. What it wrote late carries
its old epoch, which every reader ignores. An outage of the store fences nobody: without a store nobody can claim.
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

RACE_SECONDS = 0.5
"""How long the losers of a race may take to let go, before a holder is named."""
WATCHES = 20
"""How often a silent holder is looked at before it is taken over."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a store holds of one study's lease: the newest epoch, its holders, and the state of their heartbeats.

    More than one holder stands in an epoch only while a race over it is being settled; `holders` has none that let go.
    """

    epoch: int = 0
    holders: tuple[Holder, ...] = ()
    beats: Mapping[str, str] = field(default_factory=dict)


class LeaseStore(Protocol):
    """Where the lease of one study is kept. Every call may raise LedgerUnreachable."""

    def read(self) -> Claims: ...

    def claim(self, epoch: int, holder: Holder) -> bool:
        """Compare-and-set: of all who claim an epoch exactly one gets True."""

    def beat(self, epoch: int, count: int) -> None: ...

    def let_go(self, epoch: int, holder: Holder) -> None: ...


class HeldLease:
    """A lease that is ours, kept by a heartbeat thread until `release`. Implements `muxfer.ledger.Lease`."""

    def __init__(self, store: LeaseStore, epoch: int, holder: Holder, *, ttl_seconds: float) -> None:
        self.epoch = epoch
        self.holder = holder
        self.before_release: Callable[[], None] | None = None
        self.after_release: Callable[[], None] | None = None
        self._store = store
        self._ttl_seconds = ttl_seconds
        self._lost = False
        self._away = False
        self._looked = time.monotonic()
        self._done = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="muxfer-lease", daemon=True)
        self._beating.start()

    def held(self) -> bool:
        return not (self._lost or self._done.is_set())

    def surely_held(self) -> bool:
        """As `held`; where nobody has looked for a time-to-live the store is asked: we were stopped, or cut off.

        Raises LedgerUnreachable without an answer. Not for who must not wait.
        """
        if time.monotonic() - self._looked > self._ttl_seconds:
            self._look()
        return self.held()

    @property
    def lost(self) -> bool:
        """Whether another driver took it over."""
        return self._lost

    def overtaken(self) -> bool:
        """Whether another driver took it over, asked of the store now: who was stopped may not have looked yet."""
        if not self._lost:
            with contextlib.suppress(LedgerUnreachable):
                self._look()
        return self._lost

    def release(self) -> None:
        """Let the next driver in at once. Silent where the ledger is away: our process will be found dead."""
        if self._done.is_set():
            return
        try:
            if not self._lost and self.before_release is not None:
                self.before_release()
        finally:
            self._done.set()
            self._beating.join(timeout=1)
            if not (self._lost or self._away):
                with contextlib.suppress(LedgerUnreachable):
                    self._store.let_go(self.epoch, self.holder)
            if self.after_release is not None:
                self.after_release()

    def _look(self) -> None:
        """See whether the store still has us. One that came out of a backup has not, and lets another driver in."""
        began = time.monotonic()
        claims = self._store.read()
        if claims.epoch != self.epoch or self.holder.token not in {holder.token for holder in claims.holders}:
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
                self._away = False
            except LedgerUnreachable:
                self._away = True  # nobody can have taken over
            except MuxferError:
                self._lost = True  # what the store holds now is not for us: a newer muxfer has written there
                return
            except Exception as error:  # of whatever kind: a heart that stops in silence would be taken for ours
                self._away = True
                _logger.warning("the lease could not be looked at: %s", error)
            self._done.wait(self._ttl_seconds / 3)


def acquire(
    store: LeaseStore,
    label: str,
    *,
    ttl_seconds: float,
    holder: Holder | None = None,
    borne: Callable[[], int] = lambda: 0,
    sleep: Callable[[float], None] = time.sleep,
) -> HeldLease:
    """Become the holder of the next epoch, above the highest that anything of the study bears, as `borne` tells.

    Raises StudyBusy when another one lives, LedgerUnreachable.
    """
    us = replace(holder or Holder.this_process(), ttl_seconds=ttl_seconds)
    for attempts in reversed(range(16)):
        claims = store.read()
        if claims.holders:
            living = [other for other in claims.holders if other.alive() is not False]
            seen = [other for other in living if other.alive()]
            if seen:
                if len(claims.beats) > 1 and attempts:  # several runs: a race, whose losers take back what they claimed
                    sleep(RACE_SECONDS)
                    if len(seen) > 1 or store.read().holders != claims.holders:
                        continue
                raise _busy(label, seen[0])
            patience = max([ttl_seconds, *(other.ttl_seconds for other in living)])
            if living and not _silent(store, claims, ttl_seconds=patience, sleep=sleep):
                after = store.read()
                if after.epoch == claims.epoch and after.holders:
                    raise _busy(label, after.holders[0])
                continue
        following = claims.epoch + 1
        epoch = max(following, borne() + 1)
        if store.claim(following, us) and (epoch == following or store.claim(epoch, us)):
            return HeldLease(store, epoch, us, ttl_seconds=ttl_seconds)
    raise StudyBusy(f"study {label}: other drivers start on it all the time; stop them and try again")


def _silent(store: LeaseStore, claims: Claims, *, ttl_seconds: float, sleep: Callable[[float], None]) -> bool:
    """Watch for one time-to-live: True if neither the heartbeats nor the claims change."""
    for _ in range(WATCHES):
        sleep(ttl_seconds / WATCHES)
        if store.read() != claims:
            return False
    return True


def _busy(label: str, holder: Holder) -> StudyBusy:
    return StudyBusy(f"study {label} is being driven: {holder}; wait for it, or stop it, and try again")
