"""The real command in a process that is hurt from within: its wall clock steps, or it stops itself before a write.

python -m benchmarks.faults.harness.wrapped clock SEED sweep NAME ...
python -m benchmarks.faults.harness.wrapped stop KIND:NUMBER sweep NAME ...
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

STEPS_SECONDS = (3600, 86400, -3600, -86400)
BETWEEN_SECONDS = (0.2, 1.5)
CHANGED = 1e-6
WRITES: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "claim": lambda what: _has_tag(what, "muxfer.claim.e"),
    "record": lambda what: _has_tag(what, "muxfer.record.e"),
    "beat": lambda what: _has_tag(what, "lease.beat.e"),
}


def step_clock(seed: int) -> None:
    """time.time and time.time_ns jump by an hour or a day, to and fro, every second or so from now on."""
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
    """SIGSTOP of this very process as it is about to make the so many-th write of a kind."""
    from muxfer.ledger.mlflow_client import TrackingStore

    log = TrackingStore.log
    left = [number]
    between = _between_questions()

    def stopping(self: TrackingStore, run_id: str, **what: Any) -> None:
        if WRITES[kind](what):
            left[0] -= 1
            if left[0] == 0:
                _stop(between)
        log(self, run_id, **what)

    TrackingStore.log = stopping  # type: ignore[method-assign]


def stop_before_points(number: int) -> None:
    """The same before a batch with points; what this process says of points when it is woken is by 1e-6 another value.

    A point bears no epoch, and MLflow writes it unasked: what one driver says between its last look at the lease and
    the write would stand. So it stops before that look.
    """
    from muxfer.ledger.mlflow_client import TrackingStore
    from muxfer.ledger.writer import Writer

    step, log = Writer._step, TrackingStore.log
    left = [number]
    between = _between_questions()

    def otherwise(self: TrackingStore, run_id: str, *, metrics: Sequence[Any] = (), **what: Any) -> None:
        changed = [(name, value * (1 + CHANGED), *when) for name, value, *when in metrics]
        log(self, run_id, metrics=changed, **what)

    def stopping(self: Writer) -> None:
        spool = self.spool
        if spool.path.exists() and b'"op":"points"' in spool.path.read_bytes()[spool.acknowledged :]:
            left[0] -= 1
            if left[0] == 0:
                TrackingStore.log = otherwise  # type: ignore[method-assign]
                _stop(between)
        step(self)

    Writer._step = stopping  # type: ignore[method-assign]


def _between_questions() -> threading.RLock:
    """Who holds it knows that no thread is asking the store anything.

    One stopped in a transaction would keep a SQLite file locked for as long as it stands still, and nobody could take
    over: that this is told, tests/ledger/test_tracking_uri.py shows.
    """
    from muxfer.ledger.mlflow_client import TrackingStore

    asks = TrackingStore._ask
    between = threading.RLock()

    def one_by_one(self: TrackingStore, *question: Any, **how: Any) -> Any:
        with between:
            return asks(self, *question, **how)

    TrackingStore._ask = one_by_one  # type: ignore[method-assign]
    return between


def _stop(between: threading.RLock) -> None:
    """The other threads stop within 0.2 s; who is woken later goes on at once, before they have looked at anything."""
    with between:
        until = time.monotonic() + 0.2
        os.kill(os.getpid(), signal.SIGSTOP)
        while time.monotonic() < until:
            time.sleep(0.005)


def _has_tag(what: Mapping[str, Any], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in what.get("tags") or {})


def main() -> None:
    way, how, *arguments = sys.argv[1:]
    if way == "clock":
        step_clock(int(how))
    else:
        kind, _, number = how.partition(":")
        stop_before_points(int(number)) if kind == "points" else stop_before(kind, int(number))
    sys.argv = ["muxfer", *arguments]
    from muxfer.cli import main as command

    command()


if __name__ == "__main__":
    main()
