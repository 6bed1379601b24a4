"""`python -m benchmarks.load [--quick]`: a large ledger, and many reporters that feed one driver.

Reading: a study of 1,000 trials in a ledger of 20,000 trials and 10 million points. MLflow makes the schema, and our
ledger writes one trial. The other trials are copies of its rows by SQL, with their own keys, settings and points,
because writing them one by one takes an hour. Then `muxfer status` and a `muxfer sweep` with nothing to do run as a
user types them. Writing: 64 processes report to the driver's real loop, which writes to a real MLflow server.

--quick is small and writes nothing. A whole run writes docs/data/load.json and the table of docs/reliability.md.
"""

import argparse
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from benchmarks.commands import ROOT, muxfer
from benchmarks.faults.harness.sweep import query
from benchmarks.page import busy_cores, facts_line, machine, replace_section, table
from benchmarks.reporter import CURVES
from benchmarks.reporters import finished, writing
from benchmarks.timing import Row, spread
from muxfer.config.study import LedgerConfig
from muxfer.config.task import to_plain
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.study.resolve import resolve
from muxfer.study.rounds import proposing
from muxfer.trial import Point, Study, Trial, content_hash

DATA = ROOT / "docs" / "data" / "load.json"
PAGE = ROOT / "docs" / "reliability.md"
START, END = "<!-- load: begin -->", "<!-- load: end -->"
PAGE_TRIALS = 1000
POINTS_A_TRIAL = 500
METRIC = 0.2


def overrides(num_trials: int) -> list[str]:
    """Overrides that give `lr-width` this many trials: 2 widths, 10 rates, and replicates."""
    rates = ",".join(f"{2.0**-number:g}" for number in range(3, 13))
    return ["search.width=[32,64]", f"search.base_lr=[{rates}]", f"search.seeds={num_trials // 20}"]


def reading(*, quick: bool, rounds: int) -> list[Row]:
    num_studies, num_trials = (2, 200) if quick else (20, PAGE_TRIALS)
    with tempfile.TemporaryDirectory(prefix="muxfer-load-") as folder:
        began = time.perf_counter()
        fill(Path(folder), num_studies=num_studies, num_trials=num_trials)
        seconds = time.perf_counter() - began
        database = Path(folder, "mlflow.db")
        [(num_points,)] = query(database, "select count(*) from metrics")
        [(num_runs,)] = query(database, "select count(*) from tags where key = 'muxfer.key'")
        size = database.stat().st_size / 1e9
        note = f"{num_trials:,} of {num_runs:,} trials, {num_points:,} points, {size:.2f} GB"
        print(f"{note}, made in {seconds:.0f} s", file=sys.stderr)
        first = command(Path(folder), "sweep", *overrides(num_trials), num_trials=num_trials)
        sweeps = [command(Path(folder), "sweep", *overrides(num_trials), num_trials=num_trials) for _ in range(rounds)]
        states = [command(Path(folder), "status", num_trials=num_trials) for _ in range(rounds)]
    name = "`muxfer sweep` with nothing to do"
    return [
        Row(name="`muxfer status lr-width`", value=spread(states), unit=" s", at_most=4, note=note),
        Row(name=name, value=spread(sweeps), unit=" s", at_most=10, note=note),
        Row(name=f"{name}, writing the report", value=spread([first]), unit=" s", note=note),
    ]


def command(folder: Path, name: str, *arguments: str, num_trials: int) -> float:
    """Wall seconds of a command as a user types it. Every trial must be done."""
    result, seconds = muxfer(folder, name, "lr-width", *arguments)
    if name == "sweep":
        num_done = result["skipped"] if result["ran"] == 0 else 0
    else:
        num_done = sum(study["states"].get("finished", 0) for study in result["studies"])
    if num_done != num_trials:
        raise RuntimeError(f"muxfer {name} counts {num_done} trials as done, expected {num_trials}")
    return seconds


def fill(folder: Path, *, num_studies: int, num_trials: int) -> None:
    """Fill a ledger with studies. The first is `lr-width` as `muxfer sweep` in this folder knows it."""
    os.environ["MLFLOW_TRACKING_URI"] = uri = f"sqlite:///{folder}/mlflow.db"
    request = resolve("lr-width", overrides(num_trials))
    trials = proposing(request.config, fingerprint=request.fingerprint)([])
    assert len(trials) == num_trials
    (request.folder / request.study.label / "trials").mkdir(parents=True)
    ledger = MlflowLedger(LedgerConfig(tracking_uri=uri), folder=request.folder)
    lease = ledger.acquire(request.study)
    ledger.open(request.study, to_plain(request.config), lease)
    ledger.begin(trials[0])
    ledger.report(trials[0].key, [Point(name=name, step=1, value=1.0) for name in CURVES])
    ledger.settle(finished(trials[0], metric=METRIC, epoch=lease.epoch))
    ledger.flush(600)
    lease.release()
    ledger.close()
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        _copy(connection, request.study, trials, num_studies=num_studies)


