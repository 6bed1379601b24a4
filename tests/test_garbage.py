"""Garbage collection stays paused until the last block that asked for it ends, in any thread."""

import gc

import pytest

from muxfer.garbage import collection_paused


@pytest.fixture(autouse=True)
def collection_enabled_again():
    yield
    gc.enable()


@pytest.mark.parametrize("on", [True, False])
def test_collection_is_restored_when_the_last_block_ends(on):
    if not on:
        gc.disable()
    first, second = collection_paused(), collection_paused()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not gc.isenabled()
    second.__exit__(None, None, None)
    assert gc.isenabled() == on


def test_search_that_ends_during_ray_shutdown_does_not_resume_collection(monkeypatch):
    """A finalizer that runs during the shutdown would let Ray end the whole process."""
    import ray

    from muxfer.executors.ray_processes import Cluster

    search, shut_down, collecting = collection_paused(), ray.shutdown, []

    def shut_down_meanwhile():
        search.__exit__(None, None, None)
        shut_down()
        collecting.append(gc.isenabled())

    monkeypatch.setattr(ray, "shutdown", shut_down_meanwhile)
    search.__enter__()
    Cluster("127.0.0.1:1").shut_down()
    assert collecting == [False]
    assert gc.isenabled()
