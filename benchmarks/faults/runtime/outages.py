"""A real MLflow server that goes away, hangs, responds with errors or loses a response, while a sweep trains into it.

The outages of one case follow each other within one sweep. From the second on, each interrupts the replay of what the
one before held up. The command must end with 0 by itself: it may wait long enough (`ledger.patience_seconds`).
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.faults.harness.promise import assert_promise, reference
from benchmarks.faults.harness.server import Lost, Proxy, serving
from benchmarks.faults.harness.settings import BRIEF, Case
from benchmarks.faults.harness.sweep import Process, Sweep, new_folder, query, wait_for

LONG_SECONDS = 60.0
"""In an outage of at least this length, everything must be trained before the server comes back."""
PATIENT = "ledger.patience_seconds=1200"
IMPATIENT = "ledger.patience_seconds=2"
LEAVE_SECONDS = 0.3 if BRIEF in os.environ else 2.0
"""The server goes away for good within this time after the first trial has begun, well before all is delivered."""
LOST = (
    Lost(method="POST", path_ends="/runs/create", late=True),
    Lost(method="POST", path_ends="/runs/create"),
    Lost(method="POST", path_ends="/runs/log-batch"),
    Lost(method="POST", path_ends="/runs/update"),
    Lost(method="POST", path_ends="/runs/search"),
    Lost(method="PUT", path_ends="/mlflow-artifacts/artifacts"),
)
"""Every kind of request that a running sweep sends. Every case has the first, which is the worst."""


def outages(*kinds: tuple[Callable[[Proxy], None], float]) -> Case:
    """A case of outages, one after the other: how each begins, and how many seconds it lasts."""

    def case(seed: int, folder: Path, faults: int) -> int:
        rng = random.Random(seed)
        caused = 0
        while caused < faults:
            with serving(folder) as proxy:
                sweep, process = _start(new_folder(folder), proxy, PATIENT)
                time.sleep(rng.uniform(0.0, 1.5))
                while caused < faults and process.poll() is None:
                    before = _num_steps(sweep)
                    began = time.monotonic()
                    begin, seconds = kinds[caused % len(kinds)]
                    begin(proxy)
                    if seconds >= LONG_SECONDS:
                        _wait_until_trained(sweep, seconds=seconds)
                    time.sleep(max(0.0, began + seconds - time.monotonic()))
                    if caused == 0:
                        assert _num_steps(sweep) > before or _all_trained(sweep), "training stopped during an outage"
                    caused += process.poll() is None or bool(_spools(sweep))
                    proxy.mend()
                    wait_for(partial(getattr, proxy, "passed"), process, seconds=15)
                    time.sleep(rng.uniform(0.0, 1.0))
                result = sweep.end(process).expect(0).result
                if _spools(sweep):  # the last outage came during the last flush
                    result = sweep.finish()
                assert_promise(sweep, result)
        return caused

    return case


down_5s = outages((Proxy.down, 5.0))
down_60s = outages((Proxy.down, 60.0))
down_600s = outages((Proxy.down, 600.0))
hangs = outages((Proxy.hang, 10.0))  # longer than a request waits: the client gives it up, and it arrives late
answers_500 = outages((Proxy.break_, 4.0))
one_of_each = outages((Proxy.hang, 10.0), (Proxy.break_, 3.0), (Proxy.down, 3.0))
"""The test suite's case of the five rows above. Outages of 60 and 600 s take 3 s there."""


def answer_dropped(seed: int, folder: Path, faults: int) -> int:
    """Lose responses after the commit. A late create arrives after the next try has made a second run."""
    rng = random.Random(seed)
    caused = 0
    while caused < faults:
        with serving(folder) as proxy:
            sweep, process = _start(new_folder(folder), proxy)
            lost = [LOST[0], *rng.sample(LOST[1:], min(faults - caused, len(LOST)) - 1)]
            proxy.lose(*lost)
            result = sweep.end(process).expect(0).result
            assert not proxy.still_to_lose(), f"these requests were never sent: {proxy.still_to_lose()}"
            assert_promise(sweep, result)
            num_late = sum(each.late for each in lost)
            num_settled = _num_settled_duplicates(proxy.database)
            assert num_settled == num_late, f"{num_late} runs were made twice, {num_settled} of them are settled"
        caused += len(lost)
    return caused


def _stays_away(kinds: Sequence[Callable[[Proxy], None]], seed: int, folder: Path, faults: int) -> int:
    """Servers go away in one of these ways during training, until the command has ended.

    It trains everything and ends with 4. With the server back, it delivers everything.
    """
    rng = random.Random(seed)
    for _ in range(faults):
        with serving(folder) as proxy:
            sweep, process = _start(new_folder(folder), proxy, IMPATIENT)
            time.sleep(rng.uniform(0.0, LEAVE_SECONDS))
            rng.choice(kinds)(proxy)
            ended = sweep.end(process).expect(4)
            assert "nothing is lost" in ended.last_line, ended.last_line
            assert _all_trained(sweep), "the command ended before everything was trained"
            spools = {path: path.read_bytes() for path in _spools(sweep)}
            assert spools, "exit 4, although no spool waits"
            again = sweep.run(IMPATIENT).expect(4)
            assert proxy.uri in again.last_line, again.last_line
            assert spools == {path: path.read_bytes() for path in _spools(sweep)}, (
                "a command that could not reach the ledger changed the spool"
            )
            proxy.mend()
            result = sweep.finish()
            assert result["ran"] == 0, f"{result['ran']} trials were trained again"
            assert_promise(sweep, result)
    return faults


ledger_stays_away = partial(_stays_away, (Proxy.down, Proxy.hang, Proxy.break_))
server_stays_down = partial(_stays_away, (Proxy.down,))


def _start(folder: Path, proxy: Proxy, *arguments: str) -> tuple[Sweep, Process]:
    """Start a sweep into the proxy's server, and wait until it trains."""
    sweep = Sweep(folder, environment={"MLFLOW_TRACKING_URI": proxy.uri}, database=proxy.database)
    reference(sweep.name, sweep.overrides)
    process = sweep.start(*arguments)
    if not wait_for(lambda: next(sweep.folder.glob("muxfer/*/trials/*/attempt-*"), None), process):
        sweep.end(process, timeout=1).expect()
    return sweep, process


def _num_steps(sweep: Sweep) -> int:
    return sum(sweep.checkpoints().values())


def _all_trained(sweep: Sweep) -> bool:
    """Whether every trial that can finish has its last checkpoint."""
    return sweep.weights() == reference(sweep.name, sweep.overrides)["weights"]


def _wait_until_trained(sweep: Sweep, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not _all_trained(sweep):
        assert time.monotonic() < deadline, f"not everything was trained during an outage of {seconds:g} s"
        time.sleep(0.5)


def _spools(sweep: Sweep) -> list[Path]:
    """The spools that wait: the ledger has not yet taken everything."""
    return sorted(sweep.folder.glob("muxfer/*/spool-*.jsonl"))


def _num_settled_duplicates(database: Path) -> int:
    """How many runs were marked as duplicates and deleted."""
    text = (
        "select count(*) from runs r join tags t on t.run_uuid = r.run_uuid"
        " where t.key = 'muxfer.duplicate' and r.lifecycle_stage = 'deleted'"
    )
    return int(query(database, text)[0][0])
