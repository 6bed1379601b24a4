"""The lines below a table promise no interval that is missing, and explain an empty column."""

import re

import pytest

from muxfer.analysis.transferability import judge
from muxfer.report.text import table_text
from tests.synthetic import judged, make_study, settled
from tests.typed import ROOT

README = ROOT / "README.md"


def labelled_lines(records):
    """The heading of the optima, and each labelled line by its label."""
    lines = table_text(records, judged(records)).splitlines()
    assert max(map(len, lines)) <= 80
    (header,) = (line for line in lines if line.startswith("width "))
    return header, dict(line.split(": ", 1) for line in lines if ": " in line)


def quoted_records(block):
    """The records behind a table that `table_text` printed, with losses of four digits."""
    for row in block.split("\n\n")[1].splitlines()[1:]:
        hp, *cells = row.split()
        for width, cell in zip((32, 64, 128), cells, strict=True):
            outcome, _, step = cell.partition("@")
            setting = {"width": width, "base_lr": 2.0 ** int(hp.removeprefix("2^"))}
            yield settled(setting, None if step else float(outcome.rstrip("*")), step=int(step or 180))


def test_readme_study_is_what_table_text_prints():
    text = README.read_text()
    start = text.index("    validation loss; * best of its column")
    block = "\n".join(line[4:] for line in text[start : text.index("\nRows from", start)].splitlines())
    records = list(quoted_records(block))
    assert len(records) == 21
    ours, quoted = table_text(records, judge(records, axis="width", hp="base_lr")), block.rstrip()
    noise = re.compile(r"(?<=varies by )[\d.]+")  # from losses of four digits, so its last digit may differ
    assert noise.sub("", ours) == noise.sub("", quoted)
    assert float(noise.search(ours)[0]) == pytest.approx(float(noise.search(quoted)[0]), abs=0.011)


def test_one_seed_has_no_interval_and_the_noise_line_says_why():
    header, lines = labelled_lines(make_study(exponents=range(-8, -6), seeds=1))
    assert "95 %" not in header
    assert lines["noise"] == "one seed does not tell it, hence no intervals; add seeds (search.seeds=2)"


def test_two_seeds_have_intervals():
    header, lines = labelled_lines(make_study(exponents=range(-8, -5), seeds=2))
    assert header.count(", 95 %") == 2
    assert lines["noise"].startswith("one trial's validation loss varies by")


def test_seeds_tell_the_noise_where_there_is_no_curve():
    header, lines = labelled_lines(make_study(exponents=range(-8, -6), seeds=2))
    assert "fitted, 95 %" not in header
    assert lines["noise"].startswith("one trial's validation loss varies by")


def test_empty_optimum_is_explained():
    """Two seeds, and the lowest loss at the end of the grid: no curve has a minimum inside."""
    _, lines = labelled_lines(make_study(exponents=range(-9, -6), shift=2.0, seeds=2))
    assert lines["fitted"] == "empty where no curve surely has its minimum among the points"
