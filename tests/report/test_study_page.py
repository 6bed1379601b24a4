"""What a person is shown must be all there, must be only text, and must come back from its files."""

import csv
import html.parser
import io
import json
import os
import re
import shutil
import subprocess
import sys
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from muxfer.analysis.cells import settings_at_largest
from muxfer.analysis.transferability import judge
from muxfer.errors import BadInput
from muxfer.report.figures import INK, PAPER, SOFT, compare_figure, palette, twin, u_curves_figure
from muxfer.report.figures.style import MARKERS
from muxfer.report.format import csv_text
from muxfer.report.html import DARK, STYLE
from muxfer.report.study_page import write
from muxfer.report.target_page import target_section, write_target
from muxfer.report.text import table_text
from muxfer.trial import Outcome, Record
from tests.synthetic import check_of, judged, make_search, make_study, points_of

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


class Structure(html.parser.HTMLParser):
    """Tags, attributes and text of a page, as a browser would have them; void tags are the ones of HTML."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_table_shows_every_loss_marks_the_best_and_fits_a_terminal():
    records = make_study()
    verdict = judged(records)
    text = table_text(records, verdict)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["base_lr", "width", "32", "width", "64", "width", "128"]
    assert [line.split()[0] for line in lines[3:9]] == [f"2^{e}" for e in range(-9, -3)]
    assert text.count("*") == 1 + 3
    assert "diverged@17" in text
    assert "31.5" in text
    assert lines[10].split("  ")[0] == "width"
    assert [line.split()[:2] for line in lines[11:14]] == [["32", "2^-7"], ["64", "2^-7"], ["128", "2^-7"]]
    assert "verdict: transfers" in text


def test_the_table_tells_each_interval_and_how_near_the_edge_is():
    records = make_study()
    verdict = judged(records)
    text = " ".join(table_text(records, verdict).split())
    for optimum in verdict.optimum.values():
        assert f"2^{np.log2(optimum.low):.2f} to 2^{np.log2(optimum.high):.2f}" in text
    drift = verdict.drift_per_doubling
    assert f"drift: {drift['value']:+.2f} (95 %: {drift['low']:+.2f} to {drift['high']:+.2f})" in text
    above = np.log2(2.0**-5 / verdict.optimum[128].fitted)
    assert f"the optimum is {above:.1f} doublings below the largest stable base_lr, 2^-5" in text
    assert f"from: width {verdict.from_:g} on" in text


def test_the_table_of_optima_fits_a_terminal_with_numbers_of_any_length():
    records = make_study(widths=(16384, 32768, 65536))
    for record in records:
        record.setting["base_lr"] *= 0.0123456789
    assert max(map(len, table_text(records, judged(records)).splitlines())) <= 80


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_a_search_is_shown_by_its_best_settings_and_every_line_of_it(tmp_path):
    records = make_search()
    best = min((r for r in records if r.metric), key=lambda r: r.metric)
    text = table_text(records, judged(records))
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[2].startswith(f"{best.metric:<12.4g}")
    importances = {"base_lr": 0.7, "gradient_clip": 0.25, "warmup_steps": 0.05}
    context = {"importances": importances, "points": points_of(records)}
    page = write("mmdit-random", tmp_path, records, judged(records), context=context)
    rows = rows_of(tmp_path / "parallel.csv")
    assert [row["metric"] == "" for row in rows].count(True) == 4
    assert float(rows[0]["metric"]) == best.metric
    shares = rows_of(tmp_path / "importances.csv")
    assert {row["setting"]: float(row["importance"]) for row in shares} == importances
    svg = (tmp_path / "parallel.svg").read_text()
    for name in ("base_lr", "gradient_clip", "warmup_steps", "sampler", "early", "no loss"):
        assert f">{name}</text>" in svg
    assert "<h2>What the search tried</h2>" in page.read_text()
    assert "the best of 24 settings" in text


def test_finalists_are_not_compared_with_what_trained_shorter():
    records = make_search()
    long = Record(
        key="f", setting={**records[1].setting, "steps": 99}, replicate=0, outcome=Outcome.FINISHED, metric=0.1, step=99
    )
    assert [one.metric for one in settings_at_largest([*records, long], "width")] == [
        one.metric for one in settings_at_largest(records, "width")
    ]


def test_a_table_of_many_columns_shortens_what_diverged():
    records = make_study(widths=(16, 32, 64, 128, 256, 512, 1024))
    lines = table_text(records, judged(records)).splitlines()
    assert max(map(len, lines)) <= 80
    assert "d@17" in "\n".join(lines)


@pytest.mark.parametrize("outcome", [Outcome.DIVERGED, Outcome.FAILED])
def test_a_study_without_one_finite_loss_is_still_shown(outcome, tmp_path):
    records = [
        Record(key=f"k{w}", setting={"base_lr": 0.1, "width": w}, replicate=0, outcome=outcome, metric=None, step=3)
        for w in (32, 64)
    ]
    assert str(outcome) in table_text(records, judged(records))
    assert "Cannot tell" in write("broken", tmp_path, records, judged(records)).read_text()


def test_an_empty_study_is_still_shown(tmp_path):
    verdict = judged([])
    assert "no trial has settled" in table_text([], verdict)
    assert "No trial has settled" in write("empty", tmp_path, [], verdict).read_text()


def test_figure_files_exist_and_are_drawn_in_each_series_colour(tmp_path):
    records = make_study()
    paths = u_curves_figure(records, judged(records), tmp_path / "lr-width-1.5", title="lr-width")
    assert [path.name[len("lr-width-1.5") :] for path in paths] == [".png", ".svg", ".csv", "-bands.csv"]
    with Image.open(paths[0]) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert image.size[0] > 1000
    colours = set(re.findall(r"stroke: (#[0-9a-f]{6})", paths[1].read_text()))
    assert len(colours) >= 3
    for colour in colours:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - wanted).max(axis=1) <= 3).sum() > 20, colour
    assert not list(tmp_path.glob(".*"))


def test_figures_are_the_same_bytes_every_time(tmp_path):
    records = make_study()
    first = u_curves_figure(records, judged(records), tmp_path / "a", title="t")
    again = u_curves_figure(records[::-1], judged(records), tmp_path / "b", title="t")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_a_right_end_far_above_does_not_flatten_the_basin(tmp_path):
    records = make_study(widths=(32,))
    svg = u_curves_figure(records, judged(records), tmp_path / "u", title="t")[1].read_text()
    ticks = [float(text) for text in re.findall(r">(\d+\.\d+)</text>", svg)]
    assert 0 < max(ticks) < 1
    assert "above the scale" in svg


def test_studies_are_compared_over_one_loss_axis(tmp_path):
    one, other = make_study(), make_study(shift=-1.0, seeds=1)
    panels = [("μP", one, judged(one)), ("standard", other, judged(other))]
    png, svg = compare_figure(panels, tmp_path / "compare")
    text = svg.read_text()
    assert png.stat().st_size > 10_000
    assert "μP" in text
    assert "standard" in text
    assert text.count(">validation loss") == 1


def test_an_axis_value_has_one_colour_in_every_panel(tmp_path):
    both, one = make_study(widths=(32, 64, 128)), make_study(widths=(128,))
    alone = [("a", both, judged(both)), ("b", one, judged(one))]
    svg = compare_figure(alone, tmp_path / "compare")[1].read_text()
    assert len(set(re.findall(r"stroke: (#[0-9a-f]{6}); stroke-width: 1.6", svg))) == 3


def test_the_csv_gives_every_trial_back_exactly():
    records = make_study()
    rows = list(csv.DictReader(io.StringIO(csv_text(records))))
    read = [
        Record(
            key="",
            setting={"base_lr": float(row["base_lr"]), "width": int(row["width"])},
            replicate=int(row["replicate"]),
            outcome=Outcome(row["outcome"]),
            metric=float(row["metric"]) if row["metric"] else None,
            step=int(row["step"]),
        )
        for row in rows
    ]
    assert len(read) == len(records)
    assert judged(read) == judged(records)


def test_the_page_shows_every_trial_and_every_part(page):
    words = " ".join(Structure(page.read_text()).words)
    for record in make_study():
        assert record.key in words
    for wanted in ("transfers along width", "muxfer transfer lr-width", "base_lr 2^-7", "diverged@17", "61.0 s", "2.9"):
        assert wanted in words
    headline, figure = words.index("transfers along width"), words.index("Validation loss by base_lr")
    assert headline < words.index("muxfer transfer lr-width") < figure
    for name in ("u-curves.png", "u-curves.svg", "u-curves.csv"):
        assert (page.parent / name).stat().st_size > 500


def test_the_page_asks_for_nothing_and_runs_nothing(page):
    structure = Structure(page.read_text())
    assert structure.open == []
    assert not {"script", "link", "iframe", "object", "base"} & set(structure.tags)
    assert not [name for name, _ in structure.attributes if name.startswith("on")]
    for name, value in structure.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:")) or (page.parent / unquote(value)).is_file(), value
    assert "url(http" not in page.read_text()
    assert "@import" not in page.read_text()


def test_the_drawings_take_their_colours_from_the_page_and_both_schemes_define_them(page):
    text = page.read_text()
    assert "prefers-color-scheme:dark" in text
    used = set(re.findall(r"var\((--c-[0-9a-f]{6})", text))
    light, dark = text.split("@media screen and (prefers-color-scheme:dark)")
    assert len(used) >= 3
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark
    assert not re.findall(r"(?:fill|stroke): #", text)


def test_ids_are_unique_within_the_page(page):
    ids = [value for name, value in Structure(page.read_text()).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_hostile_names_are_text(tmp_path):
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
    section = Structure(target_section(HOSTILE, target, records, verdict, lineage={HOSTILE: HOSTILE}))
    assert "script" not in section.tags


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A folder as `muxfer check` leaves it."""
    folder = tmp_path_factory.mktemp("check")
    (folder / "mup-width.json").write_text(json.dumps(check_of(folder)))
    return folder


