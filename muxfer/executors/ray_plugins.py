"""The three places where Tune lets us in: what runs in an actor, what it asks for trials, whom it tells.

Workers import this module by its name, so it must never be `__main__`. The queue hands jobs out in order and takes
back those whose process died; the listener puts what it hears into the driver's inbox.
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

UNFIT = "muxfer: this process is not reused"
"""Stands in the error of an actor that gave itself up before it began a trial: no fault of that trial."""

ORPHANED = 86
"""The exit code of a process whose driver is gone; Ray does not hand it on, so the driver sees a process that died."""
TICKS = 20

Heard = tuple[str, Any]
"""What the driver's inbox holds: ("report", Report), ("lost", (key, why)) or ("ended", why)."""


def run_tune(
    jobs: "JobQueue",
    inbox: "queue.SimpleQueue[Heard]",
    *,
    resources: dict[str, float],
    storage: Path,
    stop: threading.Event,
) -> None:
    """Let Tune work the queue off until it is closed and empty, or `stop` is set. Runs in a thread of its own.

    Tune executes and does not remember: no checkpoints, no retries and no restore of its own.
    """
    # Else Tune starts one actor after the other, 2 s each.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(jobs.slots)
    # Tune hands the keys of S3 to its actors as arguments of their processes, which every user of the machine can read.
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
    """Ends this process when nobody has gone on for `seconds` with the trial that it holds half done.

    Each call of the driver is a heartbeat. Silence is counted in ticks of our own, not read off a clock: a process that
    was itself stopped, with its driver or with the whole machine, has not waited meanwhile.
    """

    def __init__(self) -> None:
        self._seconds = 1.0
        self._waiting = False
        self._silent = 0
        threading.Thread(target=self._watch, name="muxfer-orphan", daemon=True).start()

    def wait_for_driver(self, seconds: float) -> None:
        self._seconds, self._silent, self._waiting = seconds, 0, True

    def stop_waiting(self) -> None:
        self._waiting = False

    def _watch(self) -> None:
        while True:
            time.sleep(self._seconds / TICKS)
            self._silent = self._silent + 1 if self._waiting else 0
            if self._silent > TICKS:
                os._exit(ORPHANED)


class TrialActor(tune.Trainable):
    """A slot: one process that takes trial after trial, so that only the first pays for `import torch`.

    Its driver may be stopped, cut off, or gone from a cluster that lives on: an actor that then holds a trial half done
    ends itself (see Orphan). Between two trials it waits for ever.
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
        if self._attempt is not None and not self._attempt.sound:
            raise RuntimeError(UNFIT)
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        assert self._attempt is not None
        assert self._orphan is not None
        self._orphan.stop_waiting()
        report = self._attempt.advance(self._seconds)
        if not report.final:
            self._orphan.wait_for_driver(self._orphan_seconds)
        return {"report": report, "done": report.final}


class JobQueue(Searcher):
    """Hands jobs out in order, at most `slots` at a time. Filled by the driver's thread, asked by Tune's.

    A job whose process died goes back to the front, up to `max_failures` times.
    """

    def __init__(self, *, slots: int, max_failures: int, settings: dict[str, Any]) -> None:
        super().__init__()
        self.slots = slots
        self._max_failures = max_failures
        self._settings = settings
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
            # With nothing running Tune has nothing else to do, and would sleep a second between two questions.
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
        """Queue a lost trial's job again, before all others; its key and its deaths when it died too often for that."""
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
        return {}  # Tune pickles its searcher for Tuner.restore, which we never use; so with the next two

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


class Listener(tune.Callback):
    """Puts what happens into the driver's inbox, and no more: an exception in a callback kills a whole sweep."""

    def __init__(self, jobs: JobQueue, inbox: "queue.SimpleQueue[Heard]") -> None:
        self._jobs = jobs
        self._inbox = inbox

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._inbox.put(("report", result.get("report")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        why = _why(trial)
        given_up = self._jobs.take_back(trial.trial_id, its_fault=UNFIT not in why)
        if given_up is not None:
            key, deaths = given_up
            times = "once" if deaths == 1 else f"{deaths} times"
            self._inbox.put(("lost", (key, f"its process died {times}: {why}")))


def _why(trial: Any) -> str:
    """The error of a Tune trial in one line."""
    try:
        lines = [line.strip() for line in Path(trial.error_file).read_text().splitlines() if line.strip()]
    except Exception as broken:  # an exception in a callback kills a whole sweep
        return f"no reason is known ({broken!r})"
    lines = lines[1:] or ["no reason is known"]  # "Failure # 1 (occurred at ...)"
    from_python = "ray::" in lines[0]  # else the process died, and the first line says so
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
