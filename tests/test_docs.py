"""What the pages for people show is run: Python blocks in their order, and the output that is quoted under them."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from muxfer.describe import model

DOCS = Path(__file__).parents[1] / "docs"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    return FENCE.findall((DOCS / page).read_text())


def test_every_block_of_the_page_for_own_trainers_runs_and_prints_what_is_under_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks("own-trainer.md")
    names = {"__name__": "own_trainer"}
    quoted = 0
    for (kind, code), (next_kind, expected) in zip(found, [*found[1:], ("", "")], strict=True):
        if kind != "python":
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, "own-trainer.md", "exec"), names)
        if next_kind == "text":
            assert out.getvalue() == expected, code
            quoted += 1
    assert quoted == sum(kind == "text" for kind, _ in found) > 3


def test_the_quoted_table_is_the_command_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    ((_, quoted),) = [block for block in blocks("own-trainer.md") if block[0] == "console"]
    command, _, expected = quoted.partition("\n")
    program, verb, name, *overrides = shlex.split(command.removeprefix("$ "))
    assert (program, verb) == ("muxfer", "model")
    assert model(name, overrides).text == expected.rstrip("\n")


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_what_a_page_links_to_exists(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", (DOCS / page).read_text()):
        assert (DOCS / target).exists(), target
