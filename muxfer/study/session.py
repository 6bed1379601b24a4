"""Open the ledger, hold a study's lease, run the study's loop, and flush at the end.

Commands, tests and benchmarks drive a study in this one way:

    with drive(request) as session:
        ran = session.run(trials, start_executor=InlineExecutor)
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from muxfer.config.task import to_plain
from muxfer.errors import BadInput, LedgerUnreachable, MuxferError, StudyBusy
from muxfer.executors import ray_sessions
from muxfer.executors.base import Executor
from muxfer.files import StudyFolder
from muxfer.ledger.base import Lease, Ledger
from muxfer.ledger.tracking_uri import redact_uri, sqlite_path
from muxfer.processes import gone
from muxfer.study.loop import Progress, StudyRun, run_study
from muxfer.study.progress import TerminalProgress
from muxfer.study.resolve import Request, tracking_uri
from muxfer.study.retention import Retention
from muxfer.trial import Record, Study, Trial

FAREWELL_SECONDS = 5.0  # How long a command that was stopped, or failed, waits for the ledger


@dataclass(frozen=True, kw_only=True)
class Session:
    """A study that this process drives, and no other: its lease is held."""

    request: Request
    study: Study
    ledger: Ledger
    lease: Lease

    @property
    def files(self) -> StudyFolder:
        return self.request.files_of(self.study)

    def records(self) -> list[Record]:
        return self.ledger.records(self.study)

    def flush(self) -> None:
        """Wait until everything written is in the ledger. LedgerUnreachable: the spool keeps what it did not take."""
        self.ledger.flush(self.request.config.ledger.patience_seconds)

    def run(
        self,
        trials: Sequence[Trial],
        records: Sequence[Record] = (),
        *,
        start_executor: Callable[[], Executor],
        progress: Progress | None = None,
        more: Callable[[Sequence[Record]], Sequence[Trial]] | None = None,
        deadline: float | None = None,
        retention: Retention | None = None,
    ) -> StudyRun:
        """`run_study`; afterwards the ledger holds every record, or LedgerUnreachable says which are missing."""
        ran = run_study(
            trials,
            records,
            study=self.study,
            ledger=self.ledger,
            lease=self.lease,
            files=self.files,
            start_executor=start_executor,
            progress=progress or TerminalProgress(),
            more=more,
            deadline=deadline,
            retention=retention,
        )
        self.flush()
        self._assert_recorded(ran.records)
        return ran

    def _assert_recorded(self, ran: Sequence[Record]) -> None:
        recorded = {(record.key, record.epoch) for record in self.records()}
        missing = [record.key for record in ran if (record.key, record.epoch) not in recorded]
        if missing:
            raise LedgerUnreachable(
                f"the ledger does not hold the records of {len(missing)} trials that ended (the first: {min(missing)}):"
                " their runs were deleted or changed meanwhile; run the same command again"
            )


@contextmanager
def open_ledger(request: Request, *, existing: bool = False, remedy: str | None = None) -> Iterator[Ledger]:
    """The ledger of a request. `existing`: BadInput with the `remedy` where there is none yet; otherwise it is made."""
    uri = tracking_uri(request.config)
    database = sqlite_path(uri)
    if existing and database is not None and not database.exists():
        remedy = remedy or f"run muxfer sweep {request.name} first"
        raise BadInput(f"no ledger at {redact_uri(uri)}: {remedy}, or give ledger.tracking_uri=URI")
    from muxfer.ledger.mlflow_ledger import MlflowLedger

    ledger = MlflowLedger(request.config.ledger, folder=request.folder, variables=request.variables)
    try:
        yield ledger
    finally:
        ledger.close()


@contextmanager
def drive(request: Request, *, ledger: Ledger | None = None, recorded: Study | None = None) -> Iterator[Session]:
    """Hold the lease of the request's study. The end flushes what was written and gives the lease back. `ledger` None:
    the request's own is opened. `recorded`: a study of the ledger that keeps its recorded configuration; None: the
    request's study, whose configuration is recorded. StudyBusy when another one drives it.
    """
    with ExitStack() as opened:
        ledger = ledger or opened.enter_context(open_ledger(request))
        study = recorded or request.study
        lease = ledger.acquire(study)
        try:
            ledger.open(study, None if recorded is not None else to_plain(request.config), lease)
            session = Session(request=request, study=study, ledger=ledger, lease=lease)
            _remove_leftovers(session.files)
            yield session
            session.flush()
        except BaseException as error:
            _flush_before_failing(ledger, lease, study, error)
            raise
        finally:
            lease.release()


def _flush_before_failing(ledger: Ledger, lease: Lease, study: Study, error: BaseException) -> None:
    """Deliver what the ledger still takes. Its own failure is not reported: the spool keeps what it did not take.
    StudyBusy, in place of another error of ours, when another driver took the study over while this one was stopped.
    """
    with contextlib.suppress(MuxferError):
        ledger.flush(FAREWELL_SECONDS, brief=True)
    if isinstance(error, MuxferError) and lease.overtaken():
        raise StudyBusy(f"another driver took study {study.label} over; this one stops and writes no more") from error


def _remove_leftovers(files: StudyFolder) -> None:
    """Remove killed drivers' half-written files, as the lease's holder. Exports hold none: they clean up themselves."""
    for file in files.temporary_files:
        writer = re.search(r"\.(\d+)\.tmp$", file.name)
        if writer is None or gone(int(writer[1])):  # `report` writes without a lease
            with contextlib.suppress(OSError):
                file.unlink()
    ray_sessions.remove_abandoned_storage(files.path)
