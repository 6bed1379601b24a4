"""A lease store in memory, a holder on another host, and a sleep that takes no time."""

import dataclasses
import threading
import time

from muxfer.errors import LedgerUnreachable
from muxfer.ledger.holder import Holder
from muxfer.ledger.lease import Claims, acquire


class MemoryStore:
    """A lease store in memory. `unreachable` makes it fail as in an outage, `refused` with that error."""

    def __init__(self):
        self.lock = threading.Lock()
        self.claims = {}
        self.released = set()
        self.count = 0
        self.unreachable = False
        self.refused = None
        self.beaten = threading.Event()

    def read(self):
        if self.unreachable:
            raise LedgerUnreachable("no answer")
        if self.refused is not None:
            raise self.refused
        with self.lock:
            epoch = max(self.claims, default=0)
            holder = self.claims.get(epoch)
            holders = () if holder is None or holder.token in self.released else (holder,)
            return Claims(epoch=epoch, holders=holders, beats={"": str(self.count)})

    def claim(self, epoch, holder):
        with self.lock:
            return self.claims.setdefault(epoch, holder) == holder

    def beat(self, epoch, count):
        self.count += 1
        self.beaten.set()

    def release(self, epoch, holder):
        self.released.add(holder.token)


class FakeSleep:
    """A sleep that takes no time. It calls `meanwhile` each time."""

    def __init__(self, meanwhile=lambda: None):
        self.seconds = 0.0
        self.meanwhile = meanwhile

    def __call__(self, seconds):
        self.seconds += seconds
        self.meanwhile()


def holder_elsewhere(token="t"):
    return dataclasses.replace(Holder.this_process(), host="node7", boot="another", token=token)


def no_sleep(seconds):
    raise AssertionError("must not wait")


def take_lease(store, *, ttl_seconds, highest_epoch=lambda: 0, sleep=time.sleep):
    return acquire(store, "s-1", ttl_seconds=ttl_seconds, highest_epoch=highest_epoch, sleep=sleep)
