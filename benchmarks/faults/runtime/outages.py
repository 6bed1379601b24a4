"""A real MLflow server that goes away, hangs, answers 500 or loses an answer, while a sweep trains into it.

The outages of one case follow each other within one sweep, each from the second on into the replay of what the one
before held up; the command must end with 0 by itself, for it is told to wait (`ledger.patience_seconds`).
"""

import itertools
import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks.faults.harness.moments import wait_for
from benchmarks.faults.harness.promise import assert_promise, reference
from benchmarks.faults.harness.proxy import Lost, Proxy
from benchmarks.faults.harness.row import Case
from benchmarks.faults.harness.server import serving
from benchmarks.faults.harness.settings import BRIEF
from benchmarks.faults.harness.sweep import Sweep, new_folder

LONG_SECONDS = 60.0
"""From here on everything must have been trained when the server comes back."""
PATIENT = "ledger.patience_seconds=1200"
IMPATIENT = "ledger.patience_seconds=2"
LEAVE_SECONDS = 0.3 if BRIEF in os.environ else 2.0
"""In which time from its first trial on a sweep's server goes for good: well before all is trained and delivered."""
LOST = (
    Lost(method="POST", path_ends="/runs/create", late=True),
    Lost(method="POST", path_ends="/runs/create"),
    Lost(method="POST", path_ends="/runs/log-batch"),
    Lost(method="POST", path_ends="/runs/update"),
    Lost(method="POST", path_ends="/runs/search"),
    Lost(method="PUT", path_ends="/mlflow-artifacts/artifacts"),
)
"""Every kind of request that a sweep at work sends; the first is the worst, and no case goes without it."""


def outages(*kinds: tuple[Callable[[Proxy], None], float]) -> Case:
    """A case of outages that begin in these ways and last so many seconds, one after the other."""

    def case(seed: int, folder: Path, faults: int) -> int:
        rng = random.Random(seed)
        caused = 0
        for number in itertools.count():
            with serving(folder / f"server-{number:03d}") as proxy:
                sweep, process = _start(new_folder(folder, number), proxy, PATIENT)
                time.sleep(rng.uniform(0.0, 1.5))
                while caused < faults and process.poll() is None:
                    before = _steps(sweep)
                    began = time.monotonic()
                    begin, seconds = kinds[caused % len(kinds)]
                    begin(proxy)
                    if seconds >= LONG_SECONDS:
                        _wait_until_trained(sweep, seconds=seconds)
                    time.sleep(max(0.0, began + seconds - time.monotonic()))
                    if caused == 0:
                        assert _steps(sweep) > before or _all_trained(sweep), "training stood still in an outage"
                    caused += process.poll() is None or _waits(sweep)
                    proxy.mend()
                    wait_for(partial(getattr, proxy, "passed"), process, seconds=15)
                    time.sleep(rng.uniform(0.0, 1.0))
                answer = sweep.end(process).expect(0).answer
                if _waits(sweep):  # the last outage fell into its very last words
                    answer = sweep.finish()
                assert_promise(sweep, answer)
            if caused >= faults:
                return caused
        raise AssertionError

    return case


down_5s = outages((Proxy.down, 5.0))
down_60s = outages((Proxy.down, 60.0))
down_600s = outages((Proxy.down, 600.0))
hangs = outages((Proxy.hang, 10.0))  # longer than a request waits: it is given up, and comes through late
answers_500 = outages((Proxy.break_, 4.0))
one_of_each = outages((Proxy.hang, 10.0), (Proxy.break_, 3.0), (Proxy.down, 3.0))
"""What the tests have of the five rows above: their outages of 60 and 600 s are of 3 s there."""


