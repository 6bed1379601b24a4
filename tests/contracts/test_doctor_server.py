"""The doctor's findings about a real MLflow server without authentication."""

import pytest

from muxfer.commands import doctor
from muxfer.study.resolve import resolve_without_data

pytestmark = pytest.mark.slow


def test_doctor_reports_version_and_an_open_server(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = resolve_without_data("lr-width", [f"ledger.tracking_uri={server.uri}"])
    here = list(doctor.ledger(asked))
    assert [one.state for one in here] == ["ok", "ok"], "on this machine alone: nobody else reaches it"
    assert "server is MLflow 3." in here[1].told
    monkeypatch.setattr(doctor, "_loopback", lambda host: False)  # as if it stood elsewhere
    *_, last = doctor.ledger(asked)
    assert (last.state, last.told) == ("fail", "anyone who reaches it may read and write")
    assert "basic-auth" in last.mend
