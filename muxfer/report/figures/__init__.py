"""The figures of a study, one module for each kind. `muxfer.report.figures.style` holds what they share."""
