"""Trials on Ray Tune: one long-lived actor a slot takes trial after trial; reports come back through a queue.

Tune only executes. What is to run, what a failure means and when to stop is decided here, in the thread that calls;
Tune lives in a daemon thread of its own, so the main thread keeps the signals and can leave when Ray has died.
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
    """Whatever is written to file descriptor 1 meanwhile, by Python, by C or by a child, goes to `path` instead."""
    sys.stdout.flush()
    kept = os.dup(1)
    aside = os.open(path, os.O_WRONLY)
    os.dup2(aside, 1)
    os.close(aside)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


class RayExecutor:
    """Runs jobs on the slots of a private Ray cluster, or of the one at compute.address.

    Raises NoResources when the cluster cannot hold the slots that `compute` asks for or nothing answers at the
    address, BadInput for what is no address. From here to `close` file descriptor 1 leads nowhere: Tune prints there at
    verbose=0, and Ray a paragraph for each process that dies. `device` is what every job runs on: cpu or cuda.
    `folder` takes Tune's own files on a joined cluster, until `close`.

    A trial whose process died is started again up to compute.max_failures times, before all that wait (it goes on
    from its own checkpoint), and ends FAILED after that; one that raised an exception ends FAILED at once.
    """

    def __init__(
        self, compute: Compute, *, folder: Path, worker: str = TRIAL_RUN, update_every_seconds: float = 1.0
    ) -> None:
        self.slots = 0
        self.device = "cpu"
        self._compute = compute
        self._worker = worker
        self._update_every_seconds = update_every_seconds
        self._cluster = Cluster(compute.address)
        self._jobs: JobQueue | None = None
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._unsettled: dict[str, TrialJob] = {}
        self._last: dict[str, TrialUpdate] = {}
        self._dead: str | None = None
        self._ready: Future[None] = Future()
        self._stop = threading.Event()
        self._storage: Path | None = None
        self._folder = folder
        self._open = contextlib.ExitStack()
        self._open.enter_context(stdout_aside())
        self._thread = threading.Thread(target=self._drive, name="ray-tune", daemon=True)
        self._thread.start()
        try:
            while not wait([self._ready], timeout=0.2).done:
                self._dead = self._cluster.dead()
                if self._dead is not None:
                    raise TrialsFailed(f"{self._dead}; run the same command again")
            self._ready.result()
        except BaseException:
            self.close()
            raise

    def listening(self) -> list[str]:
        """Where others than this machine could reach the cluster."""
        return self._cluster.listening()

    def submit(self, jobs: Sequence[TrialJob]) -> None:
        assert self._jobs is not None
        placed = [replace(job, device=self.device) for job in jobs]
        self._unsettled.update({job.trial.key: job for job in placed})
        self._jobs.put([asdict(job) for job in placed])

    def updates(self, timeout_seconds: float) -> list[TrialUpdate]:
        came_in: list[TrialUpdate] = []
        with contextlib.suppress(queue.Empty):
            if self._dead is None:
                came_in += self._settle(*self._inbox.get(timeout=timeout_seconds))
            while True:
                came_in += self._settle(*self._inbox.get_nowait())
        self._dead = self._dead or self._cluster.dead()
        if self._dead is not None and not came_in:  # what came in before is handed out first
            raise TrialsFailed(f"{self._dead}; trials in flight keep their checkpoints: run the same command again")
        return came_in

    def close(self) -> None:
        """End Ray and everything that we started, within CLOSE_SECONDS; trials in flight stay resumable.

        Where Ray has died before, or does not end, its processes are killed and the thread that waits for it is left
        behind: the process should then end by os._exit, because Ray's own exit handlers would wait for the dead.
        """
        self._stop.set()
        if self._jobs is not None:
            self._jobs.close()
        if self._dead is None and self._cluster.dead() is None:
            self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self.kill()
        self._open.close()

    def kill(self) -> None:
        """End every process of Ray that we started, at once and for certain. Only os._exit may follow."""
        self._stop.set()
        self._cluster.kill()
        if self._storage is not None:
            shutil.rmtree(self._storage, ignore_errors=True)

    def _settle(self, kind: str, heard: Any) -> list[TrialUpdate]:
        """The report to hand on, if any, from what came out of Tune's thread."""
        if kind == "ended":
            dead = self._cluster.dead()
            raise TrialsFailed(
                f"{dead or f'Ray Tune ended before the trials did ({heard})'}; run the same command again"
            )
        if kind == "report":
            report = heard
        else:
            key, why = heard
            if key not in self._unsettled:
                return []
            report = failed_update(self._unsettled[key], why, last=self._last.get(key))
        if report.key not in self._unsettled:
            return []
        self._last[report.key] = report
        if report.record is not None:
            del self._last[report.key], self._unsettled[report.key]
        return [report]

    def _drive(self) -> None:
        """Ray's whole life, in one thread: its processes die with the thread that started them."""
        try:
            self._cluster.start()
            import ray

            from muxfer.executors import ray_plugins

            self.device, self.slots = resolve(self._compute, ray.cluster_resources())
            settings = {
                "worker": self._worker,
                "seconds": self._update_every_seconds,
                "orphan_seconds": self._compute.orphan_seconds,
            }
            max_failures = self._compute.max_failures
            self._jobs = jobs = ray_plugins.JobQueue(slots=self.slots, max_failures=max_failures, settings=settings)
            if self._stop.is_set():  # closed before it was open
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
        """Where Tune keeps its state, which nobody reads: gone with the session, or at `close`."""
        if self._cluster.folder is not None:
            return self._cluster.folder / "tune"
        self._storage = storage = ray_sessions.make_storage(self._folder)
        self._open.callback(shutil.rmtree, storage, ignore_errors=True)
        return storage


def resolve(compute: Compute, resources: dict[str, float]) -> tuple[str, int]:
    """The device and the number of slots on a cluster with these resources; NoResources when it has too few."""
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    device = compute.device if compute.device != "auto" else ("cuda" if gpus else "cpu")
    if device == "cuda" and not gpus:
        raise NoResources("compute.device cuda: this cluster has no GPU; use compute.device=cpu or auto")
    have, unit = (gpus, "GPU") if device == "cuda" else (cpus, "CPU")
    if not have:
        raise NoResources(f"compute.device {device}: this cluster has no {unit}; add a node that has one")
    slots = compute.slots or have
    if slots > have:
        raise NoResources(
            f"compute.slots {slots}: this cluster has {have} {unit}{'s' * (have > 1)}; use at most {have}"
        )
    return device, slots
