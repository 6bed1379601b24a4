"""The real command in a process that is hurt from within: its wall clock steps, or it stops itself before a write.

`python -m benchmarks.faults.wrapped clock SEED sweep NAME ...` and `... wrapped stop KIND:NUMBER sweep NAME ...`.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

STEPS_SECONDS = (3600, 86400, -3600, -86400)
BETWEEN_SECONDS = (0.2, 1.5)
WRITES: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "claim": lambda what: _has_tag(what, "muxfer.claim.e"),
    "points": lambda what: bool(what.get("metrics")) and not what.get("tags"),
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
    from muxfer.adapters.mlflow_client import TrackingStore

    log = TrackingStore.log
    left = [number]

    def stopping(self: TrackingStore, run_id: str, **what: Any) -> None:
        if WRITES[kind](what):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(0.2)  # the other threads stop first
        log(self, run_id, **what)

    TrackingStore.log = stopping  # type: ignore[method-assign]


def _has_tag(what: Mapping[str, Any], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in what.get("tags") or {})


def main() -> None:
    way, how, *arguments = sys.argv[1:]
    if way == "clock":
        step_clock(int(how))
    else:
        kind, _, number = how.partition(":")
        stop_before(kind, int(number))
    sys.argv = ["muxfer", *arguments]
    from muxfer.cli import main as command

    command()


if __name__ == "__main__":
    main()
