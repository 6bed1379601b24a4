"""What an executor is given, what it reports, and what it promises."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from muxfer.models.plugins import Plugins
from muxfer.trial import Point, Record, Trial


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """A trial to run, where: `folder` is the trial's own, each attempt makes one below it; `epoch` is the lease's.

    `band` is a LossBand as plain data: a trial whose loss leaves it is halted. None: nobody watches.
    """

    trial: Trial
    folder: str
    epoch: int
    device: str = "cpu"
    plugins: Plugins = field(default_factory=Plugins)
    band: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class TrialUpdate:
    """What a worker says from time to time: new points of its curves and, the last time, the record.

    The first report after a resume repeats the points of the checkpoint: writing a point twice changes nothing.
    `train_seconds` are this attempt's. `halted` says why a watched trial stopped without a record: it can go on from
    the checkpoint that it left.
    """

    key: str
    step: int
    points: tuple[Point, ...] = ()
    train_seconds: float = 0.0
    record: Record | None = None
    halted: str | None = None

    @property
    def final(self) -> bool:
        """Whether this attempt has nothing more to say."""
        return self.record is not None or self.halted is not None


class Executor(Protocol):
    """Runs jobs on slots, in the order submitted. Raises NoResources when no node can ever hold one."""

    slots: int

    def submit(self, jobs: Sequence[TrialJob]) -> None: ...

    def updates(self, timeout_seconds: float) -> list[TrialUpdate]:
        """What came in; empty after the timeout. A trial that failed for good ends in a record with its error.

        Raises TrialsFailed when the machinery itself died (a node, the cluster's head).
        """

    def close(self) -> None: ...

    def kill(self) -> None:
        """Stop at once, whatever runs: trials stay resumable from their checkpoints."""