def answer_dropped(seed: int, folder: Path, faults: int) -> int:
    """Answers that are lost after the commit, and creates that come through after the next try made a second run."""
    rng = random.Random(seed)
    caused = 0
    for number in itertools.count():
        with serving(folder / f"server-{number:03d}") as proxy:
            sweep, process = _start(new_folder(folder, number), proxy)
            lost = [LOST[0], *rng.sample(LOST[1:], min(faults - caused, len(LOST)) - 1)]
            proxy.lose(*lost)
            answer = sweep.end(process).expect(0).answer
            assert not proxy.still_to_lose(), f"never sent: {proxy.still_to_lose()}"
            assert_promise(sweep, answer)
            twice = sum(each.late for each in lost)
            assert _settled_duplicates(proxy.database) == twice, f"{twice} runs were made twice, and stand otherwise"
        caused += len(lost)
        if caused == faults:
            return caused
    raise AssertionError


def stays_away(*kinds: Callable[[Proxy], None]) -> Case:
    """A case of servers that go away in one of these ways while it trains, and stay away until the command ended."""
    return partial(_stays_away, kinds)


def _stays_away(kinds: Sequence[Callable[[Proxy], None]], seed: int, folder: Path, faults: int) -> int:
    """All is trained, exit 4; it is back: all is delivered."""
    rng = random.Random(seed)
    for number in range(faults):
        with serving(folder / f"server-{number:03d}") as proxy:
            sweep, process = _start(new_folder(folder, number), proxy, IMPATIENT)
            time.sleep(rng.uniform(0.0, LEAVE_SECONDS))
            rng.choice(kinds)(proxy)
            ended = sweep.end(process).expect(4)
            assert "nothing is lost, run the same command again" in ended.last_line, ended.last_line
            assert _all_trained(sweep), "it ended before everything was trained"
            spools = {path.name: path.read_bytes() for path in sweep.folder.glob("muxfer/*/spool-*.jsonl")}
            assert spools, "exit 4, and nothing waits"
            again = sweep.run(IMPATIENT).expect(4)
            assert "gave no answer" in again.last_line, again.last_line
            kept = {path.name: path.read_bytes() for path in sweep.folder.glob("muxfer/*/spool-*.jsonl")}
            assert kept == spools, "a command that found no ledger changed the spool"
            proxy.mend()
            answer = sweep.finish()
            assert answer["ran"] == 0, f"{answer['ran']} trials were trained again"
            assert_promise(sweep, answer)
    return faults


ledger_stays_away, server_stays_down = stays_away(Proxy.down, Proxy.hang, Proxy.break_), stays_away(Proxy.down)


def _start(folder: Path, proxy: Proxy, *arguments: str) -> "tuple[Sweep, subprocess.Popen[str]]":
    """A sweep into the proxy's server that has begun to train."""
    sweep = Sweep(folder, environment={"MLFLOW_TRACKING_URI": proxy.uri}, database=proxy.database)
    reference(sweep.name, sweep.overrides)
    process = sweep.start(*arguments)
    if not wait_for(lambda: next(sweep.folder.glob("muxfer/*/trials/*/attempt-*"), None), process):
        sweep.end(process, timeout=1).expect()
    return sweep, process


def _steps(sweep: Sweep) -> int:
    return sum(sweep.checkpoints().values())


def _all_trained(sweep: Sweep) -> bool:
    """Whether every trial that can finish has its last checkpoint."""
    return sweep.weights() == reference(sweep.name, sweep.overrides)["weights"]


def _wait_until_trained(sweep: Sweep, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not _all_trained(sweep):
        assert time.monotonic() < deadline, f"not everything was trained within an outage of {seconds:g} s"
        time.sleep(0.5)


def _waits(sweep: Sweep) -> bool:
    """Whether the ledger has not yet taken everything."""
    return next(sweep.folder.glob("muxfer/*/spool-*.jsonl"), None) is not None


def _settled_duplicates(database: Path) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        [[count]] = connection.execute(
            "select count(*) from runs r join tags t on t.run_uuid = r.run_uuid"
            " where t.key = 'muxfer.duplicate' and r.lifecycle_stage = 'deleted'"
        ).fetchall()
        return int(count)