def page_with(check, home):
    records = make_study(widths=(32, 64), seeds=1)
    return write("lr-width", home, records, judged(records), context={"check": check}).read_text()


def test_a_coordinate_check_is_shown_with_the_figure_beside_it(checked, tmp_path):
    moved = shutil.copytree(checked, tmp_path / "moved")
    assert "under mup does not keep its coordinates at width 32, 64, 128, 256" in (
        page := page_with(moved, tmp_path / "home")
    )
    assert "coordinate-check.svg" in page
    for suffix in (".png", ".svg"):
        copied = tmp_path / "home" / f"coordinate-check{suffix}"
        assert copied.read_bytes() == (checked / f"mup-width{suffix}").read_bytes()


@pytest.mark.parametrize("plant", ["the file names it", "the figure is a link"])
def test_no_file_from_outside_a_check_comes_beside_the_page_which_goes_to_the_ledger(checked, tmp_path, plant):
    folder, private = shutil.copytree(checked, tmp_path / "check"), [tmp_path / "key.png", tmp_path / "key.svg"]
    file = folder / "mup-width.json"
    for secret in private:
        secret.write_text("<svg PRIVATE KEY")
        if plant == "the figure is a link":
            file.with_suffix(secret.suffix).unlink()
            file.with_suffix(secret.suffix).symlink_to(secret)
    named = private[0] if plant == "the file names it" else file.with_suffix(".png")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"figure": str(named)}))
    assert "PRIVATE" not in page_with(folder, tmp_path / "home")
    files = {path: path.read_bytes() for path in (tmp_path / "home").iterdir()}
    assert not [path for path, content in files.items() if b"PRIVATE" in content]


