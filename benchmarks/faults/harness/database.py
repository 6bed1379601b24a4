"""Reads a sweep's database."""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial's run as the database has it: points as (name, step, value), in order."""

    status: str
    points: tuple[tuple[str, int, float], ...]
    record: Mapping[str, Any]
    epoch: int


def runs_of(database: Path) -> dict[str, TrialRow]:
    if not database.exists():
        return {}
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            rows = connection.execute(
                "select r.run_uuid, r.status, t.value from runs r join tags t on t.run_uuid = r.run_uuid"
                " where t.key = 'muxfer.key' and r.lifecycle_stage = 'active'"
            ).fetchall()
        except sqlite3.OperationalError:  # not made yet
            return {}
        found: dict[str, TrialRow] = {}
        for run_id, status, key in rows:
            assert key not in found, f"trial {key} has two runs"
            tags = dict(connection.execute("select key, value from tags where run_uuid = ?", (run_id,)))
            points = connection.execute(
                "select key, step, value from metrics where run_uuid = ? and key != 'train_seconds' order by key, step",
                (run_id,),
            ).fetchall()
            assert len({point[:2] for point in points}) == len(points), f"trial {key}: a point is there twice"
            epochs = [int(name[15:]) for name in tags if name.startswith("muxfer.record.e")]
            record = json.loads(tags[f"muxfer.record.e{max(epochs)}"]) if epochs else {}
            found[key] = TrialRow(status=status, points=tuple(points), record=record, epoch=max(epochs, default=0))
        return found


def holders_of(database: Path) -> list[int]:
    """The pids of all who ever held a lease in this database, by epoch, without those who lost the race for one."""
    if not database.exists():
        return []
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            rows = connection.execute("select key, value from params where key like 'lease.e%'").fetchall()
            lost = {row[0] for row in connection.execute("select key from tags where value = 'lost the race'")}
        except sqlite3.OperationalError:  # not made yet
            return []
    found = {}
    for key, value in rows:
        holder, epoch = json.loads(value), key.removeprefix("lease.")
        if f"lease.released.{epoch}.{holder['token']}" not in lost:
            found[int(epoch[1:])] = int(holder["pid"])
    return [found[epoch] for epoch in sorted(found)]
