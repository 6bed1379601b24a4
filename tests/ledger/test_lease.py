"""One driver at a time, by epochs and heartbeats; no clock on a wall has a say."""

import dataclasses
import os
import threading
import time

import pytest

from muxfer.errors import StudyBusy
from muxfer.ledger.holder import Holder
from muxfer.ledger.lease import WATCHES, Claims, acquire
from tests.ledger.lease_doubles import Nap, Shelf, elsewhere, never


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


@pytest.mark.parametrize("theirs", [1.0, 60.0])
def test_a_silent_holder_elsewhere_is_taken_over_after_the_longer_time_to_live(theirs):
    shelf, nap = Shelf(), Nap()
    shelf.claim(1, dataclasses.replace(elsewhere(), ttl_seconds=theirs))
    assert acquire(shelf, "s", ttl_seconds=30, sleep=nap).epoch == 2
    assert nap.seconds == pytest.approx(max(theirs, 30))


@pytest.mark.parametrize("step", [3600, 86400, -3600, -86400])
def test_no_clock_that_steps_makes_a_living_holder_silent_or_a_wait_longer(step, monkeypatch):
    """Every clock there is jumps at each look: the holder beats once in a time-to-live, and is not taken over."""
    shelf, jumps = Shelf(), []
    shelf.claim(1, elsewhere())
    for name in ("time", "monotonic", "perf_counter"):
        true = getattr(time, name)
        monkeypatch.setattr(time, name, lambda true=true: true() + sum(jumps))

    def jump():
        jumps.append(step)
        if len(jumps) == WATCHES:
            shelf.beat(1, 0)

    nap = Nap(jump)
    with pytest.raises(StudyBusy, match="node7"):
        acquire(shelf, "s", ttl_seconds=30, sleep=nap)
    assert nap.seconds == pytest.approx(30)


def test_a_beating_holder_elsewhere_is_busy():
    shelf = Shelf()
    shelf.claim(1, elsewhere())
    with pytest.raises(StudyBusy, match="node7"):
        acquire(shelf, "s", ttl_seconds=30, sleep=Nap(lambda: shelf.beat(1, 0)))


def test_a_holder_that_lets_go_while_we_watch_is_followed():
    shelf = Shelf()
    shelf.claim(1, elsewhere("a"))
    assert acquire(shelf, "s", ttl_seconds=30, sleep=Nap(lambda: shelf.released.add("a"))).epoch == 2


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


@pytest.mark.parametrize(
    ("last", "borne", "epoch"), [(0, 0, 1), (0, 6, 7), (2, 1, 3), (2, 2, 3), (2, 3, 4), (2, 9, 10)]
)
def test_a_lease_is_claimed_above_all_that_the_study_bears(last, borne, epoch):
    """A store that came out of a backup, or another one, knows of no epoch that a spool or an attempt bears."""
    shelf = Shelf()
    if last:
        shelf.claim(last, elsewhere())
        shelf.let_go(last, elsewhere())
    lease = acquire(shelf, "s", ttl_seconds=60, sleep=never, borne=lambda: borne)
    assert lease.epoch == epoch == shelf.read().epoch
    lease.release()
    assert acquire(shelf, "s", ttl_seconds=60, sleep=never).epoch == epoch + 1


def test_of_hosts_that_start_at_once_and_know_of_different_epochs_one_wins():
    shelf, read, won, lost = Shelf(), threading.Barrier(4), [], []

    def drive(number):
        asked = []

        def borne():
            if not asked:
                asked.append(read.wait())
            return number

        try:
            won.append(acquire(shelf, "s", ttl_seconds=60, borne=borne))
        except StudyBusy:
            lost.append(number)

    drivers = [threading.Thread(target=drive, args=(number,)) for number in range(4)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert (len(won), len(lost)) == (1, 3)
    assert won[0].held()
    assert not won[0].overtaken()


@pytest.mark.parametrize("before", [["loser"], ["loser", "winner"]])
def test_who_loses_a_race_over_a_fresh_study_is_not_named_as_its_driver(before):
    """Its claims on runs that the winner had not seen stand until it finds that it lost."""
    us = Holder.this_process()
    holders = {name: dataclasses.replace(us, token=name, since=f"the {name}'s time") for name in ("loser", "winner")}
    shelf = Shelf()
    standing = [holders[name] for name in before]
    shelf.read = lambda: Claims(epoch=1, holders=tuple(standing), beats={"one run": "", "another": ""})
    naps = iter(range(100))

    def let_go():
        standing[:] = [holders["winner"]] if next(naps) else [holders["loser"], holders["winner"]]

    with pytest.raises(StudyBusy, match="the winner's time"):
        acquire(shelf, "s", ttl_seconds=30, sleep=Nap(let_go))
