"""Where the tracking store is: its URI, made absolute and shown without secrets, and whether it can be there at all.

Standard library only: it looks at a SQLite file and at a port before anything heavy is imported.
"""

import fcntl
import os
import re
import socket
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from muxfer.errors import BadInput, LedgerUnreachable

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
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def default_tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def masked(uri: str) -> str:
    """The URI without user, password and query."""
    parts = urlsplit(uri)
    if not parts.netloc:
        return uri.partition("?")[0]
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{'***@' if '@' in parts.netloc else ''}{host}{parts.path}"


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a SQLite URI; None for another kind of store."""
    scheme, _, rest = uri.partition("://")
    if "://" not in uri or scheme.partition("+")[0] not in ("sqlite", *PORTS):
        raise BadInput(f"ledger.tracking_uri {masked(uri)[:200]!r}: {EXPECTED_URI}")
    if not scheme.startswith("sqlite"):
        return None
    if not rest.startswith("/") or rest in ("/", "/:memory:") or "?" in rest or "\0" in rest:
        raise BadInput(f"ledger.tracking_uri {masked(uri)[:200]!r}: expected a file, sqlite:///FILE.db")
    return Path(os.path.abspath(rest[1:]))


@contextmanager
def created_by_one(database: Path) -> Iterator[None]:
    """Let one process at a time create the schema of a fresh database; refuse what is no database of MLflow's."""
    state = _sqlite_state(database)
    if state == "ready":
        yield
        return
    lock = database.with_name(database.name + ".lock")
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
            if state == "fresh":
                connection = sqlite3.connect(database, timeout=20)
                connection.execute("PRAGMA journal_mode=WAL")
                connection.close()
            lock.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(
            f"the ledger {database} can't be created ({error.strerror}): give another, ledger.tracking_uri=URI"
        ) from None


def _sqlite_state(database: Path) -> str:
    """ "ready" if MLflow's schema is there, else "fresh"."""
    if not database.exists():
        return "fresh"
    connection = sqlite3.connect(f"file:{_quoted(database)}?mode=ro", uri=True, timeout=20)
    try:
        tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
        if "experiments" in tables and "alembic_version" in tables:
            ready = connection.execute("select count(*) from alembic_version").fetchone()[0]
            return "ready" if ready else "fresh"
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
    return "fresh"


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def check_port(uri: str, where: str) -> None:
    """Fail within seconds where nobody listens: mlflow goes on trying a database for minutes."""
    parts = urlsplit(uri)
    host = parts.hostname
    try:
        port = parts.port or PORTS.get(parts.scheme.partition("+")[0])
    except ValueError:
        raise BadInput(f"ledger.tracking_uri {where}: the port is not a number; {EXPECTED_URI}") from None
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


def short_reason(error: BaseException, secrets: Iterable[str]) -> str:
    """What is wrong, in a few words and without a secret."""
    text = str(error)
    for words, short in PLAIN.items():
        if words in text:
            return short
    for secret in secrets:
        text = text.replace(secret, "***")
    text = " ".join(re.sub(r"://[^/@\s]*@", "://***@", text).split())
    return text[:160] or type(error).__name__


def _proxied(parts: SplitResult) -> bool:
    return any(os.environ.get(name) for name in (f"{parts.scheme}_proxy", f"{parts.scheme.upper()}_PROXY"))


def secrets(uri: str) -> list[str]:
    parts = urlsplit(uri)
    known = [parts.password, parts.username, parts.query, parts.netloc.rpartition("@")[0]]
    known += [os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("PASSWORD", "TOKEN")]
    return [form for secret in known if secret and len(secret) > 2 for form in (secret, unquote(secret))]


def file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip(".") or "experiment"
