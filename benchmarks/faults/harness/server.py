"""A real `mlflow server` on loopback, reached through a proxy.

The proxy can go away, hang, answer with errors, or lose single responses.
"""

import http.client
import os
import random
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.faults.harness.settings import CACHE
from benchmarks.faults.harness.sweep import new_folder

START_SECONDS = 120.0
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
BROKEN = (
    (500, "application/json", b'{"error_code": "INTERNAL_ERROR", "message": "the database is away"}'),
    (500, "text/plain", b"Internal Server Error"),
    (502, "text/html", b"<html><body><h1>502 Bad Gateway</h1></body></html>"),
    (503, "text/html", b"<html><body><h1>503 Service Unavailable</h1></body></html>"),
)
"""Responses of servers, and of the balancers in front of them, when they fail."""
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "date", "server"}
Response = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """The first request with this method and this end of its path, whose response never arrives.

    The request is forwarded and committed, then the connection is closed without a response. With `late` it is
    forwarded only after the client, which got no response, has sent a second request like it.
    """

    method: str
    path_ends: str
    late: bool = False

    def matches(self, method: str, path: str) -> bool:
        path = path.partition("?")[0]
        return method == self.method and (path.endswith(self.path_ends) or f"{self.path_ends}/" in path)


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A request as the client sent it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def is_like(self, other: "Sent") -> bool:
        return (self.method, self.path, self.body) == (other.method, other.path, other.body)


class Proxy:
    """Stands in front of the server at `port`. It starts well; `down`, `hang` and `break_` last until `mend`."""

    def __init__(self, port: int, *, database: Path) -> None:
        self.database = database
        self.port = port
        self.passed = 0
        """How many requests got the server's own response since the last change of mode."""
        self._changed = threading.Condition()  # guards all that the threads of the connections share
        self._mode = "well"
        self._held = 0
        self._to_lose: list[Lost] = []
        self._owed: list[tuple[Lost, Sent]] = []  # late requests that came in and are not yet forwarded
        self._connections: set[socket.socket] = set()
        self._listener = _Listener(("127.0.0.1", 0), self)
        self._address = self._listener.server_address
        self.uri = f"http://127.0.0.1:{self._address[1]}"
        self._open()

    def down(self) -> None:
        """Refuse new connections and cut the open ones."""
        self._become("down")
        self._listener.shutdown()
        self._listener.server_close()
        self._listener = _Listener(("127.0.0.1", int(self._address[1])), self)  # bound, so nobody takes the port
        with self._changed:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def hang(self) -> None:
        """Accept connections and read requests, but forward them only after `mend`, however late that is."""
        self._become("hang")

    def break_(self) -> None:
        """Respond to every request with an error of a server or a balancer, and forward none."""
        self._become("broken")

    def mend(self) -> None:
        """Be well again. Returns once the requests that hung were forwarded."""
        if self._become("well") == "down":
            self._open()
        with self._changed:
            assert self._changed.wait_for(lambda: self._held == 0, 60), "the server took no late request"

    def lose(self, *lost: Lost) -> None:
        with self._changed:
            self._to_lose += lost

    def still_to_lose(self) -> list[Lost]:
        """Losses that no request matched yet, and late requests that are not yet forwarded."""
        with self._changed:
            return [*self._to_lose, *(lost for lost, _ in self._owed)]

    def close(self) -> None:
        if self._become("well") != "down":
            self._listener.shutdown()
        self._listener.server_close()

    def _become(self, mode: str) -> str:
        with self._changed:
            before, self._mode, self.passed = self._mode, mode, 0
            self._changed.notify_all()
        return before

    def _open(self) -> None:
        self._listener.server_activate()
        threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True).start()

    def respond(self, sent: Sent) -> Response | None:
        """The response to the client. None: its connection is closed without one."""
        with self._changed:
            mode = self._mode
            self.passed += mode == "well"
            if mode == "hang":
                self._held += 1
                self._changed.wait_for(lambda: self._mode != "hang")
        if mode == "hang":
            try:
                return self._forward(sent)
            finally:
                with self._changed:
                    self._held -= 1
                    self._changed.notify_all()
        if mode == "broken":
            status, kind, body = random.Random(sent.path + str(len(sent.body))).choice(BROKEN)
            return status, {"Content-Type": kind}, body
        return None if mode == "down" else self._forward_or_lose(sent)

    def _forward_or_lose(self, sent: Sent) -> Response | None:
        with self._changed:
            lost = next((lost for lost in self._to_lose if lost.matches(sent.method, sent.path)), None)
            owed = next((pair for pair in self._owed if pair[1].is_like(sent)), None)
            if lost is not None and owed is None:
                self._to_lose.remove(lost)
                if lost.late:
                    self._owed.append((lost, sent))
                    return None
        response = self._forward(sent)
        if owed is not None:
            self._forward(owed[1])
            with self._changed:
                self._owed.remove(owed)
        return response if lost is None or owed is not None else None

    def _forward(self, sent: Sent) -> Response:
        server = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            server.request(sent.method, sent.path, body=sent.body, headers=sent.headers)
            response = server.getresponse()
            headers = {name: value for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP}
            return response.status, headers, response.read()
        finally:
            server.close()

    @contextmanager
    def keeping(self, connection: socket.socket) -> Iterator[None]:
        """While its handler runs, `down` can cut this connection."""
        with self._changed:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self._changed:
                self._connections.discard(connection)


class _Listener(ThreadingHTTPServer):
    """Bound when it is made, and listening after `server_activate`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler, bind_and_activate=False)
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own looks up the host's name
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away on purpose here, so their errors are not printed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def handle(self) -> None:
        with self.server.proxy.keeping(self.connection):
            super().handle()

    def _any(self) -> None:
        assert "chunked" not in self.headers.get("Transfer-Encoding", ""), "the proxy can't read chunks"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        response = self.server.proxy.respond(Sent(method=self.command, path=self.path, headers=headers, body=body))
        if response is None:
            self.close_connection = True
            return
        status, headers, text = response
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[Proxy]:
    """A server with its own database in a new folder below this one, and the proxy in front of it."""
    folder = new_folder(folder, "server-")
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
