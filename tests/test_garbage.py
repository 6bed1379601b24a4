"""Garbage collection stays off for whoever put it off, whatever other threads do."""

import gc

import pytest

from muxfer.garbage import uncollected


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    gc.enable()


@pytest.mark.parametrize("on", [True, False])
def test_it_comes_back_when_the_last_leaves_and_as_it_was(on):
    if not on:
        gc.disable()
    first, second = uncollected(), uncollected()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not gc.isenabled()
    second.__exit__(None, None, None)
    assert gc.isenabled() == on


def test_a_search_that_ends_while_ray_shuts_down_does_not_bring_it_back(monkeypatch):
    """Ray ends the whole process where a finalizer comes between."""
    import ray

    from muxfer.executors.ray_processes import Cluster
    from muxfer.ledger.mlflow_client import uncollected

    search, shut_down, collecting = uncollected(), ray.shutdown, []

    def shut_down_meanwhile():
        search.__exit__(None, None, None)
        shut_down()
        collecting.append(gc.isenabled())

    monkeypatch.setattr(ray, "shutdown", shut_down_meanwhile)
    search.__enter__()
    Cluster("127.0.0.1:1").shut_down()
    assert collecting == [False]
    assert gc.isenabled()
