"""Where the tracking store is: its URI, made absolute and shown without secrets, and whether it can be there at all.

Standard library only: it looks at a SQLite file and at a port before anything heavy is imported.
"""

import fcntl
import os
import re
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import SplitResult, unquote, urlsplit

from muxfer.errors import BadInput, LedgerUnreachable
from muxfer.processes import locker, status, still_named
from muxfer.redaction import redact as hide
from muxfer.trial import content_hash

DEFAULT_URI = "sqlite:///mlflow.db"
EXPECTED_URI = "expected http(s)://HOST:PORT, sqlite:///FILE.db or postgresql://HOST/NAME"
PLAIN = {
    "Connection refused": "connection refused",
    "timed out": "no answer in time",
    "Name or service not known": "no such host",
    "Temporary failure in name resolution": "no such host",
    "Connection aborted": "connection closed",
    "error code 401": "not allowed, 401: set MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "error code 403": "forbidden, 403: our credentials or Host header are refused",
    "database or disk is full": "the disk is full",
    "attempt to write a readonly database": "the file can't be written",
    "malformed": "the database file is damaged",
}
MAX_URI_CHARACTERS, MAX_NAME_BYTES = 2000, 200
"""Of a URI, and of the names in it: a lock and a log lie beside a database, under its name with an end."""
LOCKED = "database is locked"
"""What SQLite says while another connection writes, once it has waited."""
LOCK_SECONDS = 300.0
"""How long to wait for another process that makes the database: it takes 2 s, and half a minute on a busy disk."""
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def default_tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def redact_uri(uri: str) -> str:
    """The URI without user, password and query; where nothing tells these from the rest, its scheme alone."""
    scheme, slashes, _ = uri.partition("://")
    try:
        urlsplit(uri)
        odd = bool(slashes) and not re.fullmatch(r"[\w+.-]*", scheme)
    except ValueError:  # what is none of the kind may hold a password all the same
        odd = True
    if odd or ("@" in uri and not slashes):
        return f"{uri.partition(':')[0].rpartition('@')[2][:20]}:***"
    if not slashes:
        return uri.partition("?")[0]
    user, place = _parted(uri)
    if "?" in user or "#" in user:  # of a password, or begins a query with an @ in it
        return f"{scheme}://***"
    end = "[?]" if not user and place.startswith("/") else "[?#]"  # a file's name may hold a #
    return hide(f"{scheme}://{'***@' if user else ''}{re.split(end, place)[0]}")


def _parted(uri: str) -> tuple[str, str]:
    """User with password, and what follows them. A raw / or @ is taken for the password's, like any before an @."""
    rest = uri.partition("://")[2]
    first, slash, path = rest.partition("/")
    if ":" in first:
        first, slash, path = rest, "", ""
    user, _, host = first.rpartition("@")
    return user, host + slash + path


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a SQLite URI; None for another kind of store."""
    scheme, _, rest = uri.partition("://")
    try:
        urlsplit(uri)
        odd = not uri.isprintable() or len(uri) > MAX_URI_CHARACTERS
    except ValueError:
        odd = True
    if odd:
        raise BadInput(f"ledger.tracking_uri {redact_uri(uri)[:200]!r} is no URI: {EXPECTED_URI}")
    if "://" not in uri or scheme.partition("+")[0] not in ("sqlite", *PORTS):
        raise BadInput(f"ledger.tracking_uri {redact_uri(uri)[:200]!r}: {EXPECTED_URI}")
    if not scheme.startswith("sqlite"):
        return None
    if not rest.startswith("/") or rest in ("/", "/:memory:") or "?" in rest or "\0" in rest:
        raise BadInput(f"ledger.tracking_uri {redact_uri(uri)[:200]!r}: expected a file, sqlite:///FILE.db")
    path = Path(os.path.abspath(rest[1:]))
    if max(len(part.encode()) for part in path.parts) > MAX_NAME_BYTES:
        raise BadInput(f"ledger.tracking_uri {uri[:60]}...: expected names of at most {MAX_NAME_BYTES} bytes")
    return path


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


def validate_port(uri: str, where: str) -> None:
    """Fail within seconds where nobody listens: mlflow goes on trying a database for minutes."""
    parts = urlsplit(uri)
    host = parts.hostname
    try:
        port = parts.port or PORTS.get(parts.scheme.partition("+")[0])
    except ValueError:
        raise BadInput(
            f"ledger.tracking_uri {where}: the port is not a number; {EXPECTED_URI}, and in a password %2F for /"
        ) from None
    if host is None or port is None or _proxied(parts):
        return
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        short = next((short for words, short in PLAIN.items() if words in str(error)), error.strerror or "no route")
        raise unreachable(where, short) from None


def unreachable(where: str, why: str) -> LedgerUnreachable:
    return LedgerUnreachable(
        f"the ledger {where} gave no answer ({why}); expected an MLflow tracking store there: start it,"
        " or give another, ledger.tracking_uri=URI or MLFLOW_TRACKING_URI"
    )


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


def short_reason(error: BaseException, secrets: Iterable[str]) -> str:
    """What is wrong, in a few words and without a secret."""
    text = str(error)
    for words, short in PLAIN.items():
        if words in text:
            return short
    for secret in secrets:
        text = text.replace(secret, "***")
    text = " ".join(hide(text).split())
    return text[:160] or type(error).__name__


def _proxied(parts: SplitResult) -> bool:
    return any(os.environ.get(name) for name in (f"{parts.scheme}_proxy", f"{parts.scheme.upper()}_PROXY"))


def secrets(uri: str) -> list[str]:
    user = _parted(uri)[0]
    known: list[str | None] = [*user.split(":", 1), user, urlsplit(uri).query]
    known += [os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("PASSWORD", "TOKEN")]
    return [form for secret in known if secret and len(secret) > 2 for form in (secret, unquote(secret))]


def file_name(name: str) -> str:
    """A folder's name for an experiment: its own where that is safe, else what is left of it and a hash of it."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip(".")
    if plain == name and len(name.encode()) <= MAX_NAME_BYTES:
        return name
    return f"{plain[:40] or 'experiment'}-{content_hash(name, length=8)}"
