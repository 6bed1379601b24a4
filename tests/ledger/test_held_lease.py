"""A lease that is held: it notices a takeover, and an outage of the store does not end it."""

import dataclasses

import pytest

from muxfer.errors import BadInput, LedgerUnreachable
from muxfer.ledger.holder import Holder
from tests.ledger.lease_doubles import MemoryStore, holder_elsewhere, take_lease


def assert_ended(lease, store):
    """It is no longer held, and it releases nothing of another driver's."""
    assert not lease.held()
    lease.release()
    assert store.released == set()


def test_overtaken_holder_ends_and_releases_nothing():
    store = MemoryStore()
    lease = take_lease(store, ttl_seconds=0.03)
    store.claim(2, holder_elsewhere("other"))
    lease._beating.join()
    assert_ended(lease, store)
    assert lease.lost


@pytest.mark.parametrize("claimed", [None, 6, 7, 8])
def test_holder_ends_when_its_store_is_restored_from_a_backup(claimed):
    store = MemoryStore()
    store.claim(6, dataclasses.replace(Holder.this_process(), started="1"))
    lease = take_lease(store, ttl_seconds=600)
    store.beaten.wait()
    assert lease.epoch == 7
    store.claims = {5: holder_elsewhere("earlier")}
    if claimed:
        store.claim(claimed, holder_elsewhere("other"))
    assert lease.overtaken()
    assert_ended(lease, store)


def test_overtaken_looks_at_the_store_before_the_next_heartbeat():
    store = MemoryStore()
    lease = take_lease(store, ttl_seconds=600)
    store.beaten.wait()
    assert not lease.overtaken()
    store.claim(2, holder_elsewhere("other"))
    store.unreachable = True
    assert not lease.overtaken()
    store.unreachable = False
    assert lease.overtaken()
    assert_ended(lease, store)


def test_surely_held_looks_at_the_store_after_a_time_to_live():
    store = MemoryStore()
    lease = take_lease(store, ttl_seconds=600)
    store.beaten.wait()
    store.claim(2, holder_elsewhere("other"))
    assert lease.surely_held(), "nobody can have taken over within a time-to-live, so it does not look"
    lease._looked -= 601
    store.unreachable = lease._unreachable = True  # only we are cut off: others may have seen no heartbeat
    with pytest.raises(LedgerUnreachable):
        lease.surely_held()
    store.unreachable = False
    assert not lease.surely_held()
    lease.release()
    assert store.released == set()


def test_holder_ends_when_a_newer_muxfer_wrote_its_lease():
    store = MemoryStore()
    lease = take_lease(store, ttl_seconds=0.03)
    store.refused = BadInput("written by a newer muxfer")
    lease._beating.join()
    assert_ended(lease, store)


@pytest.mark.parametrize("failure", [{"unreachable": True}, {"refused": RuntimeError("an unexpected error")}])
def test_outage_does_not_end_a_lease(failure):
    store = MemoryStore()
    lease = take_lease(store, ttl_seconds=0.03)
    store.beaten.wait()
    vars(store).update(failure)
    while not lease._unreachable:
        pass
    assert lease.held()
    store.beaten.clear()
    store.unreachable, store.refused = False, None
    store.beaten.wait()
    assert lease.held()
    lease.release()
    assert not lease.held()
