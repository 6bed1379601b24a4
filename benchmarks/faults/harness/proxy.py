"""A proxy."""

import contextlib
import http.client
import random
import socket
import socketserver
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BROKEN = (
    (500, "application/json", b'{"error_code": "INTERNAL_ERROR", "message": "the database is away"}'),
    (500, "text/plain", b"Internal Server Error"),
    (502, "text/html", b"<html><body><h1>502 Bad Gateway</h1></body></html>"),
    (503, "text/html", b"<html><body><h1>503 Service Unavailable</h1></body></html>"),
)
"""What servers, and the balancers before them, say when they can't."""
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "date", "server"}


@dataclass(frozen=True, kw_only=True)
class Lost:
    """One request whose answer never comes: the first with this method and this end of its path.

    It is passed on and committed, and the connection closed without the answer. `late`: it is passed on only after
    the client, which was told nothing, has sent a second one like it.
    """

    method: str
    path_ends: str
    late: bool = False

    def fits(self, method: str, path: str) -> bool:
        path = path.partition("?")[0]
        return method == self.method and (path.endswith(self.path_ends) or f"{self.path_ends}/" in path)


@dataclass(frozen=True, kw_only=True)
class Sent:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(kw_only=True)
class _State:
    """What the connections' threads share; `changed` guards all of it."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    mode: str = "well"
    passed: int = 0
    """Requests that were answered as they should since the last change of mode."""
    held: int = 0
    to_lose: list[Lost] = field(default_factory=list)
    owed: list[tuple[Lost, Sent]] = field(default_factory=list)
    connections: set[socket.socket] = field(default_factory=set)


class Proxy:
    """Stands before the server at `port`. Well at first; `down`, `hang` and `break_` last until `mend`."""

    def __init__(self, port: int, *, database: Path) -> None:
        self.database = database
        self.port = port
        self._state = _State()
        self._door = _Door(("127.0.0.1", 0), self)
        self._address = self._door.server_address
        self.uri = f"http://127.0.0.1:{self._address[1]}"
        self._open()

    @property
    def passed(self) -> int:
        """How many requests got the server's answer since the last change."""
        return self._state.passed

    def down(self) -> None:
        """Nobody listens: connections are refused, those that are open are cut."""
        self._become("down")
        self._door.shutdown()
        self._door.server_close()
        self._door = _Door(("127.0.0.1", int(self._address[1])), self)  # bound, so that nobody takes the port
        with self._state.changed:
            for connection in self._state.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def hang(self) -> None:
        """Connections are accepted and requests read; at `mend` they are passed on, however late that is."""
        self._become("hang")

    def break_(self) -> None:
        """Every request is answered with an error of a server or of a balancer, and not passed on."""
        self._become("broken")

    def mend(self) -> None:
        """Be well; returns once the requests that hung were passed on."""
        if self._become("well") == "down":
            self._open()
        with self._state.changed:
            assert self._state.changed.wait_for(lambda: self._state.held == 0, 60), "the server took no late request"

    def lose(self, *lost: Lost) -> None:
        with self._state.changed:
            self._state.to_lose += lost

    def still_to_lose(self) -> list[Lost]:
        """What no request has fitted yet, and what came in and was not passed on yet."""
        with self._state.changed:
            return [*self._state.to_lose, *(lost for lost, _ in self._state.owed)]

    def close(self) -> None:
        if self._become("well") != "down":
            self._door.shutdown()
        self._door.server_close()

    def _become(self, mode: str) -> str:
        with self._state.changed:
            before, self._state.mode, self._state.passed = self._state.mode, mode, 0
            self._state.changed.notify_all()
        return before

    def _open(self) -> None:
        self._door.server_activate()
        threading.Thread(target=self._door.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, sent: Sent) -> tuple[int, dict[str, str], bytes] | None:
        """What the client is told; None: its connection is closed without a word."""
        state = self._state
        with state.changed:
            mode = state.mode
            state.passed += mode == "well"
            if mode == "hang":
                state.held += 1
                state.changed.wait_for(lambda: state.mode != "hang")
        if mode == "hang":
            try:
                return self._pass_on(sent)
            finally:
                with state.changed:
                    state.held -= 1
                    state.changed.notify_all()
        if mode == "broken":
            status, kind, body = random.Random(sent.path + str(len(sent.body))).choice(BROKEN)
            return status, {"Content-Type": kind}, body
        if mode == "down":
            return None
        with state.changed:
            lost = next((lost for lost in state.to_lose if lost.fits(sent.method, sent.path)), None)
            owed = next((pair for pair in state.owed if _alike(pair[1], sent)), None)
            if lost is not None and owed is None:
                state.to_lose.remove(lost)
                if lost.late:
                    state.owed.append((lost, sent))
                    return None
        answer = self._pass_on(sent)
        if owed is not None:
            self._pass_on(owed[1])
            with state.changed:
                state.owed.remove(owed)
        return answer if lost is None or owed is not None else None

    def _pass_on(self, sent: Sent) -> tuple[int, dict[str, str], bytes]:
        server = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            server.request(sent.method, sent.path, body=sent.body, headers=sent.headers)
            answer = server.getresponse()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
            return answer.status, headers, answer.read()
        finally:
            server.close()


def _alike(first: Sent, second: Sent) -> bool:
    return (first.method, first.path, first.body) == (second.method, second.path, second.body)


class _Door(ThreadingHTTPServer):
    """The proxy's listener: bound when made, listening after `server_activate`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler, bind_and_activate=False)
        socketserver.TCPServer.server_bind(self)  # HTTPServer's looks the host's name up
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Door

    def handle(self) -> None:
        state = self.server.proxy._state
        with state.changed:
            state.connections.add(self.connection)
        try:
            super().handle()
        finally:
            with state.changed:
                state.connections.discard(self.connection)

    def _any(self) -> None:
        assert "chunked" not in self.headers.get("Transfer-Encoding", ""), "the proxy can't read chunks"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        found = self.server.proxy.answer(Sent(method=self.command, path=self.path, headers=headers, body=body))
        if found is None:
            self.close_connection = True
            return
        status, answered, text = found
        self.send_response_only(status)
        for name, value in answered.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent."""