def _copy(connection: sqlite3.Connection, study: Study, trials: Sequence[Trial], *, num_studies: int) -> None:
    """Copy the written trial's rows for every other trial, and the first study's rows for every other study."""
    run_ids = dict(connection.execute("select value, run_uuid from tags where key = 'muxfer.key'").fetchall())
    first = run_ids[trials[0].key]
    [(parent,)] = connection.execute("select run_uuid from tags where key = 'muxfer.kind' and value = 'study'")
    tags = dict(connection.execute("select key, value from tags where run_uuid = ?", (first,)).fetchall())
    [record] = [name for name in tags if name.startswith("muxfer.record.e")]
    written = json.loads(tags[record])
    connection.execute("pragma synchronous = off")
    for number in range(num_studies):
        key = study.key if number == 0 else content_hash(["study", number])
        parent_id = parent if number == 0 else _id(key)
        if number:
            changes = {"muxfer.study": key, "muxfer.sweep": f"study-{number}", "mlflow.runName": f"study-{number}"}
            _copy_run(connection, parent, parent_id, changes, {})
        for index, trial in enumerate(trials):
            if (number, index) == (0, 0):
                continue
            own = trial.key if number == 0 else content_hash([key, index])
            settled = finished(trial, metric=METRIC + (index % 97) / 1000, epoch=written["epoch"])
            text = json.dumps(written | settled.to_dict() | {"key": own, "run_id": None})
            changes = {"muxfer.key": own, "muxfer.study": key, "mlflow.parentRunId": parent_id, record: text}
            params = {name: json.dumps(value) for name, value in trial.setting.items()}
            _copy_run(connection, first, _id(own), changes, params | {"replicate": str(trial.replicate)})
    connection.execute("update runs set start_time = start_time + 10000 * rowid")
    connection.commit()
    _add_points(connection)


def _add_points(connection: sqlite3.Connection) -> None:
    """Add the curves, trial after trial in the order of time."""
    indexes = connection.execute("select name, sql from sqlite_master where tbl_name = 'metrics' and type = 'index'")
    dropped = [(name, sql) for name, sql in indexes.fetchall() if sql is not None]
    for name, _ in dropped:  # making them at the end is faster
        connection.execute(f"drop index {name}")
    connection.executemany("delete from metrics where key = ?", [(name,) for name in CURVES])
    runs = connection.execute(
        "select r.run_uuid, r.start_time from runs r join tags t on t.run_uuid = r.run_uuid"
        " where t.key = 'muxfer.key' order by r.start_time"
    ).fetchall()
    steps = range(1, POINTS_A_TRIAL // len(CURVES) + 1)
    for number, (run_id, start) in enumerate(runs):
        connection.executemany(
            "insert into metrics (key, value, timestamp, run_uuid, step, is_nan) values (?, ?, ?, ?, ?, 0)",
            [(name, 1 / (1 + step), start + step, run_id, step) for name in CURVES for step in steps],
        )
        if number % 1000 == 999:
            connection.commit()
    for _, sql in dropped:
        connection.execute(sql)
    connection.commit()


def _id(key: str) -> str:
    return content_hash(["run", key], length=32)


def _copy_run(
    connection: sqlite3.Connection, source: str, run_id: str, tags: dict[str, str], params: dict[str, str]
) -> None:
    """Copy a run with all its rows under another id, with these tags and params changed."""
    for kind in ("runs", "tags", "params", "latest_metrics", "metrics"):
        columns = [row[1] for row in connection.execute(f"pragma table_info({kind})")]
        chosen = ", ".join("?" if column == "run_uuid" else column for column in columns)
        copied = f"insert into {kind} ({', '.join(columns)}) select {chosen} from {kind} where run_uuid = ?"
        connection.execute(copied, (run_id, source))
    for kind, changes in (("tags", tags), ("params", params)):
        connection.executemany(
            f"update {kind} set value = ? where run_uuid = ? and key = ?",
            [(value, run_id, name) for name, value in changes.items()],
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load")
    parser.add_argument("--quick", action="store_true", help="small, and writes nothing")
    parser.add_argument("--only", choices=["reading", "writing"])
    arguments = parser.parse_args()
    facts = {**machine(), "busy_cores_before": busy_cores()}
    rows: list[Row] = []
    if arguments.only != "writing":
        rows += reading(quick=arguments.quick, rounds=3)
    if arguments.only != "reading":
        rows += writing(quick=arguments.quick)
    print(body := f"{facts_line(facts)}\n\n{table(rows)}")
    if not arguments.quick and arguments.only is None:
        DATA.write_text(json.dumps({"machine": facts, "rows": [row.to_dict() for row in rows]}, indent=1) + "\n")
        PAGE.write_text(replace_section(PAGE.read_text(), START, END, body))
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
