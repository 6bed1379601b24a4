"""Apply the operations of a spool to the MLflow runs of one study. Applying them again changes nothing."""

import json
import logging
import math
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from muxfer.ledger import mlflow_tags
from muxfer.ledger.base import Operation
from muxfer.ledger.mlflow_client import Metric, Refused, TrackingStore
from muxfer.ledger.mlflow_operations import resolve_spooled_path, validate_operation
from muxfer.trial import NUMERICS_VERSION, Outcome, Study, content_hash

_logger = logging.getLogger(__name__)

STATUS = {Outcome.FINISHED: "FINISHED", Outcome.DIVERGED: "FINISHED", Outcome.FAILED: "FAILED"}

FOREIGN = (TypeError, ValueError, KeyError, AttributeError, RecursionError)
"""The errors that values cause which muxfer did not write, in an operation or a tag. The store raises other errors."""


class StudyRuns:
    """Applies operations to the runs of one study. Used by one thread at a time."""

    def __init__(self, store: TrackingStore, experiment_id: str, study: Study, *, home: Path) -> None:
        """`home` is the study's folder. No file from outside it is attached."""
        self._store = store
        self._experiment_id = experiment_id
        self._study = study
        self._home = home
        self._parent_id = ""
        self._parent_is_running = False
        self._known: dict[str, tuple[str, int, int]] = {}  # By trial key: run id, start in ms, highest claim
        self._unverified: dict[str, int] = {}
        """By run id: the epoch of a status that was written and not yet verified by `_correct_late_writes`."""

    def parent(self, config: Mapping[str, Any] | None) -> tuple[bool, bool]:
        """Find or create the parent run. Returns whether `config` is new to it, and whether it has status RUNNING."""
        wanted = {"muxfer.study": self._study.key, "muxfer.kind": "study"}
        tags = {
            **wanted,
            "muxfer.sweep": self._study.name,
            "muxfer.schema": str(mlflow_tags.SCHEMA),
            "muxfer.numerics": str(NUMERICS_VERSION),
            **mlflow_tags.split_tag("muxfer.identity", json.dumps(self._study.identity, sort_keys=True)),
        }
        run = self._find_or_create(wanted, name=self._study.label, start_ms=mlflow_tags.now_ms(), tags=tags)
        self._parent_id = run.info.run_id
        is_running = run.info.status == "RUNNING"
        if config is None or run.data.tags.get("muxfer.config_hash") == content_hash(config):
            return False, is_running
        text = mlflow_tags.split_tag("muxfer.config", json.dumps(config, allow_nan=False))
        self._store.log(self._parent_id, tags={"muxfer.config_hash": content_hash(config), **text})
        return True, is_running

    def apply(self, operations: Sequence[Operation]) -> None:
        """Apply operations in order. The points of a trial are gathered until another operation of it comes."""
        operations = [operation for operation in operations if self._is_valid(operation)]
        keys = {str(each.get("key")) for each in operations if each.get("op") in ("points", "settle")}
        self._try(self._refresh_claims, keys)
        try:
            self._apply(operations)
        finally:
            self._try(self._correct_late_writes)

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
        for key, gathered in points.items():
            self._try(self._log_points, key, gathered)

    def _is_valid(self, operation: Operation) -> bool:
        try:
            validate_operation(operation)
        except ValueError as error:
            _logger.warning("skipped an operation that muxfer did not write: %s (%s)", reprlib.repr(operation), error)
            return False
        return True

    def _try(self, act: Callable[..., None], *arguments: Any) -> None:
        """Call `act`. A failure for good (a deleted run, foreign values) must not hold up the operations behind it."""
        try:
            act(*arguments)
        except FOREIGN as error:
            _logger.warning("skipped an operation that muxfer did not write: %s (%s)", reprlib.repr(arguments), error)
        except Refused:
            self._known.clear()
            try:
                act(*arguments)
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
                    self._unverified[run_id] = operation["epoch"]
            self._store.set_status(self._parent_id, "KILLED" if operation["paused"] else "FINISHED")
            self._parent_is_running = False
        else:
            self._upload(self._parent_id, operation)

    def _apply_begin(self, key: str, operation: Operation) -> None:
        tags = {"muxfer.key": key, "muxfer.study": self._study.key, "mlflow.parentRunId": self._parent_id}
        tags |= operation["tags"]
        wanted = {name: tags[name] for name in ("muxfer.key", "muxfer.study")}
        run = self._find_or_create(wanted, name=operation["name"], start_ms=operation["start_ms"], tags=tags)
        highest, epoch = mlflow_tags.claimed_epoch(run), operation["epoch"]
        is_first = highest in (0, epoch)  # also where the first one is applied again
        if epoch >= highest:
            if not self._parent_is_running:
                self._store.set_status(self._parent_id, "RUNNING")
                self._parent_is_running = True
            if f"muxfer.record.e{epoch}" not in run.data.tags:
                claim = {f"muxfer.claim.e{epoch}": "1", "muxfer.outcome": "running"}
                self._store.log(run.info.run_id, params=operation["params"] if is_first else {}, tags=claim)
                if run.info.status != "RUNNING":
                    self._store.set_status(run.info.run_id, "RUNNING")
                self._unverified[run.info.run_id] = epoch
        self._known[key] = (run.info.run_id, run.info.start_time, max(highest, epoch))
        # The artifact comes last, and may fail: the artifact store may be full while the records still have room.
        if is_first:
            self._try(self._store.upload_text, run.info.run_id, "task.json", mlflow_tags.pretty_json(operation["task"]))

    def _apply_settle(self, key: str, operation: Operation) -> None:
        run_id, start_ms, claim = self._run(key)
        record, epoch = operation["record"], operation["epoch"]
        if claim > epoch:
            return  # a newer driver has begun this trial: our late record does not count
        numbers = {"validation_loss": record["metric"], "train_seconds": record["train_seconds"]}
        step = record["step"]
        finite = {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}
        metrics = [(name, value, start_ms + step, step) for name, value in finite.items()]
        tags = {"muxfer.outcome": record["outcome"], "muxfer.step": str(step)}
        tags[f"muxfer.record.e{epoch}"] = json.dumps(record | {"epoch": epoch}, allow_nan=False)
        self._store.log(run_id, metrics=metrics, tags=tags)
        self._store.set_status(run_id, STATUS[Outcome(record["outcome"])], operation["end_ms"])
        self._unverified[run_id] = epoch

    def _refresh_claims(self, keys: Collection[str]) -> None:
        """Read the claims of these trials again, in one request. A newer driver may have begun them."""
        known = {self._known.pop(key)[0]: key for key in keys if key in self._known}
        for run in self._store.runs(self._experiment_id, [*known]):
            self._known[known[run.info.run_id]] = (run.info.run_id, run.info.start_time, mlflow_tags.claimed_epoch(run))

    def _correct_late_writes(self) -> None:
        """After writes, see whether a newer driver has one of the trials by now. If so, restore what it wrote. A status
        and a tag bear no epoch. A driver that was stopped just before it wrote them would leave a wrong value.
        """
        for run in self._store.runs(self._experiment_id, [*self._unverified]):
            newest = max(mlflow_tags.claimed_epoch(run), mlflow_tags.recorded_epoch(run))
            if newest > self._unverified[run.info.run_id]:
                self._try(self._restore, run, newest)
        self._unverified.clear()

    def _restore(self, run: Any, newest: int) -> None:
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
                if epoch >= claim  # else a newer driver has begun this trial, and sends all of its points itself
            ]
            self._store.log(run_id, metrics=metrics)

    def _upload(self, run_id: str, operation: Operation) -> None:
        """Upload a file or a text. A file that is missing or refused must not hold up the records behind it."""
        if operation["op"] == "text":
            self._store.upload_text(run_id, operation["name"], operation["text"])
            return
        try:
            file = resolve_spooled_path(operation["path"], self._home)
            if file.is_file():
                self._store.upload(run_id, file)
            else:
                _logger.warning("%r is missing: it could not be attached to run %s", str(file), run_id)
        except (OSError, ValueError) as error:
            _logger.warning("a file was not attached to run %s: %.400s", run_id, error)

    def _run(self, key: str) -> tuple[str, int, int]:
        """The run of a trial that was begun before, by us or by the driver whose spool this is."""
        if key not in self._known:
            runs = self._store.search(self._experiment_id, {"muxfer.key": key, "muxfer.study": self._study.key})
            if not runs:
                raise Refused(f"trial {key} has no run in this ledger")
            run = self._choose_and_delete_others(runs)
            self._known[key] = (run.info.run_id, run.info.start_time, mlflow_tags.claimed_epoch(run))
        return self._known[key]

    def _find_or_create(self, wanted: Mapping[str, str], *, name: str, start_ms: int, tags: Mapping[str, str]) -> Any:
        runs = self._store.search(self._experiment_id, wanted)
        if not runs:
            return self._store.create_run(self._experiment_id, name=name, start_ms=start_ms, tags=tags)
        mlflow_tags.refuse_newer_schema(runs, self._study.label)
        return self._choose_and_delete_others(runs)

    def _choose_and_delete_others(self, runs: Sequence[Any]) -> Any:
        """Choose the run that counts from the runs of one key, and delete the others. A late `create_run` made them."""
        chosen = mlflow_tags.choose_run(runs)
        for run in runs:
            if run is not chosen:
                self._store.log(run.info.run_id, tags={"muxfer.duplicate": chosen.info.run_id})
                self._store.delete(run.info.run_id)
        return chosen


def _gather(points: list[tuple[Any, ...]], operation: Operation) -> None:
    epoch = operation.get("epoch", math.inf)
    points.extend((epoch, *point) for point in operation["points"])
