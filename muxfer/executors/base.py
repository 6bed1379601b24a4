"""The protocol of an executor: the trial that it gets, the updates that it returns, and what it promises. This module
loads no torch, because the commands and the driver import it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from muxfer.models.plugins import Plugins
from muxfer.trial import Outcome, Point, Record, Trial


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """A trial to run, and where to run it. `folder` belongs to the trial: each attempt makes a folder of its own in it.
    `epoch` is the epoch of the lease. `band` is a LossBand as plain data: a trial whose loss leaves the band is halted.
    None means that no band applies.
    """

    trial: Trial
    folder: str
    epoch: int
    device: str = "cpu"
    plugins: Plugins = field(default_factory=Plugins)
    band: Mapping[str, Any] | None = None

    def record(self, outcome: Outcome, **result: Any) -> Record:
        """The record of an attempt at this job."""
        trial = {name: getattr(self.trial, name) for name in ("key", "setting", "replicate", "kind")}
        return Record(**trial, epoch=self.epoch, outcome=outcome, **result)


@dataclass(frozen=True, kw_only=True)
class TrialUpdate:
    """The progress of one attempt: new points of its curves and, in the final update, the record.

    The first update after a resume repeats the points of the checkpoint. Writing a point twice changes nothing.
    `train_seconds` counts this attempt alone. `halted` says why a trial under a band stopped without a record. Such a
    trial can go on from its checkpoint.
    """

    key: str
    step: int
    points: tuple[Point, ...] = ()
    train_seconds: float = 0.0
    record: Record | None = None
    halted: str | None = None

    @property
    def final(self) -> bool:
        return self.record is not None or self.halted is not None


class Executor(Protocol):
    """Runs jobs on slots, in the order submitted. Raises NoResources when no node can ever hold a slot."""

    slots: int

    def submit(self, jobs: Sequence[TrialJob]) -> None: ...

    def updates(self, timeout_seconds: float) -> list[TrialUpdate]:
        """Return the updates that have arrived, or an empty list after the timeout. A trial that failed for good ends
        in a record with its error. Raises TrialsFailed when the cluster itself died (a node, or the cluster's head).
        """

    def close(self) -> None: ...

    def kill(self) -> None:
        """Stop every trial at once. Trials stay resumable from their checkpoints."""