WRONG_CHECKS = {
    "{}": b"{}",
    "no JSON": b"\xff",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "half a character": {"model": "\ud800"},
    "a text for the sizes": {"sizes": "32"},
    "lines without slopes": {"modules": [{}]},
    "a number for the control": {"control": 5},
    "a control without a verdict": {"control": {"parametrization": "standard"}},
}


@pytest.mark.parametrize("wrong", WRONG_CHECKS)
def test_a_page_is_written_without_a_check_of_another_form(checked, tmp_path, caplog, wrong):
    folder, content = shutil.copytree(checked, tmp_path / "check"), WRONG_CHECKS[wrong]
    file = folder / "mup-width.json"
    whole = content if isinstance(content, bytes) else json.dumps(json.loads(file.read_text()) | content).encode()
    file.write_bytes(whole)
    assert "Coordinate check" not in page_with(folder, tmp_path / "home")
    assert "muxfer check makes it again" in caplog.text


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/nothing")])
def test_a_page_is_written_whatever_stands_in_the_place_of_a_check(tmp_path, make):
    (tmp_path / "check").mkdir()
    make(tmp_path / "check" / "mup-width.json")
    assert "Coordinate check" not in page_with(tmp_path / "check", tmp_path / "home")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("secret")])
def test_a_targets_page_leaves_out_what_is_no_file_of_its_own(tmp_path, make):
    (tmp_path / "secret").write_text("<svg PRIVATE")
    records, files = make_study(), [tmp_path / "samples.png", tmp_path / "band.svg"]
    for file in files:
        make(file)
    page = write_target(
        "lr-width", tmp_path, target_record(), records, judged(records), samples=files[0], band=files[1]
    )
    assert re.findall(r"<h2>([^<]*)", page.read_text()) == ["Against its proxies"]


