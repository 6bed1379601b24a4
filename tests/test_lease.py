"""One driver at a time, by epochs and heartbeats; no clock on a wall has a say."""

import dataclasses
import os
import threading

import pytest

from muxfer.errors import LedgerUnreachable, StudyBusy
from muxfer.lease import Claims, Holder, acquire


class Shelf:
    """A lease store in memory; `away` makes it unreachable."""

    def __init__(self):
        self.lock = threading.Lock()
        self.claims = {}
        self.released = set()
        self.count = 0
        self.away = False
        self.beaten = threading.Event()

    def read(self):
        if self.away:
            raise LedgerUnreachable("away")
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


class Clock:
    """A clock that moves when it is slept on; `meanwhile` happens at each sleep."""

    def __init__(self, meanwhile=lambda: None):
        self.now = 1e6
        self.meanwhile = meanwhile

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.meanwhile()


def elsewhere(token="t"):
    return dataclasses.replace(Holder.this_process(), host="node7", boot="another", token=token)


def never(seconds):
    raise AssertionError("must not wait")


def test_a_holder_survives_json():
    holder = Holder.this_process()
    assert Holder.from_json(holder.to_json()) == holder
    assert holder.alive() is True


def test_a_pid_that_was_given_to_another_process_is_dead():
    assert dataclasses.replace(Holder.this_process(), started="1").alive() is False


def test_another_host_or_container_cannot_be_judged_by_pid():
    assert elsewhere().alive() is None
    assert dataclasses.replace(Holder.this_process(), namespace="pid:[1]").alive() is None
    assert dataclasses.replace(Holder.this_process(), boot="", namespace="").alive() is None


def test_a_living_holder_here_is_busy_at_once_and_named():
    shelf = Shelf()
    lease = acquire(shelf, "s-1", ttl_seconds=60)
    with pytest.raises(StudyBusy, match=rf"study s-1 .*pid {os.getpid()} on host .*stop it"):
        acquire(shelf, "s-1", ttl_seconds=60, sleep=never)
    lease.release()
    assert acquire(shelf, "s-1", ttl_seconds=60, sleep=never).epoch == 2


def test_a_dead_holder_here_is_taken_over_at_once():
    shelf = Shelf()
    shelf.claim(1, dataclasses.replace(Holder.this_process(), started="1"))
    assert acquire(shelf, "s", ttl_seconds=60, sleep=never).epoch == 2


def test_a_silent_holder_elsewhere_is_taken_over_after_one_time_to_live():
    shelf, clock = Shelf(), Clock()
    shelf.claim(1, elsewhere())
    began = clock()
    assert acquire(shelf, "s", ttl_seconds=30, clock=clock, sleep=clock.sleep).epoch == 2
    assert 30 <= clock() - began <= 32


def test_a_beating_holder_elsewhere_is_busy():
    shelf = Shelf()
    shelf.claim(1, elsewhere())
    clock = Clock(meanwhile=lambda: shelf.beat(1, 0))
    with pytest.raises(StudyBusy, match="node7"):
        acquire(shelf, "s", ttl_seconds=30, clock=clock, sleep=clock.sleep)


def test_a_holder_that_lets_go_while_we_watch_is_followed():
    shelf = Shelf()
    shelf.claim(1, elsewhere("a"))
    clock = Clock(meanwhile=lambda: shelf.released.add("a"))
    assert acquire(shelf, "s", ttl_seconds=30, clock=clock, sleep=clock.sleep).epoch == 2


def test_of_many_who_start_at_once_one_wins():
    shelf, start, won, lost = Shelf(), threading.Barrier(8), [], []

    def drive():
        start.wait()
        try:
            won.append(acquire(shelf, "s", ttl_seconds=60))
        except StudyBusy:
            lost.append(1)

    drivers = [threading.Thread(target=drive) for _ in range(8)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert (len(won), len(lost)) == (1, 7)


def test_a_holder_finds_itself_fenced_and_lets_nothing_go():
    shelf = Shelf()
    lease = acquire(shelf, "s", ttl_seconds=0.03)
    shelf.claim(2, elsewhere("other"))
    lease._beating.join()
    assert not lease.held()
    assert lease.lost
    lease.release()
    assert shelf.released == set()


def test_an_outage_fences_nobody():
    shelf = Shelf()
    lease = acquire(shelf, "s", ttl_seconds=0.03)
    shelf.beaten.wait()
    shelf.away = True
    while not lease._away:
        pass
    assert lease.held()
    shelf.beaten.clear()
    shelf.away = False
    shelf.beaten.wait()
    assert lease.held()
    lease.release()
    assert not lease.held()
