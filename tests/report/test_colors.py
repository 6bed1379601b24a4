"""Every text and line of a page can be read, on light and on dark, with every colour vision."""

import re

import numpy as np
import pytest

from muxfer.report.figures.style import INK, MARKERS, PAPER, SOFT, palette, twin
from muxfer.report.html import TEMPLATES

LIGHT, DARK = (TEMPLATES / "page.css").read_text().split("@media screen and (prefers-color-scheme:dark)")


SEEN = {
    "all": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
"""Linear sRGB as people of each colour vision see it: Machado, Oliveira and Fernandes (2009), at full severity."""


def luminance(color, seen="all"):
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(np.clip(SEEN[seen] @ linear, 0, 1) @ [0.2126, 0.7152, 0.0722])


def lightness(color, seen):
    """L* of CIELAB, 0 to 100."""
    return 116 * np.cbrt(luminance(color, seen)) - 16


def contrast(one, other):
    """As WCAG 2 defines it: 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def variables(style):
    return dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", style))


@pytest.mark.parametrize("style", [LIGHT, DARK], ids=["light", "dark"])
def test_text_has_enough_contrast_with_its_background(style):
    found = variables(style)
    grounds = {"ink": ("paper", "tint", "near"), "soft": ("paper", "tint", "near"), "link": ("paper",)}
    for text, places in {**grounds, "good": ("paper",), "bad": ("paper",)}.items():
        for ground in places:
            assert contrast(found[text], found[ground]) >= 4.5, (text, ground)


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_neighbouring_lines_differ_in_lightness_for_every_colour_vision(seen, dark):
    paper = variables(DARK if dark else LIGHT)["paper"]
    for count in range(2, 8):
        colors = [twin(color) if dark else color for color in palette(count)]
        steps = np.diff([lightness(color, seen) for color in colors])
        assert len(set(np.sign(steps))) == 1
        assert np.abs(steps).min() >= 5
        assert min(contrast(color, paper) for color in colors) >= 3
    assert len(set(MARKERS)) == 10


def test_dark_twin_keeps_the_contrast_of_its_colour():
    assert contrast(twin(PAPER), variables(DARK)["paper"]) < 1.1
    assert contrast(twin(INK), variables(DARK)["ink"]) < 1.2
    for color in ("#3f8f6b", "#3b6fb6", "#c4552d", "#a4679f", "#8a8f98", SOFT):
        assert contrast(twin(color), variables(DARK)["paper"]) >= 3