def target_record(metric=0.21):
    outcome = Outcome.DIVERGED if metric is None else Outcome.FINISHED
    setting = {"base_lr": 2.0**-7, "width": 256}
    return Record(key="t", setting=setting, replicate=0, outcome=outcome, metric=metric, step=900, kind="target")


def test_the_targets_page_sets_it_against_each_proxy_and_holds_its_samples(tmp_path):
    picture = tmp_path / "samples.png"
    Image.new("L", (8, 8), 200).save(picture)
    records = make_study()
    page = write_target(
        "lr-width", tmp_path, target_record(), records, judged(records), samples=picture, lineage={"plan": "9f9f"}
    )
    picture.unlink()
    structure = Structure(page.read_text())
    words = " ".join(structure.words)
    assert "better than every proxy" in words
    assert words.count("proxy, width") == 3
    assert "9f9f" in words
    assert any(value.startswith("data:image/png;base64,") for name, value in structure.attributes if name == "src")


@pytest.mark.parametrize(("metric", "said"), [(None, "diverged at step 900"), (0.9, "reached validation loss 0.9000")])
def test_a_target_that_is_not_better_is_not_called_better(metric, said):
    records = make_study()
    section = target_section("lr-width", target_record(metric), records, judged(records))
    assert said in section
    assert "better" not in section


def test_a_failed_write_leaves_the_former_page(tmp_path, monkeypatch):
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


SEEN = {
    "all": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
"""Linear sRGB as it is seen, after Machado, Oliveira and Fernandes (2009), at full severity."""


def luminance(color, seen="all"):
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(np.clip(SEEN[seen] @ linear, 0, 1) @ [0.2126, 0.7152, 0.0722])


def lightness(color, seen):
    """L* of CIELAB, 0 to 100."""
    return 116 * np.cbrt(luminance(color, seen)) - 16


def contrast(one, other):
    """As WCAG 2 has it: 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def variables(style):
    return dict(re.findall(r"--([a-z]+):(#[0-9a-f]{6})", style))


@pytest.mark.parametrize("style", [STYLE, DARK], ids=["light", "dark"])
def test_every_text_stands_out_from_what_it_stands_on(style):
    found = variables(style)
    grounds = {"ink": ("paper", "tint", "near"), "soft": ("paper", "tint", "near"), "link": ("paper",)}
    for text, places in {**grounds, "good": ("paper",), "bad": ("paper",)}.items():
        for ground in places:
            assert contrast(found[text], found[ground]) >= 4.5, (text, ground)


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_neighbouring_lines_differ_in_lightness_for_every_kind_of_colour_vision(seen, dark):
    paper = variables(DARK if dark else STYLE)["paper"]
    for count in range(2, 8):
        colors = [pair[dark] for pair in palette(count)]
        steps = np.diff([lightness(color, seen) for color in colors])
        assert len(set(np.sign(steps))) == 1
        assert np.abs(steps).min() >= 5
        assert min(contrast(color, paper) for color in colors) >= 3
    assert len(set(MARKERS)) == 10


def test_a_colour_and_its_twin_are_equally_far_from_their_papers():
    assert contrast(twin(PAPER), variables(DARK)["paper"]) < 1.1
    assert contrast(twin(INK), variables(DARK)["ink"]) < 1.2
    for color in ("#3f8f6b", "#3b6fb6", "#c4552d", "#a4679f", "#8a8f98", SOFT):
        assert contrast(twin(color), variables(DARK)["paper"]) >= 3


def test_importing_the_report_loads_nothing_heavy():
    heavy = ("matplotlib", "pandas", "torch")
    code = f"import sys, muxfer.report; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
