"""Values of the environment are recorded by name, filled in where that is allowed, and redacted everywhere else."""

import html
import os
import time

import pytest

from muxfer.errors import BadInput
from muxfer.redaction import (
    one_line,
    printable,
    recordable,
    redact,
    redact_plain,
    remember_variables,
    with_values,
    with_variable_names,
)


def test_variable_names_are_filled_with_their_values_again(monkeypatch):
    monkeypatch.setenv("WORD", "long-word")
    monkeypatch.setenv("COUNT", "120")
    plain = {"model": {"arguments": {"a": "x-long-word", "b": [1, 120]}}, "training": {"steps": 120}}
    variables = {
        "model.arguments.a": "x-${oc.env:WORD}",
        "model.arguments.b.1": "${oc.decode:${oc.env:COUNT}}",
        "training.steps": "${oc.decode:${oc.env:COUNT}}",
    }
    recorded = with_variable_names(plain, variables)
    assert recorded["model"]["arguments"] == {"a": "x-${oc.env:WORD}", "b": [1, "${oc.decode:${oc.env:COUNT}}"]}
    variables_read = {}
    assert with_values(recorded, variables_read) == plain
    assert variables_read == variables


def test_ledger_cannot_read_a_secret_variable(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    request = {"model": {"arguments": {"a": "${oc.env:AWS_SECRET_ACCESS_KEY}"}}}
    with pytest.raises(BadInput, match="name says secret"):
        with_values(request, {})
    assert with_values(request, {}, strict=False) == request
    own = {"model.arguments.a": "${oc.env:AWS_SECRET_ACCESS_KEY}"}
    assert with_values(request, own)["model"]["arguments"]["a"] == "wJalrXUtnFEMI"


def test_unset_variable_is_refused_only_where_it_is_used(monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(BadInput, match=r"training.steps=.*not set"):
        with_values({"training": {"steps": "${oc.decode:${oc.env:NOT_SET}}"}}, {})
    unused = {"ledger": {"tracking_uri": "${oc.env:NOT_SET}"}, "description": "${oc.env:NOT_SET}"}
    assert with_values(unused, {}) == unused
    assert with_values({"training": {"steps": "${oc.decode:${oc.env:NOT_SET,7}}"}}, {}) == {"training": {"steps": 7}}


@pytest.mark.parametrize(
    "text", ["{}", "x{}y", '"{}"', "postgresql://u:{}@h/db", "https://s3/x?X-Amz-Signature={}&y=1", "key={}"]
)
def test_secret_is_redacted_in_every_text_and_form(monkeypatch, text):
    monkeypatch.setenv("MY_DATABASE_PASSWORD", "p@ss/w+rd'\"x")
    for form in ("p@ss/w+rd'\"x", "p%40ss%2Fw%2Brd%27%22x", "p@ss/w+rd'\\\"x"):
        assert "rd" not in redact(text.format(form))
        assert "rd" not in str(redact_plain({"error": [text.format(form)]}))


def test_user_and_password_of_a_uri_are_redacted(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "12345")
    assert redact("see http://me:word@host/x, 12345 bytes") == "see http://***@host/x, 12345 bytes"
    assert redact_plain({"path": "/a", "step": 3, "name": "b"}) == {"path": "/a", "step": 3, "name": "b"}


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("at postgresql://bob:hunter/22secret@db.lab/x.", "at postgresql://***@db.lab/x."),
        ("https://bob:p@sswort22@wiki", "https://***@wiki"),
        ("https://bob@corp.com:p@ss/wo?r#t22@wiki:80/x", "https://***@wiki:80/x"),
        ("https://token22@wiki/x?mail=me@home", "https://***@wiki/x?mail=me@home"),
        ("redis://:hun/ter22@cache", "redis://***@cache"),
        ("http://h:80/x?next=https://bob:hunter22@wiki", "http://h:80/x?next=https://***@wiki"),
        ("postgresql://db:5432/x?user=bob&password=hunter@22", "postgresql://db:5432/x?user=bob&password=***"),
        ("<td>http://h:80/x</td><td>me@home</td>", "<td>http://h:80/x</td><td>me@home</td>"),
        ("{'a': 'http://h:80/x', 'b': 'me@home'}", "{'a': 'http://h:80/x', 'b': 'me@home'}"),
        ("https://a/b?x=c@d and http://[::1]:5000/x", "https://a/b?x=c@d and http://[::1]:5000/x"),
        ("sqlite:////home/a:b@c/d.db, git@host:a/b.git", "sqlite:////home/a:b@c/d.db, git@host:a/b.git"),
    ],
)
def test_password_is_redacted_to_its_end_and_text_without_user_is_kept(text, redacted):
    assert redact(text) == redacted
    assert redact(redacted) == redacted


def test_redaction_takes_linear_time():
    began = time.process_time()
    for text in ("://a:" * 40_000, "://:" + "b" * 200_000, "://" + "a:" * 100_000, "://" + "@" * 200_000 + "/"):
        redact(f"me@home {text}")
    assert time.process_time() - began < 2


def test_configuration_with_a_secret_in_a_uri_is_redacted_or_refused():
    plain = {
        "description": "https://bob:hunter22@wiki?token=abcdef",
        "ledger": {"experiment": "a"},
        "model": {"arguments": {"url": "https://bob:${oc.env:WORD}@hub?token=${oc.env:WORD,x}", "n": [1, "x@y"]}},
    }
    assert recordable(plain) == plain | {"description": "https://***@wiki?token=***"}
    for url in ("https://bob:hunter22@hub", "https://bob:hunter22${oc.env:WORD}@hub", "https://hub?token=${oc.env:A}b"):
        with pytest.raises(BadInput, match=r"model.arguments.url=https://.* holds a secret in a URI.*oc.env:NAME"):
            recordable({"model": {"arguments": {"url": url}}})


def test_value_of_a_variable_is_shown_by_name_unless_it_is_a_place(monkeypatch):
    monkeypatch.setenv("QUIET_VALUE", "quiet-value")
    monkeypatch.setenv("SOME_PLACE", "/some/place")
    remember_variables({"description": "of ${oc.env:QUIET_VALUE}", "output_dir": "${oc.env:SOME_PLACE}"})
    assert redact("of quiet-value in /some/place") == "of ${oc.env:QUIET_VALUE} in /some/place"


def test_secret_is_redacted_in_a_page_however_it_is_escaped(monkeypatch):
    from markupsafe import escape

    monkeypatch.setenv("SOME_PASSWORD", """pa&ss"wo'rd<""")
    for text in (html.escape(os.environ["SOME_PASSWORD"]), str(escape(os.environ["SOME_PASSWORD"]))):
        assert redact(f"<td>{text}</td>") == "<td>***</td>"


def test_error_is_one_printable_line():
    assert one_line("a\nb\x1b[2J\u202ec" + "x" * 5000).startswith("a b\\x1b[2J\\u202ecxx")
    assert len(one_line("x" * 5000)) == 1000
    assert printable("a\nb\té\x00") == "a\nb\té\\x00"


def test_common_words_and_names_of_mappings_are_never_redacted(monkeypatch):
    for name, value in {"A_TOKEN": "finished", "B_TOKEN": "metric", "C_TOKEN": "swordfish"}.items():
        monkeypatch.setenv(name, value)
    answer = {"metric": 0.5, "outcome": "finished", "error": "no swordfish"}
    assert redact_plain(answer) == {"metric": 0.5, "outcome": "finished", "error": "no ***"}
