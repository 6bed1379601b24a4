"""The study's page shows everything, fetches nothing, and takes every name as text."""

import re
from urllib.parse import unquote

import pytest

from muxfer.analysis.transferability import judge
from muxfer.errors import BadInput
from muxfer.report.html import TEMPLATES
from muxfer.report.study_page import write
from muxfer.report.target_page import write_target
from tests.report.page_structure import Structure
from tests.synthetic import judged, make_study, points_of

HOSTILE = "<script>alert('x')</script>--> & \"$x^\" {} #aabbcc 幅"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "new folder"
    records = make_study()
    context = {
        "points": points_of(records),
        "wall_seconds": 61.0,
        "environment": {"torch": "2.9"},
        "command": "muxfer sweep lr-width",
    }
    return write("lr-width", folder, records, judged(records), context=context)


def test_page_holds_every_trial_and_every_section(page):
    words = " ".join(Structure(page.read_text()).words)
    for record in make_study():
        assert record.key in words
    for wanted in ("transfers along width", "muxfer transfer lr-width", "base_lr 2^-7", "diverged@17", "61.0 s", "2.9"):
        assert wanted in words
    headline, figure = words.index("transfers along width"), words.index("Validation loss by base_lr")
    assert headline < words.index("muxfer transfer lr-width") < figure
    for name in ("u-curves.png", "u-curves.svg", "u-curves.csv"):
        assert (page.parent / name).stat().st_size > 500


def test_page_fetches_nothing_and_runs_no_script(page):
    structure = Structure(page.read_text())
    assert structure.open == []
    assert not {"script", "link", "iframe", "object", "base"} & set(structure.tags)
    assert not [name for name, _ in structure.attributes if name.startswith("on")]
    for name, value in structure.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:")) or (page.parent / unquote(value)).is_file(), value
    assert "url(http" not in page.read_text()
    assert "@import" not in page.read_text()


def test_light_and_dark_scheme_define_every_colour_of_the_drawings(page):
    text = page.read_text()
    assert "prefers-color-scheme:dark" in text
    used = set(re.findall(r"var\((--c-[0-9a-f]{6})", text))
    light, _, dark = text.rpartition("@media screen and (prefers-color-scheme:dark)")
    assert len(used) >= 3
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark
    assert not re.findall(r"(?:fill|stroke): #", text)


def test_ids_are_unique_within_the_page(page):
    ids = [value for name, value in Structure(page.read_text()).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_hostile_names_are_escaped(tmp_path):
    axis = f"{HOSTILE}2"
    records = make_study(widths=(32, 64), seeds=1)
    for index, r in enumerate(records):
        setting = {HOSTILE: r.setting["base_lr"], axis: r.setting["width"], "note": HOSTILE}
        object.__setattr__(r, "setting", setting)
        object.__setattr__(r, "key", f"{HOSTILE}{index}")
        object.__setattr__(r, "error", HOSTILE)
    verdict = judge(records, axis=axis, hp=HOSTILE)
    line = {"name": HOSTILE, "measure": HOSTILE, "slope": 1.0, "expected": 0.0, "pass": False}
    named = dict.fromkeys(("model", "verdict", "parametrization", "axis", "figure"), HOSTILE)
    context = {
        "description": HOSTILE,
        "command": HOSTILE,
        "environment": {HOSTILE: HOSTILE},
        "points": points_of(records),
        "importances": {HOSTILE: 1.0},
        "check": {**named, "sizes": [32, 64], "steps": 10, "modules": [line], "control": named},
    }
    page = write(HOSTILE, tmp_path, records, verdict, context=context)
    structure = Structure(page.read_text())
    assert structure.open == []
    assert "script" not in structure.tags
    assert any(HOSTILE in word for word in structure.words)
    target = records[0]
    object.__setattr__(target, "kind", "target")
    structure = Structure(
        write_target(HOSTILE, tmp_path, target, records, verdict, lineage={HOSTILE: HOSTILE}).read_text()
    )
    assert structure.open == []
    assert "script" not in structure.tags


def test_failed_write_keeps_the_previous_page(tmp_path, monkeypatch):
    records = make_study(widths=(32, 64), seeds=1)
    page = write("lr-width", tmp_path, records, judged(records))
    before = page.read_bytes()

    def full(self, content):
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(BadInput, match="no space"):
        write("another", tmp_path, records, judged(records))
    assert page.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_only_drawings_are_exempt_from_escaping():
    text = "".join(file.read_text() for file in TEMPLATES.glob("*.html"))
    assert re.findall(r"\{\{[^}]*\|\s*safe[^}]*\}\}", text) == ["{{ block.svg|safe }}"]
    assert "autoescape" not in text
    assert "Markup" not in text


def test_secrets_are_redacted_on_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("STORE_PASSWORD", "correct-horse")
    records = make_study(widths=(32, 64), seeds=1)
    context = {"command": "muxfer sweep --password correct-horse"}
    assert "correct-horse" not in write("lr-width", tmp_path, records, judged(records), context=context).read_text()
