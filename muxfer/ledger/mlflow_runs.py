"""The runs of one study on MLflow, and how the operations of the spool are applied to them, as often as need be."""

import json
import logging
import math
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from muxfer.ledger.base import Operation
from muxfer.ledger.mlflow_client import Metric, Refused, TrackingStore
from muxfer.ledger.mlflow_operations import check, own_file
from muxfer.ledger.mlflow_tags import (
    SCHEMA,
    chosen_of,
    highest_claim,
    newest_record,
    now_ms,
    pretty,
    refuse_newer_schema,
    split_tag,
)
from muxfer.trial import NUMERICS_VERSION, Outcome, Study, content_hash

_logger = logging.getLogger(__name__)

STATUS = {
    Outcome.FINISHED: "FINISHED",
    Outcome.DIVERGED: "FINISHED",
    Outcome.PRUNED: "KILLED",
    Outcome.FAILED: "FAILED",
}

NONSENSE = (TypeError, ValueError, KeyError, AttributeError, RecursionError)
"""What comes of values that nobody of us wrote, in an operation or a tag; the store's own failures are others."""


class StudyRuns:
    """The runs of one study, and how an operation is applied to them. Used by one thread at a time."""

    def __init__(self, store: TrackingStore, experiment_id: str, study: Study, *, home: Path) -> None:
        """`home` is the study's folder: no file from elsewhere is attached."""
        self._store = store
        self._experiment_id = experiment_id
        self._study = study
        self._home = home
        self._parent_id = ""
        self._parent_runs = False
        self._known: dict[str, tuple[str, int, int]] = {}
        """By trial key: run id, start in ms, highest claim."""
        self._stated: dict[str, int] = {}
        """By run id: the epoch for which a status was written since it was last looked whether that was late."""

    def parent(self, config: Mapping[str, Any] | None) -> tuple[bool, bool]:
        """Find or create the parent run. Is `config` new to it, and should be attached? Does it stand as running?"""
        wanted = {"muxfer.study": self._study.key, "muxfer.kind": "study"}
        tags = {
            **wanted,
            "muxfer.sweep": self._study.name,
            "muxfer.schema": str(SCHEMA),
            "muxfer.numerics": str(NUMERICS_VERSION),
            **split_tag("muxfer.identity", json.dumps(self._study.identity, sort_keys=True)),
        }
        run = self._find_or_create(wanted, name=self._study.label, start_ms=now_ms(), tags=tags)
        self._parent_id = run.info.run_id
        known = run.data.tags.get("muxfer.config_hash")
        runs = run.info.status == "RUNNING"
        if config is None or known == content_hash(config):
            return False, runs
        text = split_tag("muxfer.config", json.dumps(config, allow_nan=False))
        self._store.log(self._parent_id, tags={"muxfer.config_hash": content_hash(config), **text})
        return True, runs

    def apply(self, operations: Sequence[Operation]) -> None:
        """Apply operations in order; points of one trial wait for each other until its next other operation."""
        operations = [operation for operation in operations if self._is_ours(operation)]
        looked_for = {str(each.get("key")) for each in operations if each.get("op") in ("points", "settle")}
        self._try(self._look_again, looked_for)
        try:
            self._apply(operations)
        finally:
            self._try(self._restate)

    def _apply(self, operations: Sequence[Operation]) -> None:
        points: dict[str, list[tuple[Any, ...]]] = {}
        for operation in operations:
            key = operation.get("key")
            if operation["op"] == "points":
                self._try(_gather, points.setdefault(str(key), []), operation)
            elif key is None:
                self._try(self._apply_to_parent, operation)
            else:
                self._try(self._log_points, key, points.pop(key, []))
                self._try(self._apply_to_trial, key, operation)
        for key, waiting in points.items():
            self._try(self._log_points, key, waiting)

    def _is_ours(self, operation: Operation) -> bool:
        try:
            check(operation)
        except ValueError as error:
            _logger.warning("what no version of ours says was left out: %s (%s)", reprlib.repr(operation), error)
            return False
        return True

    def _try(self, act: Callable[..., None], *what: Any) -> None:
        """What is refused for good (a run that a person deleted), or makes no sense, holds nothing up behind it."""
        try:
            act(*what)
        except NONSENSE as error:
            _logger.warning("what no version of ours says was left out: %s (%s)", reprlib.repr(what), error)
        except Refused:
            self._known.clear()
            try:
                act(*what)
            except Refused as error:
                _logger.warning("the ledger refused a write of study %s: %s", self._study.label, error)

    def _apply_to_trial(self, key: str, operation: Operation) -> None:
        getattr(self, f"_apply_{operation['op']}")(key, operation)

    def _apply_duplicates(self, key: str, operation: Operation) -> None:
        self._known.pop(key, None)
        self._run(key)

    def _apply_to_parent(self, operation: Operation) -> None:
        if operation["op"] == "rest":
            for key in operation["paused"]:
                run_id, _, claim = self._run(key)
                if claim <= operation["epoch"]:
                    self._store.set_status(run_id, "KILLED", operation["end_ms"])
                    self._stated[run_id] = operation["epoch"]
            self._store.set_status(self._parent_id, "KILLED" if operation["paused"] else "FINISHED")
            self._parent_runs = False
        else:
            self._upload(self._parent_id, operation)

    def _apply_begin(self, key: str, operation: Operation) -> None:
        tags = {
            "muxfer.key": key,
            "muxfer.study": self._study.key,
            "mlflow.parentRunId": self._parent_id,
            **operation["tags"],
        }
        wanted = {name: tags[name] for name in ("muxfer.key", "muxfer.study")}
        run = self._find_or_create(wanted, name=operation["name"], start_ms=operation["start_ms"], tags=tags)
        highest = highest_claim(run)
        epoch = operation["epoch"]
        is_first = highest in (0, epoch)  # or is it that again
        if epoch >= highest:
            if not self._parent_runs:
                self._store.set_status(self._parent_id, "RUNNING")
                self._parent_runs = True
            if f"muxfer.record.e{epoch}" not in run.data.tags:
                claim = {f"muxfer.claim.e{epoch}": "1", "muxfer.outcome": "running"}
                self._store.log(run.info.run_id, params=operation["params"] if is_first else {}, tags=claim)
                if run.info.status != "RUNNING":
                    self._store.set_status(run.info.run_id, "RUNNING")
                self._stated[run.info.run_id] = epoch
        self._known[key] = (run.info.run_id, run.info.start_time, max(highest, epoch))
        if is_first:  # last, and on its own: where artifacts lie there may be no room while the records have some
            self._try(self._store.upload_text, run.info.run_id, "task.json", pretty(operation["task"]))

    def _apply_settle(self, key: str, operation: Operation) -> None:
        run_id, start_ms, claim = self._run(key)
        record = operation["record"]
        epoch = operation["epoch"]
        if claim > epoch:
            return  # a newer driver has begun this trial: what we write late does not count
        numbers = {"validation_loss": record["metric"], "train_seconds": record["train_seconds"]}
        step = record["step"]
        self._store.log(
            run_id,
            metrics=[
                (name, value, start_ms + step, step)
                for name, value in numbers.items()
                if value is not None and math.isfinite(value)
            ],
            tags={
                "muxfer.outcome": record["outcome"],
                "muxfer.step": str(step),
                f"muxfer.record.e{epoch}": json.dumps(record | {"epoch": epoch}, allow_nan=False),
            },
        )
        self._store.set_status(run_id, STATUS[Outcome(record["outcome"])], operation["end_ms"])
        self._stated[run_id] = epoch

    def _look_again(self, keys: Collection[str]) -> None:
        """Put right what we know of these trials, in one request: a newer driver may have begun them."""
        known = {self._known.pop(key)[0]: key for key in keys if key in self._known}
        for run in self._store.runs(self._experiment_id, [*known]):
            self._known[known[run.info.run_id]] = (run.info.run_id, run.info.start_time, highest_claim(run))

    def _restate(self) -> None:
        """Look after writes whether they were late: where a newer driver has a trial by now, say again what it said.

        A status and a tag bear no epoch: what a driver wrote that had been stopped before the write would stand.
        """
        for run in self._store.runs(self._experiment_id, [*self._stated]):
            newest = max(highest_claim(run), newest_record(run))
            if newest > self._stated[run.info.run_id]:
                self._try(self._say_again, run, newest)
        self._stated.clear()

    def _say_again(self, run: Any, newest: int) -> None:
        record = json.loads(run.data.tags.get(f"muxfer.record.e{newest}", '{"outcome": null, "step": 0}'))
        tags = {"muxfer.outcome": record["outcome"] or "running", "muxfer.step": str(record["step"])}
        self._store.log(run.info.run_id, tags=tags)
        status = "RUNNING" if record["outcome"] is None else STATUS[Outcome(record["outcome"])]
        self._store.set_status(run.info.run_id, status, run.info.end_time)

    def _apply_file(self, key: str, operation: Operation) -> None:
        self._upload(self._run(key)[0], operation)

    def _log_points(self, key: str, points: Sequence[tuple[Any, ...]]) -> None:
        if points:
            run_id, start_ms, claim = self._run(key)
            metrics: list[Metric] = [
                (name, value, start_ms + step, step)
                for epoch, name, step, value in points
                if epoch >= claim  # a newer driver has begun this trial: it says all of its points itself
            ]
            self._store.log(run_id, metrics=metrics)

    def _upload(self, run_id: str, operation: Operation) -> None:
        """A file that is gone, or that the artifact store refuses, must not hold up the records behind it."""
        if operation["op"] == "text":
            self._store.upload_text(run_id, operation["name"], operation["text"])
            return
        try:
            file = own_file(operation["path"], self._home)
            if file.is_file():
                self._store.upload(run_id, file)
            else:
                _logger.warning("%r is gone: it could not be attached to run %s", str(file), run_id)
        except (OSError, ValueError) as error:
            _logger.warning("a file was not attached to run %s: %.400s", run_id, error)

    def _run(self, key: str) -> tuple[str, int, int]:
        """A trial's run, begun before: by us, or by the driver whose spool this is."""
        if key not in self._known:
            run = self._the_one(self._found(key))
            self._known[key] = (run.info.run_id, run.info.start_time, highest_claim(run))
        return self._known[key]

    def _found(self, key: str) -> list[Any]:
        found = self._store.search(self._experiment_id, {"muxfer.key": key, "muxfer.study": self._study.key})
        if not found:
            raise Refused(f"trial {key} has no run in this ledger")
        return found

    def _find_or_create(self, wanted: Mapping[str, str], *, name: str, start_ms: int, tags: Mapping[str, str]) -> Any:
        found = self._store.search(self._experiment_id, wanted)
        if not found:
            return self._store.create_run(self._experiment_id, name=name, start_ms=start_ms, tags=tags)
        refuse_newer_schema(found, self._study.label)
        return self._the_one(found)

    def _the_one(self, found: Sequence[Any]) -> Any:
        """Of the runs of one key the one that counts; the others go. A create that came through late makes them."""
        chosen = chosen_of(found)
        for run in found:
            if run is not chosen:
                self._store.log(run.info.run_id, tags={"muxfer.duplicate": chosen.info.run_id})
                self._store.delete(run.info.run_id)
        return chosen


def _gather(waiting: list[tuple[Any, ...]], operation: Operation) -> None:
    epoch = operation.get("epoch", math.inf)
    waiting.extend((epoch, *point) for point in operation["points"])
