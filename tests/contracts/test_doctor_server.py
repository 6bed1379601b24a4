"""The doctor's findings about a real MLflow server without authentication."""

import pytest

from muxfer.commands import doctor
from muxfer.study.resolve import resolve_without_data

pytestmark = pytest.mark.slow


def test_doctor_reports_version_and_an_open_server(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resolved = resolve_without_data("lr-width", [f"ledger.tracking_uri={server.uri}"])
    findings = list(doctor.ledger(resolved))
    assert [finding.state for finding in findings] == ["ok", "ok"], "on this machine alone: nobody else reaches it"
    assert "server is MLflow 3." in findings[1].message
    monkeypatch.setattr(doctor, "_loopback", lambda host: False)  # as if it stood elsewhere
    *_, last = doctor.ledger(resolved)
    assert (last.state, last.message) == ("fail", "anyone who reaches it may read and write")
    assert "basic-auth" in last.remedy
