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
from muxfer.ledger.tracking_uri import MAX_NAME_BYTES, unreachable
from muxfer.processes import locker, status, still_named
from muxfer.trial import content_hash

LOCKED = "database is locked"
"""What SQLite says while another connection writes, once it has waited."""
LOCK_SECONDS = 300.0
"""How long to wait for another process that makes the database: it takes 2 s, and half a minute on a busy disk."""


@contextmanager
def created_by_one(database: Path) -> Iterator[Path | None]:
    """Where to make the schema of a fresh database; None where it is there. Refuses what is no database of MLflow's.

    One process at a time makes it, under another name; it gets its own, and a write-ahead log, once it is whole. A
    database that was killed half made can't be made whole again: MLflow's migrations are not transactions.
    """
    if _is_made(database):
        with suppress(OSError):  # of one that was killed as soon as it was whole
            database.with_name(database.name + ".lock").unlink()
        yield None
        return
    new = database.with_name(database.name + ".new")
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with _locked(database.with_name(database.name + ".lock")):
            if _is_made(database):  # meanwhile
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
        raise BadInput(
            f"the ledger {database} can't be created ({error.strerror}): give another, ledger.tracking_uri=URI"
        ) from None


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Hold a lock file and remove it. Who waited for one that was removed meanwhile takes the new one."""
    began = time.monotonic()
    while True:
        with lock.open("w") as file:
            if _takes(file) and still_named(file, lock):
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return
        if time.monotonic() - began > LOCK_SECONDS:
            raise LedgerUnreachable(
                f"another process has been making the ledger beside {lock} for {LOCK_SECONDS:g} s: let it finish, or"
                " end it if it is stopped, and try again"
            )
        time.sleep(0.05)


def _takes(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(database: Path) -> None:
    for end in ("", "-journal", "-wal", "-shm"):
        database.with_name(database.name + end).unlink(missing_ok=True)


def _is_made(database: Path) -> bool:
    """Whether MLflow's schema is there; what was killed half made, before any run, is as good as nothing."""
    if not database.exists():
        return False
    if not database.is_file():
        raise BadInput(f"the ledger {database} is no file: give another, ledger.tracking_uri=sqlite:///FILE.db")
    # Not read-only: what a killed process left half written is rolled back by whoever comes next.
    connection = sqlite3.connect(f"file:{_quoted(database)}?mode=rw", uri=True, timeout=20)
    try:
        tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
        filled = [name for name in ("alembic_version", "runs") if name in tables and _has_rows(connection, name)]
    except sqlite3.OperationalError as error:  # locked, no room, no right: of the file it says nothing
        if LOCKED in str(error):
            raise locked(database) from None
        raise unreachable(str(database), str(error)) from None
    except sqlite3.DatabaseError as error:
        raise BadInput(
            f"the ledger {database} can't be read ({error}): expected an SQLite database of MLflow's;"
            " restore it from a backup, or move it away to start a new one"
        ) from None
    finally:
        connection.close()
    if tables - {"alembic_version", "sqlite_sequence"} and "experiments" not in tables:
        raise BadInput(
            f"the ledger {database} is a database of another program: expected one of MLflow's, or none;"
            " give another, ledger.tracking_uri=sqlite:///FILE.db"
        )
    return bool(filled)


def _has_rows(connection: sqlite3.Connection, table: str) -> bool:
    return connection.execute(f"select 1 from {table} limit 1").fetchone() is not None


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def locked(database: Path) -> LedgerUnreachable:
    """Of a SQLite file that others write to for too long: one stopped in a transaction holds it until it goes on."""
    pid = locker([database, database.with_name(database.name + "-shm")])
    if pid is None:
        who, mend = "another process", "let it finish, or end it if it is stopped,"
    elif (status(pid) or "?")[0] in "Tt":
        who, mend = f"process {pid}, which is stopped", f"wake it (kill -CONT {pid}), or end it,"
    else:
        who, mend = f"process {pid}", "let it finish, or end it,"
    return LedgerUnreachable(f"the ledger {database} is locked by {who}: {mend} and try again")


def file_name(name: str) -> str:
    """A folder's name for an experiment: its own where that is safe, else what is left of it and a hash of it."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip(".")
    if plain == name and len(name.encode()) <= MAX_NAME_BYTES:
        return name
    return f"{plain[:40] or 'experiment'}-{content_hash(name, length=8)}"
