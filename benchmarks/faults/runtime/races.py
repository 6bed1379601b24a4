"""Several drivers on one sweep: started at once, one stopped and woken again, or each with its own clock."""

import os
import random
import signal
import subprocess
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.harness.promise import assert_promise, random_moment, reference, results
from benchmarks.faults.harness.server import serving
from benchmarks.faults.harness.settings import BRIEF, Case
from benchmarks.faults.harness.sweep import Exit, Sweep, holders_of, new_folder, query, stop_between_writes, wait_for
from benchmarks.faults.harness.wrapped import STEPS_SECONDS
from muxfer.config.study import LedgerConfig
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.processes import status

BRIEF_LEASE = "ledger.lease_seconds=2"
WRAPPED = "benchmarks.faults.harness.wrapped"
WRITES = ("beat", "claim", "points", "record")
"""The kinds of write before which a driver stops, in turn."""


def at_once(most: int, *, server: bool = False) -> Case:
    """A case of 2 to `most` drivers on one fresh sweep, into a SQLite database that does not exist yet or a server."""

    def case(seed: int, folder: Path, faults: int) -> int:
        rng = random.Random(seed)
        for _ in range(faults):
            with serving(folder) if server else nullcontext() as proxy:
                home = new_folder(folder)
                environment = {} if proxy is None else {"MLFLOW_TRACKING_URI": proxy.uri}
                database = None if proxy is None else proxy.database
                _race(Sweep(home, environment=environment, database=database), rng.randint(2, most))
        return faults

    return case


drivers_at_once, drivers_at_once_server = at_once(8), at_once(8, server=True)
few_at_once, few_at_once_server = at_once(3), at_once(3, server=True)


def _race(sweep: Sweep, count: int) -> None:
    drivers = [sweep.start() for _ in range(count)]
    exits = {driver.pid: sweep.end(driver) for driver in drivers}
    winners = [pid for pid, ended in exits.items() if ended.code == 0]
    lines = [(ended.code, ended.last_line) for ended in exits.values()]
    assert len(winners) == 1, f"{len(winners)} of {count} drivers worked: {lines}"
    [winner] = winners
    for pid, ended in exits.items():
        if pid != winner:
            ended.expect(75)
            assert f"driver pid {winner} " in ended.last_line, ended.last_line
    result = exits[winner].expect(0).result
    assert result["ran"] == len(result["trials"])
    attempts = sorted(str(path.relative_to(sweep.folder)) for path in sweep.folder.glob("muxfer/*/trials/*/*"))
    assert len(attempts) == result["ran"], f"a trial was run twice: {attempts}"
    assert holders_of(sweep.database) == [winner], "another driver than the one that worked held the lease"
    assert_promise(sweep, result)


def holder_stopped(seed: int, folder: Path, faults: int) -> int:
    """Stop the driver just before a write, let another take over, then wake the first, which performs the write.

    The second driver uses the files of the first, or has its own, as on another host. With its own it must start the
    trials anew, and the late write stands beside its own writes. Sixteen seeds cover all four ways for each kind of
    write.
    """
    rng = random.Random(seed)
    for number in range(faults):
        way, kind = divmod(seed + number, len(WRITES))
        early, apart = ((False, True), (True, False), (True, True), (False, False))[(way + kind) % 4]
        _take_over_from_stopped(new_folder(folder), rng, write=WRITES[kind], early=early, apart=apart)
    return faults


def _take_over_from_stopped(home: Path, rng: random.Random, *, write: str, early: bool, apart: bool) -> None:
    """`early`: wake the first driver while the second works, not after. `apart`: the second has its own files."""
    stopped = OneOfSeveral(home, compared=False)  # it may have a half-written checkpoint
    # A quick sweep may have only one batch of points. It has one write of the other kinds per trial, or more.
    at = rng.randint(1, 1 if write == "points" else 2 if BRIEF in os.environ else 4)
    first = stopped.start(BRIEF_LEASE, entry=(WRAPPED, "stop", f"{write}:{at}"))
    assert wait_for(partial(_is_stopped, first.pid), first), stopped.end(first).err
    other, where = stopped, []
    if apart:
        uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{stopped.database}"}
        other = OneOfSeveral(new_folder(home), environment=uri, database=stopped.database, compared=False)
        where = [f"output_dir={other.folder / 'muxfer'}"]
    else:
        stopped.note_checkpoints()  # the second driver must resume from these
    second = other.start(BRIEF_LEASE, *where)
    if early:
        taken_over = partial(_has_holders, stopped.database, 2)
        assert wait_for(taken_over, second, seconds=600), other.end(second).err
    else:
        assert second.wait(600) == 0, other.end(second).err
    first.send_signal(signal.SIGCONT)
    fenced = stopped.end(first).expect(75)
    assert "another driver" in fenced.last_line, fenced.last_line
    _assert_late_write_is_ignored(other, other.end(second).expect(0), write)
    stopped.assert_clean()


def _assert_late_write_is_ignored(sweep: Sweep, ended: Exit, write: str) -> None:
    records, points = _read(sweep)
    expected = reference(sweep.name, sweep.overrides)["points"]
    assert records == results(ended.result), f"after a late {write} the readers see other records"
    assert points == expected, f"after a late {write} the readers see other points"
    assert_promise(sweep, ended.result)


class OneOfSeveral(Sweep):
    """One of several drivers of a study. They share a folder, or have folders of their own below the database's."""

    def weights(self) -> dict[str, str]:
        """The weights of all drivers together."""
        homes = {file.parents[6] for file in self.database.parent.rglob("ema.safetensors")}
        return {key: digest for home in homes for key, digest in Sweep(home).weights().items()}


def clock_steps(seed: int, folder: Path, faults: int) -> int:
    """Drivers whose wall clocks step by an hour, by a day and backwards. They are killed, or stopped and taken over."""
    rng = random.Random(seed)
    sweep = Sweep(new_folder(folder))
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
        result = sweep.end(process).expect(0).result
        for process in stopped:
            process.send_signal(signal.SIGCONT)
            sweep.end(process).expect(75, 0)
        stopped = []
        _assert_timestamps(sweep)
        assert_promise(sweep, result)
        sweep = Sweep(new_folder(folder))
    return faults


def _assert_timestamps(sweep: Sweep) -> None:
    """Every point's timestamp is its run's start plus its step in ms, whatever the clocks of the drivers showed."""
    stamps = query(sweep.database, "select start_time, coalesce(end_time, start_time) from runs")
    joined = "metrics m join runs r on r.run_uuid = m.run_uuid"
    [[num_wrong]] = query(sweep.database, f"select count(*) from {joined} where m.timestamp != r.start_time + m.step")
    furthest = max(abs(stamp / 1000 - time.time()) for pair in stamps for stamp in pair)
    assert furthest > min(STEPS_SECONDS, key=abs) / 2, "no clock that stamped these runs had stepped"
    assert not num_wrong, f"{num_wrong} points have another time than their run's start plus their step"


def _read(sweep: Sweep) -> tuple[dict[str, list[Any]], dict[str, list[list[Any]]]]:
    """Records and points as muxfer's own readers give them, in the shapes of `promise.reference`."""
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
    state = status(pid)
    return state is not None and state[0] == "T"
