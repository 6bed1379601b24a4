"""A SQLite file that cannot serve as a ledger is refused, and a locked one names who locks it."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from muxfer.errors import BadInput, LedgerUnreachable
from muxfer.ledger import mlflow_client
from muxfer.ledger.sqlite_database import locked_error
from tests.ledger.test_tracking_uri import STUDY, sqlite_ledger


@pytest.mark.parametrize("content", [b"no database at all, but a text\n" * 50, b"SQLite format 3\0" + b"\xff" * 4096])
def test_broken_database_is_refused(tmp_path, content):
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(BadInput, match=r"can't be read .*restore it from a backup"):
        sqlite_ledger(f"sqlite:///{tmp_path}/mlflow.db", tmp_path).acquire(STUDY)
    assert (tmp_path / "mlflow.db").read_bytes() == content


def test_database_of_another_program_is_refused(tmp_path):
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    connection.execute("create table recipes (name)")
    connection.close()
    with pytest.raises(BadInput, match="another program"):
        sqlite_ledger(f"sqlite:///{tmp_path}/mlflow.db", tmp_path).acquire(STUDY)


def test_unwritable_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="can't be created"):
        sqlite_ledger(f"sqlite:///{tmp_path}/file/mlflow.db", tmp_path).acquire(STUDY)


IN_A_TRANSACTION = """
import signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("begun", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
def test_error_names_the_process_that_locks_the_database(tmp_path, journal):
    database = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"PRAGMA journal_mode={journal}")
    command = [sys.executable, "-c", IN_A_TRANSACTION, str(database)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "begun\n"
            where = f"the ledger {database} is locked by process {holder.pid}"
            assert str(locked_error(database)) == f"{where}: let it finish, or end it, and try again"
            holder.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
            wake = f"wake it (kill -CONT {holder.pid}), or end it, and try again"
            assert str(locked_error(database)) == f"{where}, which is stopped: {wake}"
        finally:
            holder.kill()
    assert "by another process: let it finish, or end it if it is stopped, and" in str(locked_error(database))


@pytest.mark.slow
def test_write_to_a_locked_database_ends_after_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_client, "BUSY_SECONDS", 0.2)
    ledger = sqlite_ledger(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    ledger.acquire(STUDY).release()

    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnreachable, match=f"mlflow.db is locked by process {os.getpid()}: let it"):
            ledger.acquire(STUDY)
    ledger.acquire(STUDY).release()
