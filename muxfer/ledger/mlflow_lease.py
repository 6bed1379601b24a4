"""The lease of a study on MLflow: a compare-and-set by params, in an experiment of its own."""

import contextlib
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from muxfer.errors import BadInput
from muxfer.ledger.holder import Holder
from muxfer.ledger.lease import Claims
from muxfer.ledger.mlflow_client import TrackingStore
from muxfer.ledger.mlflow_tags import SCHEMA, now_ms, refuse_newer_schema
from muxfer.trial import Study


class LeaseRuns:
    """Implements `muxfer.ledger.lease.LeaseStore` by params, which MLflow never changes once they are set. Drivers that
    start a study at once may each make a run. A driver claims the epoch on every run it sees, in the order of their
    ids. All drivers see the first of these runs, so exactly one of them wins there.
    """

    def __init__(self, store: TrackingStore, experiment_id: str, study: Study) -> None:
        self._store = store
        self._experiment_id = experiment_id
        self._study = study
        self._run_ids: list[str] = []

    def read(self) -> Claims:
        runs = self._search()
        if not any(run.info.lifecycle_stage == "active" for run in runs):
            tags = {"muxfer.study": self._study.key, "muxfer.kind": "lease", "muxfer.schema": str(SCHEMA)}
            self._store.create_run(self._experiment_id, name=self._study.label, start_ms=now_ms(), tags=tags)
            runs = self._search()
        self._run_ids = sorted(run.info.run_id for run in runs if run.info.lifecycle_stage == "active")
        return read_claims(runs)

    def claim(self, epoch: int, holder: Holder) -> bool:
        for number, run_id in enumerate(self._run_ids):
            if not self._store.set_once(run_id, f"lease.e{epoch}", holder.to_json()):
                for won in self._run_ids[:number]:
                    self._store.log(won, tags={f"lease.released.e{epoch}.{holder.token}": "lost the race"})
                return False
        # Without a run, nobody would see our claim: the run was deleted after we had made it.
        return bool(self._run_ids)

    def beat(self, epoch: int, count: int) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self._store.log(self._run_ids[0], tags={f"lease.beat.e{epoch}": f"{count} {now}"})

    def release(self, epoch: int, holder: Holder) -> None:
        for run_id in self._run_ids:
            self._store.log(run_id, tags={f"lease.released.e{epoch}.{holder.token}": "done"})

    def _search(self) -> list[Any]:
        runs = self._store.search(self._experiment_id, {"muxfer.study": self._study.key}, deleted=True)
        refuse_newer_schema(runs, f"study {self._study.label}")
        return runs


def last_beat(claims: Claims) -> datetime | None:
    """The time of the last heartbeat in these claims, by the clock of its host. None before the first one."""
    beats = []
    for beat in claims.beats.values():
        # The text is "" before the first heartbeat. An earlier muxfer wrote the count alone.
        with contextlib.suppress(ValueError):
            beats.append(datetime.fromisoformat(beat.partition(" ")[2]).astimezone())
    return max(beats, default=None)


def read_claims(runs: Sequence[Any]) -> Claims:
    """Read the claims from the runs of one study's lease. Deleted runs count too."""
    epochs = [int(name[7:]) for run in runs for name in run.data.params if re.fullmatch(r"lease\.e\d+", name)]
    epoch = max(epochs, default=0)
    holders, beats = {}, {}
    for run in runs:
        text = run.data.params.get(f"lease.e{epoch}")
        tags = run.data.tags
        if text is not None:
            try:
                holder = Holder.from_json(text)
            except (ValueError, TypeError, RecursionError):
                param = f"param lease.e{epoch} of run {run.info.run_id}"
                raise BadInput(f"{param} was not written by muxfer: delete that run") from None
            if f"lease.released.e{epoch}.{holder.token}" not in tags:
                holders[holder.token] = holder
        beats[run.info.run_id] = tags.get(f"lease.beat.e{epoch}", "")
    return Claims(epoch=epoch, holders=tuple(holders[token] for token in sorted(holders)), beats=beats)
