"""What a page is made of, as data. Only the templates know how a block looks.

Texts in a block are plain text: the templates escape them. The one piece of markup is a drawing's SVG.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from muxfer.report.figures.style import INK, LINE, PAPER

LARGEST = 1.2
"""A drawing grows with the page up to this many times its own size. Its letters must not become headlines."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing, or a PNG in base64, with its caption and links (address, name) to its files beside the page."""

    kind: ClassVar = "figure"
    caption: str
    svg: str = ""
    png: str = ""
    links: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A cell of a table that stands out: `tone` is best, near or none."""

    text: str
    tone: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A header and rows of cells. The first cell of a row names it. `last_strong` puts the last row in bold."""

    kind: ClassVar = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str | Mark]]
    last_strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Names and their values."""

    kind: ClassVar = "pairs"
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """A paragraph; `soft` for a note below a figure or a table."""

    kind: ClassVar = "paragraph"
    text: str
    soft: bool = False


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Blocks that a reader folds and unfolds."""

    kind: ClassVar = "fold"
    summary: str
    blocks: "Sequence[Block]"
    unfolded: bool = False


Block = Figure | Table | Pairs | Paragraph | Fold


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page: `name` in the table of contents, `title` above the part itself."""

    name: str
    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The first words of a page. `tone` is transfers, drifts or anything else; `badge` is one word."""

    kicker: str
    title: str
    why: str
    tone: str
    badge: str


def note(*sentences: str) -> Paragraph:
    return Paragraph(text=" ".join(sentence for sentence in sentences if sentence), soft=True)


def drawn(files: Sequence[Path], prefix: str, caption: str) -> Figure:
    """The SVG among the files as a figure, with links to all of them. `prefix` must be unique within a page."""
    svg = next(file for file in files if file.suffix == ".svg").read_text()
    in_order = sorted(files, key=lambda file: (".png.svg.csv".find(file.suffix), len(file.name)))
    links = [(quote(file.name), _link_name(file, files)) for file in in_order]
    return Figure(svg=inline(svg, prefix), caption=caption, links=links)


def _link_name(file: Path, files: Sequence[Path]) -> str:
    """PNG, SVG or CSV. A second file of a kind has its own name."""
    first = min((other.name for other in files if other.suffix == file.suffix), key=len)
    return file.suffix[1:].upper() if file.name == first else file.name


def inline(svg: str, prefix: str) -> str:
    """Make a drawing part of a page: colours become CSS variables, ids get the prefix, metadata and style sheet go."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    width = re.search(r'(?<=<svg )[^>]*?width="([0-9.]+)pt"', svg)
    natural = f"style='max-width:{float(width[1]) * LARGEST:.0f}pt' " if width else ""
    svg = re.sub(r'(?<=<svg )([^>]*?)width="[^"]*"', rf"{natural}\1", svg, count=1)
    svg = re.sub(r'(?<=<svg )([^>]*?)height="[^"]*"', r"\1role='img'", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    fixed = {INK: "var(--ink)", LINE: "var(--line)", PAPER: "var(--paper)"}

    def variable(match: re.Match[str]) -> str:
        return match[1] + fixed.get(match[2], f"var(--c-{match[2][1:]},{match[2]})")

    return re.sub(r"((?:fill|stroke): )(#[0-9a-f]{6})\b", variable, svg)
