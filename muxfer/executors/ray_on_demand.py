"""Ray takes seconds to start: start it while something else happens, and only where trials are likely to run."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from muxfer.config.study import Compute
from muxfer.executors import ray_sessions
from muxfer.executors.base import Executor


@contextmanager
def ray_on_demand(compute: Compute, folder: Path, *, likely: bool) -> Iterator[Callable[[], Executor]]:
    """Yield what returns the executor of the study whose files are in `folder`. `likely`: Ray starts now, in a thread
    of its own. Otherwise it starts when the executor is first needed. NoResources where explicit slots or devices are
    more than there is: before the ledger records the study.
    """
    ray_sessions.remove_abandoned()  # what a killed driver left must go even where nothing is left to run

    def start() -> Executor:
        from muxfer.executors.ray_tune import RayExecutor

        return RayExecutor(compute, folder=folder)

    if not likely:
        yield start
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        started = pool.submit(start)
        taken = False
        if compute.slots is not None or compute.device != "auto":
            started.result()

        def take() -> Executor:
            nonlocal taken
            taken = True
            return started.result()

        try:
            yield take
        finally:
            if not taken and started.exception() is None:
                started.result().close()
