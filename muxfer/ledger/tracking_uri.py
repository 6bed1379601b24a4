"""The URI of the tracking store: validated, made absolute, and shown without its secrets.

It uses the standard library only, so that a URI that leads nowhere is refused before anything heavy is imported.
"""

import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from muxfer.errors import BadInput, LedgerUnreachable
from muxfer.redaction import redact

DEFAULT_URI = "sqlite:///mlflow.db"
EXPECTED_URI = "expected http(s)://HOST:PORT, sqlite:///FILE.db or postgresql://HOST/NAME"
SHORT_REASONS = {
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
"""The longest URI, and the longest name in its path: a lock and a log lie beside a database, with a longer name."""
DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def default_tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def redact_uri(uri: str) -> str:
    """The URI without user, password and query. Where they can't be separated, its scheme alone."""
    scheme, slashes, _ = uri.partition("://")
    try:
        urlsplit(uri)
        odd = bool(slashes) and not re.fullmatch(r"[\w+.-]*", scheme)
    except ValueError:  # a text that is no URI may hold a password all the same
        odd = True
    if odd or ("@" in uri and not slashes):
        return f"{uri.partition(':')[0].rpartition('@')[2][:20]}:***"
    if not slashes:
        return uri.partition("?")[0]
    user, place = _split_user(uri)
    if "?" in user or "#" in user:  # it belongs to a password, or begins a query that holds an @
        return f"{scheme}://***"
    query = "[?]" if not user and place.startswith("/") else "[?#]"  # a file's name may hold a #
    return redact(f"{scheme}://{'***@' if user else ''}{re.split(query, place)[0]}")


def _split_user(uri: str) -> tuple[str, str]:
    """(user with password, the rest). A raw / or @ before the last @ is taken for a part of the password."""
    rest = uri.partition("://")[2]
    first, slash, path = rest.partition("/")
    if ":" in first:
        first, slash, path = rest, "", ""
    user, _, host = first.rpartition("@")
    return user, host + slash + path


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a SQLite URI. None for another kind of store. BadInput for a URI that can't work."""
    scheme, _, rest = uri.partition("://")
    try:
        urlsplit(uri)
        odd = not uri.isprintable() or len(uri) > MAX_URI_CHARACTERS
    except ValueError:
        odd = True
    if odd:
        raise BadInput(f"ledger.tracking_uri {redact_uri(uri)[:200]!r} is no URI: {EXPECTED_URI}")
    if "://" not in uri or scheme.partition("+")[0] not in ("sqlite", *DEFAULT_PORTS):
        raise BadInput(f"ledger.tracking_uri {redact_uri(uri)[:200]!r}: {EXPECTED_URI}")
    if not scheme.startswith("sqlite"):
        return None
    if not rest.startswith("/") or rest in ("/", "/:memory:") or "?" in rest or "\0" in rest:
        raise BadInput(f"ledger.tracking_uri {redact_uri(uri)[:200]!r}: expected a file, sqlite:///FILE.db")
    path = Path(os.path.abspath(rest[1:]))
    if max(len(part.encode()) for part in path.parts) > MAX_NAME_BYTES:
        raise BadInput(f"ledger.tracking_uri {uri[:60]}...: expected names of at most {MAX_NAME_BYTES} bytes")
    return path


def validate_port(uri: str, where: str) -> None:
    """Raise LedgerUnreachable within seconds if nobody listens on the port. mlflow would retry for minutes."""
    parts = urlsplit(uri)
    host = parts.hostname
    try:
        port = parts.port or DEFAULT_PORTS.get(parts.scheme.partition("+")[0])
    except ValueError:
        why = f"ledger.tracking_uri {where}: the port is not a number"
        raise BadInput(f"{why}; {EXPECTED_URI}, and in a password %2F for /") from None
    proxies = (f"{parts.scheme}_proxy", f"{parts.scheme.upper()}_PROXY")
    if host is None or port is None or any(map(os.environ.get, proxies)):
        return
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        reasons = (short for words, short in SHORT_REASONS.items() if words in str(error))
        raise unreachable_error(where, next(reasons, error.strerror or "no route")) from None


def unreachable_error(where: str, why: str) -> LedgerUnreachable:
    what = f"the ledger {where} gave no answer ({why}); expected an MLflow tracking store there"
    return LedgerUnreachable(f"{what}: start it, or give another, ledger.tracking_uri=URI or MLFLOW_TRACKING_URI")


def short_reason(error: BaseException, secrets: Iterable[str]) -> str:
    """What is wrong, in a few words and without secrets."""
    text = str(error)
    for words, short in SHORT_REASONS.items():
        if words in text:
            return short
    for secret in secrets:
        text = text.replace(secret, "***")
    return " ".join(redact(text).split())[:160] or type(error).__name__


def uri_secrets(uri: str) -> list[str]:
    """The user, password, token and query of a URI and of MLflow's variables, raw and unquoted."""
    user = _split_user(uri)[0]
    parts: list[str | None] = [*user.split(":", 1), user, urlsplit(uri).query]
    parts += [os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("PASSWORD", "TOKEN")]
    return [form for secret in parts if secret and len(secret) > 2 for form in (secret, unquote(secret))]
