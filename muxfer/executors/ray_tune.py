"""Run trials on Ray Tune: each slot is one long-lived actor, and updates come back through an inbox.

Tune only executes. The calling thread decides what runs, what a failure means and when to stop. Tune runs in a daemon
thread, so the main thread keeps the signals and can exit when Ray has died.
"""

import contextlib
import os
import queue
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muxfer.config.study import Compute
from muxfer.errors import NoResources, TrialsFailed
from muxfer.executors import ray_sessions
from muxfer.executors.attempt import TRIAL_RUN, failed_update
from muxfer.executors.base import TrialJob, TrialUpdate
from muxfer.executors.ray_processes import Cluster

if TYPE_CHECKING:
    from muxfer.executors.ray_plugins import JobQueue

CLOSE_SECONDS = 10.0


@contextlib.contextmanager
def stdout_aside(path: str = os.devnull) -> Iterator[None]:
    """Send what Python, C or a child writes to file descriptor 1 within this context to `path` instead."""
    sys.stdout.flush()
    original = os.dup(1)
    replacement = os.open(path, os.O_WRONLY)
    os.dup2(replacement, 1)
    os.close(replacement)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(original, 1)
        os.close(original)


class RayExecutor:
    """Runs jobs on the slots of a private Ray cluster, or of the one at compute.address.

    Raises NoResources when the cluster can't hold the slots that `compute` asks for, or when nothing answers at the
    address. Raises BadInput for what is no address. `device` is cpu or cuda, and every job runs on it. On a joined
    cluster `folder` holds Tune's own files until `close`. Until then file descriptor 1 leads nowhere: Tune prints to
    it even at verbose=0, and Ray prints a paragraph for each process that dies.

    A trial whose process died is started again, up to compute.max_failures times, before all waiting trials. It goes
    on from its checkpoint, and ends FAILED after that many times. A trial that raised an exception ends FAILED at once.
    """

    def __init__(
        self, compute: Compute, *, folder: Path, worker: str = TRIAL_RUN, update_every_seconds: float = 1.0
    ) -> None:
        self.slots, self.device = 0, "cpu"
        self._compute, self._folder = compute, folder
        self._worker, self._seconds = worker, update_every_seconds
        self._cluster = Cluster(compute.address)
        self._jobs: JobQueue | None = None
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._unfinished: dict[str, TrialJob] = {}
        self._newest: dict[str, TrialUpdate] = {}
        self._death: str | None = None
        self._ready: Future[None] = Future()
        self._stop = threading.Event()
        self._storage: Path | None = None
        self._open = contextlib.ExitStack()
        self._open.enter_context(stdout_aside())
        self._thread = threading.Thread(target=self._drive, name="ray-tune", daemon=True)
        self._thread.start()
        try:
            while not wait([self._ready], timeout=0.2).done:
                self._death = self._cluster.dead()
                if self._death is not None:
                    raise TrialsFailed(f"{self._death}; run the same command again")
            self._ready.result()
        except BaseException:
            self.close()
            raise

    def listening(self) -> list[str]:
        """The addresses at which other machines could reach the cluster."""
        return self._cluster.listening()

    def submit(self, jobs: Sequence[TrialJob]) -> None:
        assert self._jobs is not None
        placed = [replace(job, device=self.device) for job in jobs]
        self._unfinished.update({job.trial.key: job for job in placed})
        self._jobs.put([asdict(job) for job in placed])

    def updates(self, timeout_seconds: float) -> list[TrialUpdate]:
        new: list[TrialUpdate] = []
        with contextlib.suppress(queue.Empty):
            if self._death is None:
                new += self._take_in(*self._inbox.get(timeout=timeout_seconds))
            while True:
                new += self._take_in(*self._inbox.get_nowait())
        self._death = self._death or self._cluster.dead()
        if self._death is not None and not new:  # updates from before the death are returned first
            raise TrialsFailed(f"{self._death}; trials in flight keep their checkpoints: run the same command again")
        return new

    def close(self) -> None:
        """End Ray and every process that was started, within CLOSE_SECONDS. Trials in flight stay resumable. When Ray
        is dead already or does not end, its processes are killed and Tune's thread goes on waiting. This process should
        then end by os._exit: Ray's own exit handlers would wait for dead processes.
        """
        self._stop.set()
        if self._jobs is not None:
            self._jobs.close()
        if self._death is None and self._cluster.dead() is None:
            self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self.kill()
        self._open.close()

    def kill(self) -> None:
        """Kill every process of Ray that was started. Only os._exit may follow."""
        self._stop.set()
        self._cluster.kill()
        if self._storage is not None:
            shutil.rmtree(self._storage, ignore_errors=True)

    def _take_in(self, kind: str, content: Any) -> list[TrialUpdate]:
        """Turn an event of Tune's thread into the update to return, if any."""
        if kind == "ended":
            death = self._cluster.dead() or f"Ray Tune ended before the trials did ({content})"
            raise TrialsFailed(f"{death}; run the same command again")
        if kind == "update":
            update = content
        else:
            key, reason = content
            if key not in self._unfinished:
                return []
            update = failed_update(self._unfinished[key], reason, newest=self._newest.get(key))
        if update.key not in self._unfinished:
            return []
        self._newest[update.key] = update
        if update.record is not None:
            del self._newest[update.key], self._unfinished[update.key]
        return [update]

    def _drive(self) -> None:
        """Start, use and leave Ray, all in this one thread: Ray's processes die with the thread that started them."""
        try:
            self._cluster.start()
            import ray

            from muxfer.executors import ray_plugins

            self.device, self.slots = resolve(self._compute, ray.cluster_resources())
            max_failures, orphan_seconds = self._compute.max_failures, self._compute.orphan_seconds
            settings = {"worker": self._worker, "seconds": self._seconds, "orphan_seconds": orphan_seconds}
            self._jobs = jobs = ray_plugins.JobQueue(slots=self.slots, max_failures=max_failures, settings=settings)
            if self._stop.is_set():  # `close` was called before the cluster was ready
                jobs.close()
            self._ready.set_result(None)
            resources = {"GPU": 1.0} if self.device == "cuda" else {"CPU": 1.0}
            storage = self._make_storage()
            ray_plugins.run_tune(jobs, self._inbox, resources=resources, storage=storage, stop=self._stop)
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            self._inbox.put(("ended", f"{type(error).__name__}: {error}"))
        finally:
            if self._cluster.dead() is None:
                self._cluster.shut_down()

    def _make_storage(self) -> Path:
        """Make the folder of Tune's state, which nobody reads. It is removed with the session, or at `close`."""
        if self._cluster.folder is not None:
            return self._cluster.folder / "tune"
        self._storage = storage = ray_sessions.make_storage(self._folder)
        self._open.callback(shutil.rmtree, storage, ignore_errors=True)
        return storage


def resolve(compute: Compute, resources: dict[str, float]) -> tuple[str, int]:
    """The device and the number of slots on a cluster with these resources. Raises NoResources when it has too few."""
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    device = compute.device if compute.device != "auto" else ("cuda" if gpus else "cpu")
    if device == "cuda" and not gpus:
        raise NoResources("compute.device cuda: this cluster has no GPU; use compute.device=cpu or auto")
    available, unit = (gpus, "GPU") if device == "cuda" else (cpus, "CPU")
    if not available:
        raise NoResources(f"compute.device {device}: this cluster has no {unit}; add a node that has one")
    slots = compute.slots or available
    if slots > available:
        units = unit if available == 1 else f"{unit}s"
        raise NoResources(f"compute.slots {slots}: this cluster has {available} {units}; use at most {available}")
    return device, slots
