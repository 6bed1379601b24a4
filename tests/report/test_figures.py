"""A figure's files: the same bytes every time, in the colours and on the scales that they should have."""

import re

import numpy as np
from PIL import Image

from muxfer.report.figures.u_curves import compare_figure, u_curves_figure
from tests.synthetic import judged, make_study


def test_figure_is_drawn_in_the_colour_of_each_series(tmp_path):
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


def test_figures_have_the_same_bytes_whatever_the_order_of_records(tmp_path):
    records = make_study()
    first = u_curves_figure(records, judged(records), tmp_path / "a", title="t")
    again = u_curves_figure(records[::-1], judged(records), tmp_path / "b", title="t")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_loss_far_above_the_others_does_not_set_the_scale(tmp_path):
    records = make_study(widths=(32,))
    svg = u_curves_figure(records, judged(records), tmp_path / "u", title="t")[1].read_text()
    ticks = [float(text) for text in re.findall(r">(\d+\.\d+)</text>", svg)]
    assert 0 < max(ticks) < 1
    assert "above the scale" in svg


def test_compared_studies_share_one_loss_axis(tmp_path):
    one, other = make_study(), make_study(shift=-1.0, seeds=1)
    panels = [("μP", one, judged(one)), ("standard", other, judged(other))]
    png, svg = compare_figure(panels, tmp_path / "compare")
    text = svg.read_text()
    assert png.stat().st_size > 10_000
    assert "μP" in text
    assert "standard" in text
    assert text.count(">validation loss") == 1


def test_axis_value_has_the_same_colour_in_every_panel(tmp_path):
    both, one = make_study(widths=(32, 64, 128)), make_study(widths=(128,))
    alone = [("a", both, judged(both)), ("b", one, judged(one))]
    svg = compare_figure(alone, tmp_path / "compare")[1].read_text()
    assert len(set(re.findall(r"stroke: (#[0-9a-f]{6}); stroke-width: 1.6", svg))) == 3
