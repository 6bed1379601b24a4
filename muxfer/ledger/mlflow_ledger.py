"""The Ledger on MLflow. A study is a parent run, and a trial is one child run, even after retries and races.

    experiment NAME           parent run  tags muxfer.kind=study, .study, .sweep, .identity.0.., .schema; config.json
                              child run   tags muxfer.kind=proxy|target, .key, .study, .outcome, .claim.eN, .record.eN;
                                          params: setting, replicate, model.*; metrics: curves; task.json
    experiment NAME.leases    one run a study: params lease.eN (compare-and-set), tags lease.beat.eN, lease.released.eN

Idempotence: a run is searched by its tags before it is created. A POST that was retried, or came late, can make
several. Then the run claimed by the highest epoch counts, then the oldest, then the one with the lowest run id. The
others are tagged muxfer.duplicate and deleted. A point's timestamp is the run's start plus its step in ms, so sending
it again changes nothing.

Epochs: a driver that begins a trial claims its run. A record of a lower epoch than the highest claim is ignored.

A diverged trial has status FINISHED and muxfer.outcome=diverged: its result is known, and MLflow has no such status.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from muxfer.config.study import LedgerConfig
from muxfer.errors import BadInput, LedgerUnreachable, MuxferError, StudyBusy
from muxfer.ledger.base import Lease, Standing
from muxfer.ledger.folder_lock import hold_folder
from muxfer.ledger.holder import Holder
from muxfer.ledger.lease import acquire
from muxfer.ledger.mlflow_client import Refused, TrackingStore
from muxfer.ledger.mlflow_lease import LeaseRuns, last_beat, read_claims
from muxfer.ledger.mlflow_operations import spooled_path
from muxfer.ledger.mlflow_runs import StudyRuns
from muxfer.ledger.mlflow_tags import (
    RUN_NAME_CHARACTERS,
    choose_run,
    claimed_epoch,
    cut_error,
    lineage_tags,
    now_ms,
    parsing_tag,
    pretty_json,
    read_json,
    read_record,
    recorded_epoch,
    refuse_newer_schema,
    run_name,
    trial_params,
    validate_key,
)
from muxfer.ledger.spool import Spool
from muxfer.ledger.tracking_uri import default_tracking_uri, redact_uri
from muxfer.ledger.writer import BACKOFF_SECONDS, Writer
from muxfer.redaction import recordable, redact, redact_plain, with_values, with_variable_names
from muxfer.trial import Identity, Point, Record, Study, Trial, content_hash
from muxfer.validate import expect

T = TypeVar("T")
_logger = logging.getLogger(__name__)

RELEASE_SECONDS = 5.0
SPOOL = re.compile(r"spool-[0-9a-f]{8}-(\d{6,9})\.jsonl", re.ASCII)
"""A spool's name, with the epoch of its lease. A name with more digits is ignored: muxfer did not write it."""


