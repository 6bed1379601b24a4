"""The legend names what is drawn, and a single axis value shows its edge of stability."""

import csv
import xml.etree.ElementTree as ElementTree

from muxfer.report.figures.optimum import _draw, optimum_figure
from muxfer.report.figures.style import drawing
from muxfer.report.figures.u_curves import u_curves_figure
from tests.synthetic import judged, make_study, settled


def words_of(paths):
    (svg,) = (path for path in paths if path.suffix == ".svg")
    return [text for text in ElementTree.parse(svg).getroot().itertext() if text.strip()]


def with_divergences(diverged, exponents=range(-9, -3)):
    """One seed, best at 2^-7 everywhere. `diverged` holds (width, exponent)."""
    return [
        settled({"base_lr": 2.0**e, "width": width}, None if (width, e) in diverged else 0.3 + 0.04 * (e + 7) ** 2)
        for width in (32, 64, 128)
        for e in exponents
    ]


def stable_line(verdict):
    with drawing():
        (line,) = (line for line in _draw(verdict).axes[0].lines if line.get_linestyle() == ":")
    return line


def test_legend_says_95_percent_beside_an_interval(tmp_path):
    records = make_study(exponents=range(-8, -5), seeds=2)
    for paths in (
        optimum_figure(judged(records), tmp_path / "optimum"),
        u_curves_figure(records, judged(records), tmp_path / "u-curves", title="lr-width"),
    ):
        assert [word for word in words_of(paths) if word.startswith("fitted")] == ["fitted, 95 %"]


def test_divergence_below_a_finished_trial_is_recorded(tmp_path):
    optimum_figure(judged(with_divergences({(32, -5)})), tmp_path / "optimum")
    first = next(csv.DictReader((tmp_path / "optimum.csv").read_text().splitlines()))
    assert (float(first["stable"]), float(first["diverges"])) == (2**-6, 2**-5)


def test_largest_stable_value_of_a_single_width_has_a_marker():
    line = stable_line(judged(with_divergences({(64, -5)})))
    assert [y for y in line.get_ydata() if y == y] == [-6]
    assert line.get_marker() == "_"


def test_stable_line_breaks_at_widths_without_a_divergence(tmp_path):
    verdict = judged(with_divergences({(32, -4), (128, -4)}))
    assert [y == y for y in stable_line(verdict).get_ydata()] == [True, False, True]
    assert "largest stable" in words_of(optimum_figure(verdict, tmp_path / "optimum"))
    none = judged(with_divergences(set()))
    assert "largest stable" not in words_of(optimum_figure(none, tmp_path / "optimum"))
