"""Two drivers and more on one sweep: started at once, one of them stopped and woken again, each with its own clock."""

import os
import random
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.harness.database import holders_of
from benchmarks.faults.harness.moments import random_moment, stop_between_writes, wait_for
from benchmarks.faults.harness.promise import assert_promise, reference, results
from benchmarks.faults.harness.row import Case
from benchmarks.faults.harness.server import serving
from benchmarks.faults.harness.settings import BRIEF
from benchmarks.faults.harness.sweep import Sweep, new_folder
from benchmarks.faults.harness.wrapped import STEPS_SECONDS

BRIEF_LEASE = "ledger.lease_seconds=2"
WRAPPED = "benchmarks.faults.harness.wrapped"
LATE = ("beat", "claim", "points", "record")
"""What a driver may be about to write when it stops: each kind in turn."""


def at_once(most: int, *, server: bool = False) -> Case:
    """A case of 2 to `most` drivers on one fresh sweep: its SQLite database is not there yet, or it has a server."""

    def case(seed: int, folder: Path, faults: int) -> int:
        rng = random.Random(seed)
        for number in range(faults):
            with serving(folder / f"server-{number:03d}") if server else nullcontext() as through:
                home = new_folder(folder, number)
                environment = {} if through is None else {"MLFLOW_TRACKING_URI": through.uri}
                database = None if through is None else through.database
                _race(Sweep(home, environment=environment, database=database), rng.randint(2, most))
        return faults

    return case


drivers_at_once, drivers_at_once_server = at_once(8), at_once(8, server=True)
few_at_once, few_at_once_server = at_once(3), at_once(3, server=True)


def _race(sweep: Sweep, count: int) -> None:
    drivers = [sweep.start() for _ in range(count)]
    ended = {driver.pid: sweep.end(driver) for driver in drivers}
    worked = [pid for pid, end in ended.items() if end.code == 0]
    told = [(end.code, end.last_line) for end in ended.values()]
    assert len(worked) == 1, f"of {count} drivers {len(worked)} worked: {told}"
    for pid, end in ended.items():
        if pid != worked[0]:
            end.expect(75)
            assert f"is being driven: driver pid {worked[0]} " in end.last_line, end.last_line
    answer = ended[worked[0]].expect(0).answer
    assert answer["ran"] == len(answer["trials"])
    attempts = sorted(str(path.relative_to(sweep.folder)) for path in sweep.folder.glob("muxfer/*/trials/*/*"))
    assert len(attempts) == answer["ran"], f"a trial was run twice: {attempts}"
    assert holders_of(sweep.database) == [worked[0]], "the lease had other holders than the one that worked"
    assert_promise(sweep, answer)


def holder_stopped(seed: int, folder: Path, faults: int) -> int:
    """The driver stops as it is about to write; another takes over; then it is woken, and writes that.

    The other one has the files of the first, or it has its own, as on another host: there it must begin anew, and
    what the first wrote late stands beside what it wrote itself. Sixteen seeds are each kind of write in all four ways.
    """
    rng = random.Random(seed)
    for number in range(faults):
        home = new_folder(folder, number)
        way, kind = divmod(seed + number, len(LATE))
        write = LATE[kind]
        early, apart = ((False, True), (True, False), (True, True), (False, False))[(way + kind) % 4]
        stopped = Several(home)
        # Of points there may be one batch in a quick sweep, of the others one write a trial, or more.
        at = rng.randint(1, 1 if write == "points" else 2 if BRIEF in os.environ else 4)
        first = stopped.start(BRIEF_LEASE, entry=(WRAPPED, "stop", f"{write}:{at}"))
        assert wait_for(partial(_is_stopped, first.pid), first), stopped.end(first).err
        other, where = stopped, []
        if apart:
            other = Several(
                new_folder(home, 0),
                environment={"MLFLOW_TRACKING_URI": f"sqlite:///{stopped.database}"},
                database=stopped.database,
            )
            where = [f"output_dir={other.folder / 'muxfer'}"]
        else:
            Sweep.look(stopped)  # what the other one must go on from
        second = other.start(BRIEF_LEASE, *where)
        if early:
            taken_over = partial(_has_holders, stopped.database, 2)
            assert wait_for(taken_over, second, seconds=600), other.end(second).err
        else:
            assert second.wait(600) == 0, other.end(second).err
        first.send_signal(signal.SIGCONT)
        fenced = stopped.end(first).expect(75)
        assert "another driver took" in fenced.last_line, fenced.last_line
        answer = other.end(second).expect(0).answer
        records, points = _read(other)
        assert records == results(answer), f"after a late write ({write}) the readers see other records"
        assert points == reference(other.name, other.overrides)["points"], f"({write}): the readers see other points"
        assert_promise(other, answer)
        stopped.nothing_left()
    return faults