class MlflowLedger:
    """Implements `muxfer.ledger.base.Ledger`. `folder` holds one folder for each study, where its spool lies.
    `variables` are the texts of a configuration that read the environment, by dotted path. They are recorded in place
    of their values.
    """

    def __init__(self, config: LedgerConfig, *, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        self._variables = dict(variables or {})
        self._config = config
        self._folder = folder
        self._store = TrackingStore(config.tracking_uri or default_tracking_uri())
        self._writer: Writer | None = None
        self._runs: StudyRuns | None = None
        self._home = folder
        self._lease: Lease | None = None
        self._open_trials: set[str] = set()
        self._written = False
        self._unchanged: tuple[str, list[Record]] | None = None
        """A study and its records, as last read. Kept while we drive and write nothing: nobody else may write."""

    def studies(self, name: str | None = None) -> list[Study]:
        studies: dict[str, Study] = {}
        for run in self._read({"muxfer.kind": "study"}):
            tags = run.data.tags
            sweep = tags.get("muxfer.sweep", "")
            if name in (None, sweep):
                if (key := tags.get("muxfer.study")) is None:
                    missing = f"run {run.info.run_id} has no tag muxfer.study"
                    raise BadInput(f"{missing}, so it was not written by muxfer: delete it")
                with parsing_tag(run, "muxfer.study"):
                    validate_key(key)
                with parsing_tag(run, "muxfer.identity"):
                    identity = with_values(read_json(tags, "muxfer.identity"), dict(self._variables), strict=False)
                    expect(Identity, identity)
                studies[key] = Study(name=sweep, key=key, identity=identity)
        return list(studies.values())

    def config(self, study: Study) -> Mapping[str, Any]:
        for run in self._read({"muxfer.kind": "study", "muxfer.study": validate_key(study.key)}):
            if "muxfer.config.parts" in run.data.tags:
                with parsing_tag(run, "muxfer.config"):
                    return dict(with_values(read_json(run.data.tags, "muxfer.config"), self._variables))
        raise BadInput(f"study {study.label} has no configuration in this ledger; run muxfer sweep {study.name} first")

    def acquire(self, study: Study) -> Lease:
        validate_key(study.key)
        if Path(study.label).name != study.label or not study.label.isprintable() or len(study.label) > 200:
            raise BadInput(f"study name {study.name[:80]!r} can't be a folder's: use letters, digits and dashes")
        experiment = self._store.experiment(f"{self._config.experiment}.leases", create=True)
        assert experiment is not None
        leases = LeaseRuns(self._store, experiment[0], study)
        highest_epoch = partial(self._highest_epoch, study)
        lease = acquire(leases, study.label, ttl_seconds=self._config.lease_seconds, highest_epoch=highest_epoch)
        where = f"{self._store.where}, experiment {self._config.experiment}"
        try:
            lease.after_release = hold_folder(self._folder / study.label, content_hash(experiment[1]), where)
        except StudyBusy:
            lease.release()
            raise
        return lease

    def open(self, study: Study, config: Mapping[str, Any] | None, lease: Lease) -> None:
        config = None if config is None else _without_secrets(with_variable_names(config, self._variables))
        experiment = self._store.experiment(self._config.experiment, create=True)
        assert experiment is not None
        self.close()
        self._open_trials.clear()
        recorded_study = replace(study, identity=with_variable_names(study.identity, self._variables))
        self._home = home = (self._folder / study.label).absolute()
        self._runs = StudyRuns(self._store, experiment[0], recorded_study, home=home)
        is_new, self._written = self._runs.parent(config)
        # A spool belongs to one ledger: the same folder may be used with another one tomorrow.
        spools = f"spool-{content_hash([experiment[1], self._config.experiment], length=8)}-"
        ours = home / f"{spools}{lease.epoch:06d}.jsonl"
        earlier = [path for path in sorted(home.glob(f"{spools}*.jsonl")) if path != ours]
        self._writer = Writer(
            [Spool(path) for path in [*earlier, ours]],
            self._runs.apply,
            held=lease.held,
            surely_held=lease.surely_held,
            where=f"the ledger {self._store.where}",
        )
        self._lease = lease
        lease.before_release = self._write_rest
        if self._writer.pending_bytes:
            self._writer.flush(self._config.patience_seconds)
        if is_new:
            self._write({"op": "text", "key": None, "name": "config.json", "text": pretty_json(redact_plain(config))})

    def curves(self, study: Study, name: str) -> dict[str, list[Point]]:
        chosen = {key: choose_run(same) for key, same in self._trial_runs(study).items()}
        curves = {key: partial(self._store.curve, run.info.run_id, name) for key, run in chosen.items()}
        return {
            key: [Point(name=name, step=step, value=value) for step, value in self._read_through_outage(curve)]
            for key, curve in curves.items()
        }

    def records(self, study: Study) -> list[Record]:
        if self._unchanged is not None and self._unchanged[0] == study.key:
            return list(self._unchanged[1])
        all_delivered = self._writer is not None and not self._writer.pending_bytes
        runs = self._trial_runs(study)
        records = [record for same in runs.values() if (record := read_record(choose_run(same))) is not None]
        if all_delivered:
            self._unchanged = study.key, records
        if self._writer is not None:
            for key in (key for key, same in runs.items() if len(same) > 1):
                self._write({"op": "duplicates", "key": key})
        return list(records)

    def standings(self, study: Study) -> list[Standing]:
        standings = []
        for key, same in self._trial_runs(study).items():
            run = choose_run(same)
            standing = Standing(key=key, kind=run.data.tags.get("muxfer.kind", ""), record=read_record(run))
            if standing.record is None and run.info.status == "RUNNING":
                points = self._store.curve(run.info.run_id, "train_loss")
                step, loss = points[-1] if points else (0, None)
                standing = replace(standing, running=True, step=step, loss=loss)
            standings.append(standing)
        return standings

    def driver(self, study: Study) -> Holder | None:
        if self._store.absent:
            return None
        leases = self._store.experiment(f"{self._config.experiment}.leases", create=False)
        if leases is None:
            return None
        claims = read_claims(self._store.search(leases[0], {"muxfer.study": validate_key(study.key)}, deleted=True))
        return replace(claims.holders[0], beat=last_beat(claims)) if claims.holders else None

    def begin(self, trial: Trial) -> None:
        self._open_trials.add(trial.key)
        trial = replace(trial, task=with_variable_names(trial.task, self._variables))
        tags = {"muxfer.kind": trial.kind} | redact_plain(lineage_tags(trial))
        name = redact(run_name(trial))[:RUN_NAME_CHARACTERS]
        plain = {"tags": tags, "params": redact_plain(trial_params(trial)), "task": redact_plain(trial.task)}
        self._write({"op": "begin", "key": validate_key(trial.key), "name": name, "start_ms": now_ms(), **plain})

    def report(self, key: str, points: Sequence[Point]) -> None:
        if points:
            self._write({"op": "points", "key": key, "points": [[p.name, p.step, p.value] for p in points]})

    def settle(self, record: Record, artifacts: Iterable[Path] = ()) -> None:
        self._open_trials.discard(record.key)
        self.attach(artifacts, key=record.key)
        plain = record.to_dict() | {"run_id": None}
        if record.error is not None:
            plain["error"] = cut_error(redact(record.error))
        self._write({"op": "settle", "key": record.key, "end_ms": now_ms(), "record": plain}, epoch=record.epoch)

    def attach(self, artifacts: Iterable[Path], *, key: str | None = None) -> None:
        for path in artifacts:
            self._write({"op": "file", "key": key, "path": spooled_path(path, self._home)})

    def flush(self, timeout_seconds: float, *, brief: bool = False) -> None:
        if self._writer is not None:
            self._writer.flush(timeout_seconds, brief=brief)

    def close(self) -> None:
        self._unchanged = None
        if self._writer is not None:
            fenced = self._lease is not None and self._lease.lost
            self._writer.stop(timeout_seconds=RELEASE_SECONDS, fenced=fenced)
            self._writer = None

    def _write(self, operation: dict[str, Any], *, epoch: int = 0) -> None:
        """Write an operation to the spool. Users' texts were redacted before; words of muxfer's own must stay."""
        assert self._writer is not None, "open the study first"
        assert self._lease is not None
        self._written = True
        self._unchanged = None
        self._writer.write({**operation, "epoch": epoch or self._lease.epoch})

    def _write_rest(self) -> None:
        """Mark unfinished trials and the study as not running, before the lease goes. It is brief, and may fail."""
        if self._writer is None or not self._written:
            return
        self._write({"op": "rest", "paused": sorted(self._open_trials), "end_ms": now_ms()})
        try:
            self._writer.flush(RELEASE_SECONDS, brief=True)
        except MuxferError:
            _logger.warning("%s is unreachable: the next run sends what waits in the spool", self._store.where)

    def _highest_epoch(self, study: Study) -> int:
        """The highest epoch of the study's trial runs, of its spools that wait for a replay, and of its attempts."""
        from muxfer.training.attempt_folders import highest_epoch

        home = self._folder / study.label
        runs = [run for same in self._trial_runs(study).values() for run in same]
        epochs = [max(claimed_epoch(run), recorded_epoch(run)) for run in runs]
        epochs += [int(spool[1]) for path in home.glob("spool-*") if (spool := SPOOL.fullmatch(path.name))]
        return max([highest_epoch(home), *epochs])

    def _trial_runs(self, study: Study) -> dict[str, list[Any]]:
        runs: dict[str, list[Any]] = {}
        for run in self._read({"muxfer.study": validate_key(study.key)}):
            if "muxfer.key" in run.data.tags:
                runs.setdefault(run.data.tags["muxfer.key"], []).append(run)
        return runs

    def _read(self, tags: Mapping[str, str]) -> list[Any]:
        if self._store.absent:
            return []
        runs = self._read_through_outage(partial(self._search, tags))
        refuse_newer_schema(runs, self._config.experiment)
        return runs

    def _search(self, tags: Mapping[str, str]) -> list[Any]:
        experiment = self._store.experiment(self._config.experiment, create=False)
        return [] if experiment is None else self._store.search(experiment[0], tags)

    def _read_through_outage(self, read: Callable[[], T]) -> T:
        """Call `read` until an outage is over, if we drive the study. A reader without a lease is refused at once."""
        deadline = time.monotonic() + self._config.patience_seconds
        pause = BACKOFF_SECONDS[0]
        while True:
            try:
                return read()
            except Refused:
                raise
            except LedgerUnreachable:
                driving = self._writer is not None and self._lease is not None and self._lease.held()
                if not driving or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, BACKOFF_SECONDS[1])


def _without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the passwords that its URIs hold, so that it may be recorded."""
    group = config.get("ledger")
    if isinstance(group, Mapping) and group.get("tracking_uri"):
        config = {**config, "ledger": {**group, "tracking_uri": redact_uri(group["tracking_uri"])}}
    return dict(recordable(config))
