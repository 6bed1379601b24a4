"""Draws a page from its data by the templates in `templates/`.

A page fetches nothing and runs no script, so it can be mailed, archived, or served under the strictest policy. Names
from a ledger are text here, never markup: every value is escaped but the SVG of a drawing.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muxfer.redaction import redact
from muxfer.report.blocks import Figure, Section
from muxfer.report.figures.style import twin

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def html(template: str, *, title: str, sections: Sequence[Section], **values: Any) -> str:
    """The whole page as text, without any secret that this process knows of."""
    figures = [block for section in sections for block in section.blocks if isinstance(block, Figure)]
    colors = sorted({color for one in figures for color in re.findall(r"var\(--c-([0-9a-f]{6})", one.svg)})
    colors_and_twins = [(color, twin(f"#{color}")) for color in colors]
    page = _environment().get_template(template)
    return redact(page.render(title=title, sections=sections, colors=colors_and_twins, **values))


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, **blocks)
    environment.filters["prose"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")  # one line holds both
    return environment
