"""A real `mlflow server` on loopback, reached through a proxy that can fail in several ways."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.faults.harness.proxy import Proxy
from benchmarks.faults.harness.settings import CACHE

START_SECONDS = 120.0
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


@contextmanager
def serving(folder: Path) -> Iterator[Proxy]:
    """A server with its own database in `folder`, and the proxy in front of it."""
    folder.mkdir()
    database = folder / "server.db"
    template = None if CACHE not in os.environ else Path(os.environ[CACHE], "server.db")
    if template is not None and template.exists():  # making the schema takes seconds
        shutil.copy(template, database)
    with hold_port() as held:
        port = held.getsockname()[1]
        process = _start_server(folder, database, port)
        try:
            _wait_until_healthy(process, port)
            if template is not None and not template.exists():
                template.parent.mkdir(parents=True, exist_ok=True)
                copy = template.with_name(f"server-{os.getpid()}.db")
                shutil.copy(database, copy)
                copy.replace(template)
            proxy = Proxy(port, database=database)
            try:
                yield proxy
            finally:
                proxy.close()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def hold_port(port: int = 0) -> socket.socket:
    """A free port of loopback. While it is open, nobody else is given the port, but a server may listen on it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", port))
    return held


def _start_server(folder: Path, database: Path, port: int) -> "subprocess.Popen[bytes]":
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(folder / "artifacts")]
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *address, *store],
        cwd=folder,
        env={**os.environ, **QUIET, "MLFLOW_TRACKING_URI": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait_until_healthy(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, f"mlflow server ended with {process.returncode}"
            assert time.monotonic() < deadline, f"mlflow server was not healthy within {START_SECONDS:g} s"
            time.sleep(0.05)
