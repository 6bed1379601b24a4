"""The figures of a study, one module for each kind. `muxfer.report.figures.style` holds what they share."""

from muxfer.files import replace_file
from muxfer.report.figures.style import INK, LINE, PAPER, SOFT, brief, drawing, palette, pretty, save, svg_text, twin
from muxfer.report.figures.training import training_curves_figure
from muxfer.report.figures.u_curves import compare_figure, u_curves_figure

__all__ = [
    "INK",
    "LINE",
    "PAPER",
    "SOFT",
    "brief",
    "compare_figure",
    "drawing",
    "palette",
    "pretty",
    "replace_file",
    "save",
    "svg_text",
    "training_curves_figure",
    "twin",
    "u_curves_figure",
]
