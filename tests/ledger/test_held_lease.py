"""A lease that is held: it notices a takeover, and an outage of the store does not end it."""

import dataclasses

import pytest

from muxfer.errors import BadInput, LedgerUnreachable
from muxfer.ledger.holder import Holder
from muxfer.ledger.lease import acquire
from tests.ledger.lease_doubles import Shelf, elsewhere


def test_a_holder_finds_itself_fenced_and_lets_nothing_go():
    shelf = Shelf()
    lease = acquire(shelf, "s", ttl_seconds=0.03)
    shelf.claim(2, elsewhere("other"))
    lease._beating.join()
    assert not lease.held()
    assert lease.lost
    lease.release()
    assert shelf.released == set()


@pytest.mark.parametrize("claimed", [None, 6, 7, 8])
def test_a_holder_whose_store_came_out_of_a_backup_finds_itself_fenced(claimed):
    shelf = Shelf()
    shelf.claim(6, dataclasses.replace(Holder.this_process(), started="1"))
    lease = acquire(shelf, "s", ttl_seconds=600)
    shelf.beaten.wait()
    assert lease.epoch == 7
    shelf.claims = {5: elsewhere("earlier")}
    if claimed:
        shelf.claim(claimed, elsewhere("other"))
    assert lease.overtaken()
    assert not lease.held()
    lease.release()
    assert shelf.released == set()


def test_a_holder_that_asks_is_told_before_its_next_heartbeat():
    shelf = Shelf()
    lease = acquire(shelf, "s", ttl_seconds=600)
    shelf.beaten.wait()
    assert not lease.overtaken()
    shelf.claim(2, elsewhere("other"))
    shelf.away = True
    assert not lease.overtaken()
    shelf.away = False
    assert lease.overtaken()
    assert not lease.held()
    lease.release()
    assert shelf.released == set()


def test_a_holder_that_was_stopped_asks_before_it_writes():
    shelf = Shelf()
    lease = acquire(shelf, "s", ttl_seconds=600)
    shelf.beaten.wait()
    shelf.claim(2, elsewhere("other"))
    assert lease.surely_held(), "within a time-to-live nobody can have taken over: it does not ask"
    lease._looked -= 601
    shelf.away = lease._away = True  # cut off alone: the others may have seen no beat of ours
    with pytest.raises(LedgerUnreachable):
        lease.surely_held()
    shelf.away = False
    assert not lease.surely_held()
    lease.release()
    assert shelf.released == set()


def test_a_holder_that_may_not_read_its_lease_any_more_ends():
    shelf = Shelf()
    lease = acquire(shelf, "s", ttl_seconds=0.03)
    shelf.refused = BadInput("written by a newer muxfer")
    lease._beating.join()
    assert not lease.held()
    lease.release()
    assert shelf.released == set()


@pytest.mark.parametrize("how", [{"away": True}, {"refused": RuntimeError("of a kind that nobody thought of")}])
def test_an_outage_fences_nobody_and_stops_no_heart(how):
    shelf = Shelf()
    lease = acquire(shelf, "s", ttl_seconds=0.03)
    shelf.beaten.wait()
    vars(shelf).update(how)
    while not lease._away:
        pass
    assert lease.held()
    shelf.beaten.clear()
    shelf.away, shelf.refused = False, None
    shelf.beaten.wait()
    assert lease.held()
    lease.release()
    assert not lease.held()
