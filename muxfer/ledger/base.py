"""What a study needs of the place where its records are kept, and the spool that outlives that place's outages.

One driver writes; workers only report to it. Every write is an operation that may be applied twice without harm, so
it is appended to a spool on disk first, and applied to the ledger by a thread of its own, off the path of training.
What is not yet acknowledged when the driver dies is replayed by the next one. NaN and infinity are refused: a point is
finite, and divergence is an outcome.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from muxfer.ledger.holder import Holder
from muxfer.trial import Point, Record, Study, Trial

Operation = Mapping[str, Any]
"""One write, as plain data: applying it again, or a whole run of them again in order, changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a trial stands in a ledger: its record, or how far the attempt that has none yet is known to be.

    `running` is what the last driver said: where that one is dead, it was cut off.
    """

    key: str
    kind: str
    record: Record | None
    running: bool = False
    step: int = 0
    loss: float | None = None


class Lease(Protocol):
    """The right to drive a study. `epoch` grows with every holder; every reader ignores a record of a lower one."""

    epoch: int

    def held(self) -> bool:
        """Whether it is still ours; False once another driver took over (we are fenced and must end)."""

    def release(self) -> None: ...


class Ledger(Protocol):
    """Reads raise LedgerUnreachable when there is no answer; writes never do, `flush` does."""

    def studies(self, name: str | None = None) -> list[Study]:
        """Every study recorded under this sweep name; None: under any."""

    def acquire(self, study: Study) -> Lease:
        """Become the one driver of a study. StudyBusy when another one is."""

    def config(self, study: Study) -> Mapping[str, Any]:
        """The configuration that the study was last opened with, without secrets. BadInput if there is none."""

    def open(self, study: Study, config: Mapping[str, Any] | None, lease: Lease) -> None:
        """Find or create the study's parent run and replay what an earlier driver could not deliver.

        Afterwards its trials can be written. `config` None: the recorded one stays.
        """

    def records(self, study: Study) -> list[Record]:
        """The settled records of a study's trials and target, one a key, as the newest epoch has them."""

    def standings(self, study: Study) -> list[Standing]:
        """How every trial and target stands that was ever begun, one a key."""

    def driver(self, study: Study) -> Holder | None:
        """Who holds the study's lease, dead or alive; None where it was given back. Writes nothing."""

    def curves(self, study: Study, name: str) -> Mapping[str, Sequence[Point]]:
        """One curve of every trial, by trial key: one query a trial."""

    def begin(self, trial: Trial) -> None: ...

    def report(self, key: str, points: Sequence[Point]) -> None: ...

    def settle(self, record: Record, artifacts: Iterable[Path] = ()) -> None: ...

    def attach(self, artifacts: Iterable[Path], *, key: str | None = None) -> None:
        """Files for the parent run (figures, the report), or for the run of trial `key`."""

    def flush(self, timeout_seconds: float, *, brief: bool = False) -> None:
        """Wait until everything written is in the ledger, for as long as it takes something within the timeout.

        `brief`: no longer than that in all. LedgerUnreachable says how much waits in the spool.
        """

    def close(self) -> None: ...