class Several(Sweep):
    """One of several drivers of a study, in one folder or in folders of their own below that of the database."""

    def look(self) -> None:
        """What the others do meanwhile proves nothing: who stands still may have a checkpoint half written."""

    def weights(self) -> dict[str, str]:
        """Of all of them together."""
        homes = {file.parents[6] for file in self.database.parent.rglob("ema.safetensors")}
        return {key: digest for home in homes for key, digest in Sweep(home).weights().items()}


def clock_steps(seed: int, folder: Path, faults: int) -> int:
    """Drivers whose wall clocks step by an hour, by a day and backwards: killed, or stopped and taken over."""
    rng = random.Random(seed)
    sweep = Sweep(new_folder(folder, 0))
    stopped: list[subprocess.Popen[str]] = []
    for number in range(1, faults + 1):
        entry = (WRAPPED, "clock", str(rng.randrange(2**31)))
        process = sweep.start(BRIEF_LEASE, entry=entry)
        if number < faults and random_moment(sweep, process, rng):
            if rng.random() < 0.5 or process.pid not in holders_of(sweep.database):
                process.kill()
                sweep.end(process).expect(-signal.SIGKILL)
            else:
                stop_between_writes(process.pid, sweep.database)
                stopped.append(process)
            continue
        answer = sweep.end(process).expect(0).answer
        for process in stopped:
            process.send_signal(signal.SIGCONT)
            sweep.end(process).expect(75, 0)
        stopped = []
        _in_order(sweep)
        assert_promise(sweep, answer)
        sweep = Sweep(new_folder(folder, number))
    return faults


def _in_order(sweep: Sweep) -> None:
    """Every point's timestamp is its run's start plus its step in ms, whatever the clocks of its drivers said."""
    with closing(sqlite3.connect(f"file:{sweep.database}?mode=ro", uri=True)) as connection:
        stamps = connection.execute("select start_time, coalesce(end_time, start_time) from runs").fetchall()
        off = connection.execute(
            "select count(*) from metrics m join runs r on r.run_uuid = m.run_uuid"
            " where m.timestamp != r.start_time + m.step"
        ).fetchone()[0]
    furthest = max(abs(stamp / 1000 - time.time()) for pair in stamps for stamp in pair)
    assert furthest > min(STEPS_SECONDS, key=abs) / 2, "no clock that stamped these runs had stepped"
    assert not off, f"{off} points bear another time than their run's start and their step"


def _read(sweep: Sweep) -> tuple[dict[str, list[Any]], dict[str, list[list[Any]]]]:
    """What our own readers say of records and of points, in the shapes of `bench.results` and `bench.reference`."""
    from muxfer.config.study import LedgerConfig
    from muxfer.ledger.mlflow_ledger import MlflowLedger

    ledger = MlflowLedger(LedgerConfig(tracking_uri=f"sqlite:///{sweep.database}"), folder=sweep.folder / "muxfer")
    [study] = ledger.studies()
    records = {record.key: [str(record.outcome), record.metric, record.step] for record in ledger.records(study)}
    points: dict[str, list[list[Any]]] = {key: [] for key in records}
    for name in ("grad_norm", "train_loss", "validation_loss"):
        for key, curve in ledger.curves(study, name).items():
            points[key] += [[name, point.step, point.value] for point in curve]
    return records, points


def _has_holders(database: Path, count: int) -> bool:
    time.sleep(0.05)
    return len(holders_of(database)) >= count


def _is_stopped(pid: int) -> bool:
    time.sleep(0.02)
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
