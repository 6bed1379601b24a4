"""A lease has one holder at a time, by epochs and heartbeats, and uses no wall clock."""

import dataclasses
import os
import threading
import time

import pytest

from muxfer.errors import StudyBusy
from muxfer.ledger.holder import Holder
from muxfer.ledger.lease import WATCHES, Claims
from tests.ledger.lease_doubles import FakeSleep, MemoryStore, holder_elsewhere, no_sleep, take_lease


def drive_at_once(num_drivers, take):
    """The leases that drivers in threads of their own took, and how many were turned away."""
    won, lost = [], []

    def drive(number):
        try:
            won.append(take(number))
        except StudyBusy:
            lost.append(number)

    drivers = [threading.Thread(target=drive, args=(number,)) for number in range(num_drivers)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    return won, len(lost)


def test_living_holder_on_this_host_is_busy_at_once_and_named():
    store = MemoryStore()
    lease = take_lease(store, ttl_seconds=60)
    with pytest.raises(StudyBusy, match=rf"study s-1 .*pid {os.getpid()} on host .*stop it"):
        take_lease(store, ttl_seconds=60, sleep=no_sleep)
    lease.release()
    assert take_lease(store, ttl_seconds=60, sleep=no_sleep).epoch == 2


def test_dead_holder_on_this_host_is_taken_over_at_once():
    store = MemoryStore()
    store.claim(1, dataclasses.replace(Holder.this_process(), started="1"))
    assert take_lease(store, ttl_seconds=60, sleep=no_sleep).epoch == 2


@pytest.mark.parametrize("ttl_seconds", [1.0, 60.0])
def test_silent_holder_on_another_host_is_taken_over_after_the_longer_time_to_live(ttl_seconds):
    store, fake_sleep = MemoryStore(), FakeSleep()
    store.claim(1, dataclasses.replace(holder_elsewhere(), ttl_seconds=ttl_seconds))
    assert take_lease(store, ttl_seconds=30, sleep=fake_sleep).epoch == 2
    assert fake_sleep.seconds == pytest.approx(max(ttl_seconds, 30))


@pytest.mark.parametrize("step", [3600, 86400, -3600, -86400])
def test_clock_steps_change_neither_the_wait_nor_its_result(step, monkeypatch):
    """Every clock jumps at each look. The holder beats once in a time-to-live, and is not taken over."""
    store, jumps = MemoryStore(), []
    store.claim(1, holder_elsewhere())
    for name in ("time", "monotonic", "perf_counter"):
        true = getattr(time, name)
        monkeypatch.setattr(time, name, lambda true=true: true() + sum(jumps))

    def jump():
        jumps.append(step)
        if len(jumps) == WATCHES:
            store.beat(1, 0)

    fake_sleep = FakeSleep(jump)
    with pytest.raises(StudyBusy, match="node7"):
        take_lease(store, ttl_seconds=30, sleep=fake_sleep)
    assert fake_sleep.seconds == pytest.approx(30)


def test_beating_holder_on_another_host_is_busy():
    store = MemoryStore()
    store.claim(1, holder_elsewhere())
    with pytest.raises(StudyBusy, match="node7"):
        take_lease(store, ttl_seconds=30, sleep=FakeSleep(lambda: store.beat(1, 0)))


def test_lease_released_while_we_watch_is_acquired():
    store = MemoryStore()
    store.claim(1, holder_elsewhere("a"))
    assert take_lease(store, ttl_seconds=30, sleep=FakeSleep(lambda: store.released.add("a"))).epoch == 2


def test_one_of_many_concurrent_drivers_wins():
    store, start = MemoryStore(), threading.Barrier(8)
    won, lost = drive_at_once(8, lambda _: (start.wait(), take_lease(store, ttl_seconds=60)))
    assert (len(won), lost) == (1, 7)


@pytest.mark.parametrize(
    ("last", "highest_epoch", "epoch"), [(0, 0, 1), (0, 6, 7), (2, 1, 3), (2, 2, 3), (2, 3, 4), (2, 9, 10)]
)
def test_epoch_is_above_every_epoch_of_the_study(last, highest_epoch, epoch):
    """A new store, or one restored from a backup, does not know the epochs of spools and attempts."""
    store = MemoryStore()
    if last:
        store.claim(last, holder_elsewhere())
        store.release(last, holder_elsewhere())
    lease = take_lease(store, ttl_seconds=60, sleep=no_sleep, highest_epoch=lambda: highest_epoch)
    assert lease.epoch == epoch == store.read().epoch
    lease.release()
    assert take_lease(store, ttl_seconds=60, sleep=no_sleep).epoch == epoch + 1


def test_one_of_concurrent_drivers_wins_though_they_know_different_epochs():
    store, read = MemoryStore(), threading.Barrier(4)

    def take(number):
        called = []

        def highest_epoch():
            if not called:
                called.append(read.wait())
            return number

        return take_lease(store, ttl_seconds=60, highest_epoch=highest_epoch)

    won, lost = drive_at_once(4, take)
    assert (len(won), lost) == (1, 3)
    assert won[0].held()
    assert not won[0].overtaken()


@pytest.mark.parametrize("before", [["loser"], ["loser", "winner"]])
def test_loser_of_a_race_is_not_named_as_the_driver(before):
    """Its claims on runs that the winner had not seen remain until it learns that it lost."""
    us = Holder.this_process()
    holders = {name: dataclasses.replace(us, token=name, since=f"the {name}'s time") for name in ("loser", "winner")}
    store = MemoryStore()
    claiming = [holders[name] for name in before]
    store.read = lambda: Claims(epoch=1, holders=tuple(claiming), beats={"one run": "", "another": ""})
    sleeps = iter(range(100))

    def withdraw():
        claiming[:] = [holders["winner"]] if next(sleeps) else [holders["loser"], holders["winner"]]

    with pytest.raises(StudyBusy, match="the winner's time"):
        take_lease(store, ttl_seconds=30, sleep=FakeSleep(withdraw))
