"""One command's hold of a study: its ledger, its lease, and what an earlier driver left."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from muxfer.errors import BadInput, MuxferError, StudyBusy
from muxfer.executors import ray_sessions
from muxfer.ledger.base import Ledger
from muxfer.ledger.lease import HeldLease
from muxfer.ledger.tracking_uri import redact_uri, sqlite_path
from muxfer.processes import gone
from muxfer.study.resolve import Request, tracking_uri
from muxfer.trial import Study

FAREWELL_SECONDS = 5.0
"""How long a command that was stopped, or failed, waits for the ledger."""


@contextmanager
def open_ledger(request: Request, *, existing: bool = False) -> Iterator[Ledger]:
    """The ledger of a request. `existing`: BadInput where there is none yet, instead of making one."""
    uri = tracking_uri(request.config)
    database = sqlite_path(uri)
    if existing and database is not None and not database.exists():
        raise BadInput(
            f"no ledger at {redact_uri(uri)}: run muxfer sweep {request.name} first, or give ledger.tracking_uri=URI"
        )
    from muxfer.ledger.mlflow_ledger import MlflowLedger

    ledger = MlflowLedger(request.config.ledger, folder=request.folder, variables=request.variables)
    try:
        yield ledger
    finally:
        ledger.close()


def _sweep_litter(home: Path) -> None:
    """Files that drivers which were killed left half written beside a study's own; who holds the lease may.

    Folders are exports', which hold no lease: the next one tidies them up.
    """
    for left in (*home.glob(".*.tmp"), *home.glob("target-*/.*.tmp"), *home.glob("spool-*.tmp")):
        writer = re.search(r"\.(\d+)\.tmp$", left.name)
        if writer is None or gone(int(writer[1])):  # `report` writes without a lease
            with contextlib.suppress(OSError):
                left.unlink()
    ray_sessions.remove_abandoned_storage(home)


@contextmanager
def driving(request: Request, study: Study, ledger: Ledger, config: Mapping[str, Any] | None) -> Iterator[Any]:
    """Hold the study's lease; whatever ends it, what was written is flushed first and the lease given back."""
    lease = ledger.acquire(study)
    try:
        ledger.open(study, config, lease)
        _sweep_litter(request.folder / study.label)
        yield lease
        ledger.flush(request.config.ledger.patience_seconds)
    except BaseException as error:  # it is told, not that the ledger failed too: the spool keeps what it did not take
        with contextlib.suppress(MuxferError):
            ledger.flush(FAREWELL_SECONDS, brief=True)
        if isinstance(error, MuxferError) and isinstance(lease, HeldLease) and lease.overtaken():
            told = f"another driver took study {study.label} over; this one stops and writes no more"
            raise StudyBusy(told) from error  # we were stopped for long, and whatever waited for us gave up
        raise
    finally:
        lease.release()
