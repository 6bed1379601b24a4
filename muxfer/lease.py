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
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO, Protocol

from muxfer import processes
from muxfer.config import LONGEST_LEASE_SECONDS
from muxfer.errors import LedgerUnreachable, MuxferError, StudyBusy

_logger = logging.getLogger(__name__)

RACE_SECONDS = 0.5
"""How long the losers of a race may take to let go, before a holder is named."""
WATCHES = 20
"""How often a silent holder is looked at before it is taken over."""
SILENT_TTLS = 10
"""After how many times-to-live without a heartbeat a driver is shown as silent: two hosts' clocks may differ."""
FOLDER_LOCK, MAX_LOCK_CHARACTERS = ".driver.lock", 4000
"""Below a study's folder; it holds the identity of a ledger, and what to call that."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A driver's process. `boot` and `namespace` are empty where the system does not tell (no /proc).

    `ttl_seconds` is its time-to-live: who waits with a shorter one would take a living holder for silent. `beat` is
    when its heart beat last, by its host's clock, where a ledger tells: for people to see, nothing is decided by it.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    token: str
    since: str
    ttl_seconds: float = 0.0
    beat: datetime | None = None

    @classmethod
    def this_process(cls) -> "Holder":
        return cls(
            host=socket.gethostname(),
            boot=_boot_id(),
            namespace=_namespace(),
            pid=os.getpid(),
            started=str(processes.start_time(os.getpid()) or ""),
            token=secrets.token_hex(8),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
        )

    @classmethod
    def from_json(cls, text: str) -> "Holder":
        """ValueError or TypeError where it is no holder's."""
        data = json.loads(text)
        told = {name: data[name] for name in cls.__dataclass_fields__ if name in data and name != "beat"}
        for name, value in told.items():
            expected = {"pid": int, "ttl_seconds": int | float}.get(name, str)
            if not isinstance(value, expected):
                raise TypeError(f"{name} is {value!r}")
        holder = cls(**told)
        if holder.pid < 1 or not 0 <= holder.ttl_seconds <= LONGEST_LEASE_SECONDS:
            raise ValueError(f"pid is {holder.pid}, ttl_seconds {holder.ttl_seconds}")
        return holder

    def to_json(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if name != "beat"}, sort_keys=True)

    def alive(self) -> bool | None:
        """Whether the process lives; None if that cannot be seen from here, or if it is stopped."""
        if not self.boot or (self.boot, self.namespace) != (_boot_id(), _namespace()):
            return None
        found = processes.status(self.pid)
        if found is None:
            return False if processes.gone(self.pid) else None
        state, _, started = found
        if str(started) != self.started or state in "ZX":
            return False
        return None if state in "Tt" else True

    def silent(self) -> bool:
        """Whether its heart has not beaten for long, by the clocks of two hosts: for a driver that cannot be seen."""
        patience = timedelta(seconds=SILENT_TTLS * self.ttl_seconds)
        return self.beat is not None and datetime.now().astimezone() - self.beat > patience

    def __str__(self) -> str:
        return f"driver pid {self.pid} on host {self.host} has held it since {self.since}"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


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


def hold_folder(home: Path, ledger: str, where: str) -> Callable[[], None]:
    """Keep drivers of other ledgers out of a study's folder, until what is returned is called.

    Their leases know nothing of ours, and both would prune what the other one trains from. Drivers of one `ledger` (its
    identity; `where` is for people) have their lease: who takes over a stopped one finds its lock, and goes on. Raises
    StudyBusy. Where the disk refuses, or its locks are none, nobody is kept out.
    """
    path = home / FOLDER_LOCK
    for _ in range(round(RACE_SECONDS / 0.01)):
        try:
            home.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError:
            break
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            other, _, at = file.read(MAX_LOCK_CHARACTERS).partition(" ")
            file.close()
            if other == ledger:
                break
            if at:
                raise StudyBusy(
                    f"in {home} works a driver of another ledger, {at}: wait until it has ended, or give this one a"
                    " folder of its own, output_dir=FOLDER"
                ) from None
        except OSError:
            file.close()
            break
        else:
            if processes.still_named(file, path):
                with contextlib.suppress(OSError):
                    file.truncate(0)
                    file.write(f"{ledger} {where}")
                    file.flush()
                return partial(_let_in, file, path)
            file.close()
        time.sleep(0.01)  # it is being written, or was removed as we opened it
    return lambda: None


def _let_in(file: IO[str], path: Path) -> None:
    with contextlib.suppress(OSError):
        if processes.still_named(file, path):
            path.unlink()
        file.close()


def _silent(store: LeaseStore, claims: Claims, *, ttl_seconds: float, sleep: Callable[[float], None]) -> bool:
    """Watch for one time-to-live: True if neither the heartbeats nor the claims change."""
    for _ in range(WATCHES):
        sleep(ttl_seconds / WATCHES)
        if store.read() != claims:
            return False
    return True


def _busy(label: str, holder: Holder) -> StudyBusy:
    return StudyBusy(f"study {label} is being driven: {holder}; wait for it, or stop it, and try again")
