"""What the pages for people show is run: Python blocks in their order, and the output that is quoted under them."""

import contextlib
import io
import re
import shlex

import click
import pytest

from muxfer import cli, errors, invoke
from muxfer.commands.model import model
from muxfer.config.hydra_compose import compose, compose_model
from muxfer.config.parse import parse, parse_part
from muxfer.study.resolve import resolve
from tests.typed import ROOT

DOCS = ROOT / "docs"
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


def typed(text):
    """The commands of a page, of indented lines and between backticks, each as its words after `muxfer`."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^    (?:\.venv/bin/)?muxfer (.+)$", joined, re.MULTILINE)
    quoted = re.findall(r"`(?:\.venv/bin/)?muxfer ([a-z][^`]*)`", joined)
    commands = [tuple(shlex.split(line, comments=True)) for line in (*lines, *quoted) if "NAME" not in line]
    return [words for words in commands if len(words) > 1 or words[0] not in NEEDS_A_NAME]


NEEDS_A_NAME = {verb for verb, command in cli.main.commands.items() if any(p.required for p in command.params)}
"""Commands that a sentence may name without their NAME: such a mention is no line to type."""
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
COMMANDS = [*dict.fromkeys(words for page in PAGES for words in typed(page.read_text()))]


def test_the_commands_of_the_pages_are_found():
    assert len(COMMANDS) > 30
    assert {words[0] for words in COMMANDS} <= set(cli.main.commands)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_of_the_pages_can_be_typed(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verb, *rest = words
    given = cli.main.commands[verb].make_context(verb, rest).params
    if (name := given.get("name")) is None:
        return
    if verb in ("model", "check"):
        parse_part("model", compose_model(name, given["overrides"]))
    else:
        parse(compose(name, given["overrides"]))


def test_the_readme_has_every_exit_code_and_every_command_that_leaves_with_6():
    (told,) = re.findall(r"^Exit codes: (.*?)\n\n", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    codes = {error.exit_code for error in errors.MuxferError.__subclasses__()} | {0, 1} | {*invoke.INTERRUPTED.values()}
    assert {int(code) for code in re.findall(r"\d+", told)} == codes
    helps = {verb: command.get_help(click.Context(command)) for verb, command in cli.main.commands.items()}
    assert {words.split()[0] for words in re.findall(r"`([^`]+)`", told)} == {
        verb for verb, shown in helps.items() if "exit 6" in shown.lower()
    }


def test_the_pictures_of_the_pages_are_those_of_the_home_folder(tmp_path, monkeypatch):
    from PIL import Image

    for label in "ab":
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for shade in range(10):
            picture = Image.new("RGB", (32, 32), (20 * shade,) * 3)
            picture.save(tmp_path / "pictures" / label / f"{shade}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    ((_, name, *overrides),) = [words for words in COMMANDS if "data.path=~/pictures" in words]
    asked = resolve(name, [*overrides, "output_dir=~/studies"])
    assert (asked.config.data.path, asked.folder) == (str(tmp_path / "pictures"), tmp_path / "studies")


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_what_a_page_links_to_exists(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", (DOCS / page).read_text()):
        assert (DOCS / target).exists(), target


def test_the_table_of_the_readme_has_every_command_and_links_to_pages_that_exist():
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `muxfer (\w+)[^|]*\|[^|]*\| \[\w+\]\(([^)]+)\) \|$", text, re.MULTILINE)
    assert {verb for verb, _ in rows} == set(cli.main.commands)
    assert all((ROOT / page).exists() for _, page in rows)


def test_the_tree_of_the_readme_has_every_package():
    tree = (ROOT / "README.md").read_text().partition("## The repository")[2].partition("\n## ")[0]
    packages = {file.parent.name for file in (ROOT / "muxfer").glob("*/__init__.py")}
    assert set(re.findall(r"^      (\w+)/ ", tree, re.MULTILINE)) == packages
    assert all((ROOT / name).exists() for name in re.findall(r"^    (\w+/)", tree, re.MULTILINE))


def test_the_index_lists_every_page_and_every_page_begins_with_its_question():
    index = (DOCS / "README.md").read_text()
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    assert set(re.findall(r"^\| \[[^]]+\]\(([^)]+)\) \|", index, re.MULTILINE)) == pages
    printed = {"benchmarks.md"}  # by its command, as a whole
    for page in pages - printed:
        assert (DOCS / page).read_text().splitlines()[2].startswith("This page answers: "), page
