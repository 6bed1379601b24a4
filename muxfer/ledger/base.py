"""The protocol of a ledger, where the records of studies are kept.

One driver writes to a ledger. Its workers only report to the driver. Every write is an operation that may be applied
twice without harm. It is appended to a spool on disk first, and a thread applies it to the ledger, off the path of
training. If the driver dies before an operation is acknowledged, the next driver replays it. NaN and infinity are
refused: a point is finite, and divergence is an outcome.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from muxfer.ledger.holder import Holder
from muxfer.trial import Point, Record, Study, Trial

Operation = Mapping[str, Any]
"""One write, as plain data. Applying it again, or a sequence of operations again in order, changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The state of a trial in a ledger: its record, or the progress of an attempt that has no record yet. `running` is
    what the last driver wrote. If that driver is dead, the attempt was interrupted.
    """

    key: str
    kind: str
    record: Record | None
    running: bool = False
    step: int = 0
    loss: float | None = None


class Lease(Protocol):
    """The right to drive a study. `epoch` grows with every holder. Readers ignore a record of a lower epoch.
    `before_release` is called before the lease is given up, unless another driver took the study over.
    """

    epoch: int
    before_release: Callable[[], None] | None

    @property
    def lost(self) -> bool:
        """Whether another driver took the study over, as far as the last look at the store showed."""

    def held(self) -> bool:
        """Whether the lease is still ours, by the last look at the store. After a False we must end."""

    def surely_held(self) -> bool:
        """As `held`, but looks at the store if nobody has looked for a time-to-live: we were stopped, or cut off.
        Raises LedgerUnreachable if the store does not answer. The call may wait for the store.
        """

    def overtaken(self) -> bool:
        """As `lost`, but looks at the store first: we may have been stopped. An unreachable store changes nothing."""

    def release(self) -> None: ...


class Ledger(Protocol):
    """Reads raise LedgerUnreachable when the store does not answer. Of the writes, only `flush` does."""

    def studies(self, name: str | None = None) -> list[Study]:
        """Every study recorded under this sweep name. None: under any name."""

    def acquire(self, study: Study) -> Lease:
        """Become the one driver of a study. StudyBusy if another process drives it."""

    def config(self, study: Study) -> Mapping[str, Any]:
        """The configuration that the study was last opened with, without secrets. BadInput if there is none."""

    def open(self, study: Study, config: Mapping[str, Any] | None, lease: Lease) -> None:
        """Find or create the study's parent run, and replay what an earlier driver could not deliver. Trials can be
        written afterwards. `config` None keeps the recorded configuration.
        """

    def records(self, study: Study) -> list[Record]:
        """The settled records of a study's trials and target. Each key has one record, that of its newest epoch."""

    def standings(self, study: Study) -> list[Standing]:
        """The state of every trial and target that was ever begun, one for each key."""

    def driver(self, study: Study) -> Holder | None:
        """The holder of the study's lease, dead or alive. None if the lease was released. Writes nothing."""

    def curves(self, study: Study, name: str) -> Mapping[str, Sequence[Point]]:
        """One curve of every trial, by trial key. It takes one query for each trial."""

    def begin(self, trial: Trial) -> None: ...
    def report(self, key: str, points: Sequence[Point]) -> None: ...
    def settle(self, record: Record, artifacts: Iterable[Path] = ()) -> None: ...

    def attach(self, artifacts: Iterable[Path], *, key: str | None = None) -> None:
        """Attach files to the run of trial `key`, or to the parent run (figures, the report)."""

    def flush(self, timeout_seconds: float, *, brief: bool = False) -> None:
        """Wait until everything written is in the ledger. Each time the ledger takes something, the timeout starts
        anew; with `brief` it does not. LedgerUnreachable says how much waits in the spool.
        """

    def close(self) -> None: ...
