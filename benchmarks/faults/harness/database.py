"""Read trials and lease holders from a sweep's SQLite database, without muxfer's own readers."""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial's run in the database. `points` are (name, step, value), in order."""

    status: str
    points: tuple[tuple[str, int, float], ...]
    record: Mapping[str, Any]
    epoch: int


@contextmanager
def read_only(database: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        yield connection


def runs_of(database: Path) -> dict[str, TrialRow]:
    """The one active run of every trial, by trial key.

    Two active runs of a trial, or a point that is there twice, break the promise. A database without tables has none.
    """
    if not database.exists():
        return {}
    with read_only(database) as connection:
        try:
            rows = connection.execute(
                "select r.run_uuid, r.status, t.value from runs r join tags t on t.run_uuid = r.run_uuid"
                " where t.key = 'muxfer.key' and r.lifecycle_stage = 'active'"
            ).fetchall()
        except sqlite3.OperationalError:  # the tables do not exist yet
            return {}
        runs: dict[str, TrialRow] = {}
        for run_id, status, key in rows:
            assert key not in runs, f"trial {key} has two runs"
            tags = dict(connection.execute("select key, value from tags where run_uuid = ?", (run_id,)))
            points = connection.execute(
                "select key, step, value from metrics where run_uuid = ? and key != 'train_seconds' order by key, step",
                (run_id,),
            ).fetchall()
            assert len({point[:2] for point in points}) == len(points), f"trial {key}: a point is there twice"
            epochs = [int(name[15:]) for name in tags if name.startswith("muxfer.record.e")]
            record = json.loads(tags[f"muxfer.record.e{max(epochs)}"]) if epochs else {}
            runs[key] = TrialRow(status=status, points=tuple(points), record=record, epoch=max(epochs, default=0))
        return runs


def holders_of(database: Path) -> list[int]:
    """The pids of all drivers that held a lease in this database, by epoch. Drivers that lost a race are left out."""
    if not database.exists():
        return []
    with read_only(database) as connection:
        try:
            rows = connection.execute("select key, value from params where key like 'lease.e%'").fetchall()
            lost = {row[0] for row in connection.execute("select key from tags where value = 'lost the race'")}
        except sqlite3.OperationalError:  # the tables do not exist yet
            return []
    pids = {}
    for key, value in rows:
        holder, epoch = json.loads(value), key.removeprefix("lease.")
        if f"lease.released.{epoch}.{holder['token']}" not in lost:
            pids[int(epoch[1:])] = int(holder["pid"])
    return [pids[epoch] for epoch in sorted(pids)]
