"""muxfer tunes a small diffusion transformer and launches the large one with what it found."""

__version__ = "0.1.0"
