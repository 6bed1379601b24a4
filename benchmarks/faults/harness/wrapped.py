"""The real command in a process that disturbs itself: its wall clock steps, or it stops itself before a write.

python -m benchmarks.faults.harness.wrapped clock SEED sweep NAME ...
python -m benchmarks.faults.harness.wrapped stop KIND:NUMBER sweep NAME ...
"""

import os
import random
import signal
import sys
import threading
import time
from typing import Any

STEPS_SECONDS = (3600, 86400, -3600, -86400)
BETWEEN_SECONDS = (0.2, 1.5)
CHANGED = 1e-6
"""The relative change of values that a stopped process writes after it was woken."""
POINTS = b'"op":"points"'
TAGS = {"claim": "muxfer.claim.e", "record": "muxfer.record.e", "beat": "lease.beat.e"}
"""By kind of write, how the name of the tag that it writes begins."""


def step_clock(seed: int) -> None:
    """Make time.time and time.time_ns jump forward or back by an hour or a day, about every second from now on."""
    rng = random.Random(seed)
    true_ns = time.time_ns
    state = {"offset": rng.choice(STEPS_SECONDS), "next": time.monotonic() + rng.uniform(*BETWEEN_SECONDS)}

    def stepped_ns() -> int:
        while time.monotonic() >= state["next"]:
            state["offset"] += rng.choice(STEPS_SECONDS)
            state["next"] += rng.uniform(*BETWEEN_SECONDS)
        return true_ns() + int(state["offset"]) * 10**9

    time.time_ns = stepped_ns
    time.time = lambda: stepped_ns() / 1e9


def stop_before(kind: str, number: int) -> None:
    """SIGSTOP this process just before write `number` (from 1) of a kind in TAGS, or before batch `number` with points.

    A point carries no epoch, and MLflow accepts it without a check. Points that a driver writes between its last look
    at the lease and the write would stay. So the process stops before that look. Once woken it writes values that
    differ by 1e-6.
    """
    from muxfer.ledger.mlflow_client import TrackingStore
    from muxfer.ledger.writer import Writer

    step, log = Writer._step, TrackingStore.log
    remaining = [number]
    between = _between_requests()

    def count() -> None:
        remaining[0] -= 1
        if remaining[0] == 0:
            _stop(between)

    def counted_log(self: TrackingStore, run_id: str, **write: Any) -> None:
        if kind == "points" and remaining[0] <= 0:
            write["metrics"] = [(name, value * (1 + CHANGED), *when) for name, value, *when in write.get("metrics", ())]
        if kind in TAGS and any(name.startswith(TAGS[kind]) for name in write.get("tags") or {}):
            count()
        log(self, run_id, **write)

    def counted_step(self: Writer) -> None:
        spool = self.spool
        if kind == "points" and spool.path.exists() and POINTS in spool.path.read_bytes()[spool.acknowledged :]:
            count()
        step(self)

    TrackingStore.log = counted_log  # type: ignore[method-assign]
    Writer._step = counted_step  # type: ignore[method-assign]


def _between_requests() -> threading.RLock:
    """A lock that is held during every request to the store: its holder knows that no other request is under way.

    A process that is stopped inside a transaction keeps a SQLite file locked, and nobody could take over.
    tests/ledger/test_sqlite_database.py shows that such a process is named.
    """
    from muxfer.ledger.mlflow_client import TrackingStore

    request = TrackingStore._ask
    between = threading.RLock()

    def one_by_one(self: TrackingStore, *arguments: Any, **options: Any) -> Any:
        with between:
            return request(self, *arguments, **options)

    TrackingStore._ask = one_by_one  # type: ignore[method-assign]
    return between


def _stop(between: threading.RLock) -> None:
    """The other threads stop within 0.2 s. Once woken, this one goes on first, before they have looked at anything."""
    with between:
        until = time.monotonic() + 0.2
        os.kill(os.getpid(), signal.SIGSTOP)
        while time.monotonic() < until:
            time.sleep(0.005)


def main() -> None:
    disturbance, parameter, *arguments = sys.argv[1:]
    if disturbance == "clock":
        step_clock(int(parameter))
    else:
        kind, _, number = parameter.partition(":")
        stop_before(kind, int(number))
    sys.argv = ["muxfer", *arguments]
    from muxfer.cli import main as command

    command()


if __name__ == "__main__":
    main()
