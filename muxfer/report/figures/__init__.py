"""The figures of a study, one module for each kind. `muxfer.report.figures.style` holds what they share."""

from muxfer.files import replace_file

__all__ = ["replace_file"]
