"""muxfer's three plugins for Ray Tune: the actor that runs trials, the queue of jobs, the listener for updates.

Workers import this module by its name, so it must never be `__main__`. The queue hands out jobs in order and takes
back a job whose process died. The listener puts Tune's events into the driver's inbox.
"""

import os
import queue
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from muxfer.executors.attempt import Attempt
from muxfer.executors.base import TrialJob
from muxfer.models.plugins import Plugins
from muxfer.trial import Trial

NOT_REUSED = "muxfer: this process is not reused"
"""Part of the error of an actor that refused a further trial. The refused trial is not at fault."""
ORPHANED = 86
"""The exit code of a process whose driver is gone. Ray does not pass it on: the driver sees a process that died."""
TICKS = 20

Event = tuple[str, Any]
"""An entry of the driver's inbox: ("update", TrialUpdate), ("lost", (key, reason)) or ("ended", reason)."""


def run_tune(
    jobs: "JobQueue",
    inbox: "queue.SimpleQueue[Event]",
    *,
    resources: dict[str, float],
    storage: Path,
    stop: threading.Event,
) -> None:
    """Let Tune run the queue's jobs in this thread until the queue is closed, or `stop` is set. It only executes."""
    # By default Tune starts the actors one after another, 2 s each.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(jobs.slots)
    # Tune passes the keys of S3 to its actors as process arguments, which every user of the machine can read.
    class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in class_cache.ENV_VARS_TO_PROPAGATE if "AWS" in name}
    tune.run(
        TrialActor,
        name="trials",
        storage_path=str(storage.resolve()),
        search_alg=jobs,
        num_samples=-1,
        reuse_actors=True,
        resources_per_trial=tune.PlacementGroupFactory([resources]),
        stop=_StopAll(stop),
        callbacks=[Listener(jobs, inbox)],
        trial_dirname_creator=lambda trial: trial.trial_id,
        raise_on_failed_trial=False,
        verbose=0,
    )


class Orphan:
    """Ends this process when its driver has not called for `seconds` while a trial is half done. Each call of the
    driver is a heartbeat. The silence is counted in ticks of this thread, not read from a clock. So a process that was
    stopped, with its driver or with the whole machine, does not count the time of its own stop.
    """

    def __init__(self) -> None:
        self._seconds, self._silent_ticks, self._waiting = 1.0, 0, False
        threading.Thread(target=self._watch, name="muxfer-orphan", daemon=True).start()

    def wait_for_driver(self, seconds: float) -> None:
        self._seconds, self._silent_ticks, self._waiting = seconds, 0, True

    def stop_waiting(self) -> None:
        self._waiting = False

    def _watch(self) -> None:
        while True:
            time.sleep(self._seconds / TICKS)
            self._silent_ticks = self._silent_ticks + 1 if self._waiting else 0
            if self._silent_ticks > TICKS:
                os._exit(ORPHANED)


class TrialActor(tune.Trainable):
    """A slot: one process that runs trial after trial, so that only the first pays for `import torch`. The driver may
    be stopped, be cut off, or be gone from a cluster that lives on. An actor that then has a trial half done ends
    itself (see Orphan). Between two trials it waits for ever.
    """

    _attempt: Attempt | None = None
    _orphan: Orphan | None = None

    def setup(self, config: dict[str, Any]) -> None:
        data = config["job"]
        job = TrialJob(**{**data, "trial": Trial(**data["trial"]), "plugins": Plugins(**data["plugins"])})
        if job.device == "cpu":  # two one-thread trials side by side beat one two-thread trial by 1.07 to 1.5x
            os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(1)
        self._seconds = config["seconds"]
        self._orphan_seconds = config["orphan_seconds"]
        self._attempt = Attempt(job, worker=config["worker"])
        self._orphan = self._orphan or Orphan()
        self._orphan.wait_for_driver(self._orphan_seconds)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self._attempt is not None and not self._attempt.reusable:
            raise RuntimeError(NOT_REUSED)
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        assert self._attempt is not None
        assert self._orphan is not None
        self._orphan.stop_waiting()
        update = self._attempt.advance(self._seconds)
        if not update.final:
            self._orphan.wait_for_driver(self._orphan_seconds)
        return {"update": update, "done": update.final}


class JobQueue(Searcher):
    """Hands out jobs in order, at most `slots` at once. One whose process died comes first, `max_failures` times."""

    def __init__(self, *, slots: int, max_failures: int, settings: dict[str, Any]) -> None:
        super().__init__()
        self.slots = slots
        self._max_failures, self._settings = max_failures, settings
        self._waiting: deque[dict[str, Any]] = deque()
        self._running: dict[str, dict[str, Any]] = {}
        self._lost: dict[str, dict[str, Any]] = {}
        self._deaths: Counter[str] = Counter()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, jobs: list[dict[str, Any]]) -> None:
        with self._changed:
            self._waiting.extend(jobs)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        with self._changed:
            # Block while nothing runs: Tune has nothing else to do, and would sleep a second between two calls.
            self._changed.wait_for(lambda: self._closed or self._waiting or self._running)
            if self._closed:
                return Searcher.FINISHED
            if not self._waiting or len(self._running) >= self.slots:
                return None
            self._running[trial_id] = job = self._waiting.popleft()
            return {"job": job, **self._settings}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        with self._changed:
            job = self._running.pop(trial_id, None)
            if error and job is not None:
                self._lost[trial_id] = job

    def take_back(self, trial_id: str, *, its_fault: bool) -> tuple[str, int] | None:
        """Queue a lost job again, before all others. Returns the key and deaths of a trial that died too often."""
        with self._changed:
            job = self._lost.pop(trial_id, None)
            if job is None or self._closed:
                return None
            key = job["trial"]["key"]
            self._deaths[key] += its_fault
            if self._deaths[key] > self._max_failures:
                return key, self._deaths[key]
            self._waiting.appendleft(job)
            return None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher for Tuner.restore; muxfer uses neither that nor the next two methods

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


class Listener(tune.Callback):
    """Puts Tune's events into the driver's inbox and does no more: an exception in a callback kills a whole sweep."""

    def __init__(self, jobs: JobQueue, inbox: "queue.SimpleQueue[Event]") -> None:
        self._jobs, self._inbox = jobs, inbox

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        self._inbox.put(("update", result.get("update")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = _error_line(trial)
        dead_for_good = self._jobs.take_back(trial.trial_id, its_fault=NOT_REUSED not in reason)
        if dead_for_good is not None:
            key, deaths = dead_for_good
            times = "once" if deaths == 1 else f"{deaths} times"
            self._inbox.put(("lost", (key, f"its process died {times}: {reason}")))


def _error_line(trial: Any) -> str:
    try:
        lines = [line.strip() for line in Path(trial.error_file).read_text().splitlines() if line.strip()]
    except Exception as broken:  # an exception in a callback kills a whole sweep
        return f"no reason is known ({broken!r})"
    lines = lines[1:] or ["no reason is known"]  # "Failure # 1 (occurred at ...)"
    from_python = "ray::" in lines[0]  # otherwise the process died, and the first line says so
    return lines[-1 if from_python else 0][:400]


class _StopAll(tune.Stopper):
    """Ends every trial once the event is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def stop_all(self) -> bool:
        return self._event.is_set()
