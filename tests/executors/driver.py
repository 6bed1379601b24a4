"""A driver that a test starts, kills, stops, or lets join a cluster: `python -m tests.executors.driver CASE FOLDER`.

A third argument is the address of the cluster to join. What happened is written to FOLDER/facts.json.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from muxfer.config.study import Compute
from muxfer.errors import MuxferError, NoResources
from muxfer.executors.base import TrialUpdate
from muxfer.executors.ray_tune import RayExecutor
from tests.executors.fake_trials import WORKER, make_job

STEPS = {"join": 2, "stopped": 40}


class Facts:
    """What the driver saw. The file is replaced as a whole at each change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.content: dict[str, Any] = {"ray": {}}

    def add(self, **facts: Any) -> None:
        self.content.update(facts)
        (self._folder / "new").write_text(json.dumps(self.content))
        os.replace(self._folder / "new", self._folder / "facts.json")


def main(case: str, folder: Path, address: str | None) -> None:
    facts = Facts(folder)
    if case == "join":
        try:
            RayExecutor(Compute(device="cpu", slots=10_000, address=address), folder=folder, worker=WORKER)
        except NoResources as error:
            facts.add(refused=str(error))
    orphan_seconds = 2.0 if case == "stopped" else 60.0
    compute = Compute(device="cpu", slots=1, address=address, orphan_seconds=orphan_seconds)
    executor = RayExecutor(compute, folder=folder, worker=WORKER)
    facts.add(ray={name: process.pid for name, process in executor._cluster.processes.items()})
    executor.submit([make_job(folder, "long", steps=STEPS.get(case, 10_000), seconds=0.1)])
    updates: list[TrialUpdate] = []
    while not updates:
        updates = executor.updates(0.5)
    facts.add(worker=int(updates[0].points[0].value))
    print("the driver's own print")
    if case in ("driver", "stopped"):
        os.kill(os.getpid(), signal.SIGKILL if case == "driver" else signal.SIGSTOP)
    if case in ("gcs_server", "raylet"):
        kill_and_notice(executor, case, facts)
    if address:
        while updates[-1].record is None:
            updates += executor.updates(0.5)
        facts.add(outcome=str(updates[-1].record.outcome), resumed_at=updates[-1].record.resumed_at)
    began = time.monotonic()
    executor.close()
    facts.add(
        seconds_to_close=time.monotonic() - began,
        remaining=sorted(path.name for path in folder.glob(".ray*")),
        session=str(executor._cluster.folder),
    )
    print("the result")
    sys.stdout.flush()
    os._exit(0)


def kill_and_notice(executor: RayExecutor, name: str, facts: Facts) -> None:
    os.kill(facts.content["ray"][name], signal.SIGKILL)
    began = time.monotonic()
    try:
        while time.monotonic() - began < 30:
            executor.updates(0.2)
    except MuxferError as error:
        facts.add(error=str(error), exit_code=error.exit_code, seconds_to_notice=time.monotonic() - began)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
