"""A lease store in memory, a holder on another host, and a sleep that takes no time."""

import dataclasses
import threading

from muxfer.errors import LedgerUnreachable
from muxfer.ledger.holder import Holder
from muxfer.ledger.lease import Claims


class Shelf:
    """A lease store in memory; `away` makes it unreachable."""

    def __init__(self):
        self.lock = threading.Lock()
        self.claims = {}
        self.released = set()
        self.count = 0
        self.away = False
        self.refused = None
        self.beaten = threading.Event()

    def read(self):
        if self.away:
            raise LedgerUnreachable("away")
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

    def let_go(self, epoch, holder):
        self.released.add(holder.token)


class Nap:
    """A sleep that takes no time; `meanwhile` happens at each one."""

    def __init__(self, meanwhile=lambda: None):
        self.seconds = 0.0
        self.meanwhile = meanwhile

    def __call__(self, seconds):
        self.seconds += seconds
        self.meanwhile()


def elsewhere(token="t"):
    return dataclasses.replace(Holder.this_process(), host="node7", boot="another", token=token)


def never(seconds):
    raise AssertionError("must not wait")
