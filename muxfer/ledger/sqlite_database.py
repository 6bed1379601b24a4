"""The SQLite file of a tracking store: one process makes it, and other programs' files are refused."""

import fcntl
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

from muxfer.errors import BadInput, LedgerUnreachable
from muxfer.ledger.tracking_uri import MAX_NAME_BYTES, unreachable_error
from muxfer.processes import locking_process, status, still_named
from muxfer.trial import content_hash

LOCKED = "database is locked"  # SQLite's error when another connection went on writing for as long as it waited
LOCK_SECONDS = 300.0
"""How long to wait for another process that makes the database. That takes 2 s, and half a minute on a busy disk."""


@contextmanager
def creating_database(database: Path) -> Iterator[Path | None]:
    """Yield the path at which to make the schema of a new database. None if the database exists.

    One process at a time makes the database, under another name. It is renamed once it is whole and has a write-ahead
    log. If that process is killed, the next one starts anew: MLflow's migrations are not transactions, so a half-made
    schema can't be completed. BadInput if the file is no database of MLflow's.
    """
    if _is_made(database):
        with suppress(OSError):  # its maker was killed just before it removed the lock
            database.with_name(database.name + ".lock").unlink()
        yield None
        return
    new = database.with_name(database.name + ".new")
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with _locked(database.with_name(database.name + ".lock")):
            if _is_made(database):  # another process made it while we waited for the lock
                yield None
                return
            try:
                _remove(new)
                yield new
                with closing(sqlite3.connect(new, timeout=20)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")
                new.replace(database)
            finally:
                _remove(new)
    except OSError as error:
        why = f"the ledger {database} can't be created ({error.strerror})"
        raise BadInput(f"{why}: give another, ledger.tracking_uri=URI") from None


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Hold a lock file, and remove it in the end. If it was removed while we waited, take the new file of that name."""
    began = time.monotonic()
    while True:
        with lock.open("w") as file:
            if _try_lock(file) and still_named(file, lock):
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return
        if time.monotonic() - began > LOCK_SECONDS:
            why = f"another process has been making the ledger beside {lock} for {LOCK_SECONDS:g} s"
            raise LedgerUnreachable(f"{why}: let it finish, or end it if it is stopped, and try again")
        time.sleep(0.05)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(database: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def _is_made(database: Path) -> bool:
    """Whether the database has MLflow's schema. One that was left half made counts as missing: it has no run yet."""
    if not database.exists():
        return False
    if not database.is_file():
        raise BadInput(f"the ledger {database} is not a file: give another, ledger.tracking_uri=sqlite:///FILE.db")
    # Not read-only: the next connection must roll back what a killed process left half written.
    quoted = str(database).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    connection = sqlite3.connect(f"file:{quoted}?mode=rw", uri=True, timeout=20)
    try:
        tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
        ours = tables & {"alembic_version", "runs"}
        filled = any(connection.execute(f"select 1 from {name} limit 1").fetchone() for name in ours)
    except sqlite3.OperationalError as error:  # locked, disk full, no permission: the file itself may be good
        if LOCKED in str(error):
            raise locked_error(database) from None
        raise unreachable_error(str(database), str(error)) from None
    except sqlite3.DatabaseError as error:
        why = f"the ledger {database} can't be read ({error}): expected a SQLite database of MLflow's"
        raise BadInput(f"{why}; restore it from a backup, or move it away to start a new one") from None
    finally:
        connection.close()
    if tables - {"alembic_version", "sqlite_sequence"} and "experiments" not in tables:
        why = f"the ledger {database} is a database of another program: expected one of MLflow's, or none"
        raise BadInput(f"{why}; give another, ledger.tracking_uri=sqlite:///FILE.db")
    return filled


def locked_error(database: Path) -> LedgerUnreachable:
    """The error for a database that is locked for too long, with the process: one that is stopped keeps its lock."""
    pid = locking_process([database, database.with_name(database.name + "-shm")])
    if pid is None:
        who, remedy = "another process", "let it finish, or end it if it is stopped,"
    elif (status(pid) or "?")[0] in "Tt":
        who, remedy = f"process {pid}, which is stopped", f"wake it (kill -CONT {pid}), or end it,"
    else:
        who, remedy = f"process {pid}", "let it finish, or end it,"
    return LedgerUnreachable(f"the ledger {database} is locked by {who}: {remedy} and try again")


def artifact_folder_name(name: str) -> str:
    """The name of an experiment's artifact folder: its own name if that is safe, else a short one with a hash."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip(".")
    if plain == name and len(name.encode()) <= MAX_NAME_BYTES:
        return name
    return f"{plain[:40] or 'experiment'}-{content_hash(name, length=8)}"
