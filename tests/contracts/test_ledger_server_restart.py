"""A server that loses answers, or is killed and started again, loses no write and doubles none."""

import shutil
import socket
import socketserver
import threading

import pytest

from muxfer.config.study import LedgerConfig
from muxfer.errors import LedgerUnreachable
from muxfer.ledger.mlflow_ledger import MlflowLedger
from tests.contracts.conftest import NUMBERS, PATIENCE, STUDY, Server, curve, points, record, runs_of, trial


class Proxy(socketserver.ThreadingTCPServer):
    """In front of a server: hands every request on, and keeps the answer to itself when told to."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, server):
        super().__init__(("127.0.0.1", 0), _Relay)
        self.server = server
        self.drop = 0
        self.dropped = 0
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"


class _Relay(socketserver.StreamRequestHandler):
    def handle(self):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            got = self.rfile.readline()
            if not got:
                return
            if not got.lower().startswith((b"connection:", b"host:")):
                head += got
        length = next((int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), 0)
        start, _, rest = head.partition(b"\r\n")
        body = self.rfile.read(length)
        with socket.create_connection(("127.0.0.1", self.server.server.port)) as upstream:
            host = f"Host: 127.0.0.1:{self.server.server.port}\r\nConnection: close\r\n".encode()
            upstream.sendall(start + b"\r\n" + host + rest + body)
            answer = b"".join(iter(lambda: upstream.recv(1 << 16), b""))
        if self.server.drop and start.startswith(b"POST"):
            self.server.drop -= 1
            self.server.dropped += 1
            return
        self.wfile.write(answer)


def test_answers_lost_after_the_commit_double_nothing(server, tmp_path):
    with Proxy(server) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        config = LedgerConfig(tracking_uri=proxy.uri, experiment=f"test {next(NUMBERS)}", lease_seconds=600)
        ledger = MlflowLedger(config, folder=tmp_path)
        lease = ledger.acquire(STUDY)
        ledger.open(STUDY, {}, lease)
        for number in range(3):
            proxy.drop = 3
            ledger.begin(trial(number))
            ledger.report(f"key{number}", points(*range(5)))
            ledger.settle(record(number, epoch=lease.epoch))
            ledger.flush(PATIENCE)
        assert proxy.dropped == 9
        assert sorted(found.key for found in ledger.records(STUDY)) == ["key0", "key1", "key2"]
        assert all(len(curve(ledger, run)) == 5 for n in range(3) for run in runs_of(ledger, n))
        assert [len(runs_of(ledger, n)) for n in range(3)] == [1, 1, 1]
        lease.release()
        ledger.close()
        proxy.shutdown()


def test_a_server_killed_in_the_middle_and_started_again_misses_and_doubles_nothing(tmp_path, fresh_database):
    shutil.copy(fresh_database, tmp_path / "server.db")
    server = Server(tmp_path)
    server.start()
    try:
        config = LedgerConfig(tracking_uri=server.uri, lease_seconds=600)
        ledger = MlflowLedger(config, folder=tmp_path / "muxfer")
        lease = ledger.acquire(STUDY)
        ledger.open(STUDY, {}, lease)
        for number in range(4):
            ledger.begin(trial(number))
            for step in range(300):
                ledger.report(f"key{number}", points(step))
            if number == 1:
                server.kill()
            ledger.settle(record(number, epoch=lease.epoch))
        with pytest.raises(LedgerUnreachable, match="run the same command again"):
            ledger.flush(0.3)
        assert lease.held()
        server.start()
        ledger.flush(PATIENCE)
        assert len(ledger.records(STUDY)) == 4
        for number in range(4):
            [run] = runs_of(ledger, number)
            assert curve(ledger, run) == [(step, 1.1 / (step + 1)) for step in range(300)]
        lease.release()
        ledger.close()
    finally:
        server.kill()
