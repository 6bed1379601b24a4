"""A tracking URI that can't work is refused in one line, and its secrets are never shown."""

import dataclasses
import socket

import pytest

from muxfer.config.study import LedgerConfig
from muxfer.errors import BadInput, LedgerUnreachable
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.ledger.tracking_uri import redact_uri, short_reason, uri_secrets
from muxfer.trial import Study

STUDY = Study(name="lr-width", key="0123456789abcdef", identity={})


def sqlite_ledger(uri, folder):
    return MlflowLedger(LedgerConfig(tracking_uri=uri), folder=folder)


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_unreachable_ledger_is_reported_in_one_line_without_credentials(scheme, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        uri = f"{scheme}://someone:s3cr3t%40x@127.0.0.1:{port}/db?password=qwerty"
        with pytest.raises(LedgerUnreachable) as refused:
            MlflowLedger(LedgerConfig(tracking_uri=uri), folder=tmp_path).records(STUDY)
    text = str(refused.value)
    assert f"{scheme}://***@127.0.0.1:{port}/db gave no answer (connection refused)" in text
    assert "start it" in text
    assert not [secret for secret in ("someone", "s3cr3t", "qwerty", "hunter22", "\n") if secret in text]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://bob:hunter/22secret@db.lab/x", "postgresql://***@db.lab/x"),
        ("https://bob:p@sswort22@wiki", "https://***@wiki"),
        ("https://bob@corp.com:p@ss/wo@rt22@wiki:80/x?y=1#z", "https://***@wiki:80/x"),
        ("https://token@wiki/x?mail=me@home", "https://***@wiki/x"),
        ("https://proxy/https://bob:hunter22@wiki", "https://proxy/https://***@wiki"),
        ("postgresql://bob:hunter?22#secret@db/x", "postgresql://***"),
        ("postgresql://db:5432/x?user=bob&password=hunter@22", "postgresql://***"),
        ("postgresql://db?password=hunter@22", "postgresql://***"),
        ("postgresql:/bob:hunter22@db", "postgresql:***"),
        ("http://bob:hunter22\uff20db", "http:***"),
        ("http://wiki:5000/x?y=1", "http://wiki:5000/x"),
        ("sqlite:///a:b@c/d#1.db?e", "sqlite:///a:b@c/d#1.db"),
        ("./mlruns", "./mlruns"),
    ],
)
def test_uri_is_shown_without_user_password_and_query(uri, shown):
    assert redact_uri(uri) == shown
    assert redact_uri(shown) == shown


def test_raw_slash_in_a_password_is_reported_without_the_password(tmp_path):
    with pytest.raises(BadInput, match=r"postgresql://\*\*\*@db.lab/x: the port is not a number.*%2F") as refused:
        sqlite_ledger("postgresql://bob:hunter/22secret@db.lab/x", tmp_path).records(STUDY)
    assert not [part for part in ("bob", "hunter", "22secret") if part in str(refused.value)]
    error = OSError("FATAL: 22secret is not of bob (hunter/22secret)")
    assert short_reason(error, uri_secrets("postgresql://bob:hunter/22secret@db.lab/x")).endswith("is not of *** (***)")


def test_reading_a_missing_ledger_creates_nothing(empty_folder):
    assert MlflowLedger(LedgerConfig(), folder=empty_folder).studies("lr-width") == []
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    "uri", ["./mlruns", "file:///tmp/x", "sqlite://", "sqlite:///:memory:", "htp://nowhere:1", "http://h:x"]
)
def test_unsupported_uri_is_refused(tmp_path, uri):
    with pytest.raises(BadInput, match=r"ledger.tracking_uri .*expected"):
        sqlite_ledger(uri, tmp_path).acquire(STUDY)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a\nb", "a\0b", "x" * 10_000])
def test_study_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(BadInput, match="can't be a folder's"):
        sqlite_ledger(f"sqlite:///{tmp_path}/mlflow.db", tmp_path).acquire(dataclasses.replace(STUDY, name=name))
    assert not (tmp_path / "mlflow.db").exists()
