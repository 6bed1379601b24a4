"""What all figures share: inks, a ramp of colours that colour-blind people can tell apart, and how files are written.

matplotlib is imported when something is drawn, through its object interface: no window, no global figure. A colour is
chosen on light paper; the page shows its `twin` on dark paper.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from muxfer.files import replace_file
from muxfer.report.format import brief_value

INK, LINE, PAPER = "#1c1e22", "#d5d8dc", "#fefefe"
"""Colours of text, grid lines and background. The page replaces them by its own."""
SOFT = "#5d626b"
"""Colour of references and notes."""
MARKERS = "osD^vPXph*"

_TO_LMS = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip
"""Linear sRGB to cones, and their cube roots to OKLab (Ottosson 2020): even lightness, and hue independent of it."""
_MIRROR = 1.19
"""Sum of a colour's lightness and its twin's: paper (0.99) and the page's dark background (0.20) face each other."""


def palette(count: int) -> list[str]:
    """A sequential colour for each of `count` values. The last one stands out the most. Lightness
    falls by even steps for every kind of colour vision: half of plasma's steps vanish for protanopes. The light end of
    viridis is cut where the contrast with the background would fall below 3:1.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    viridis = colormaps["viridis"]
    places = [1.0] if count == 1 else [i / (count - 1) for i in range(count)]
    return [to_hex(viridis(0.58 * (1 - place))) for place in places]


def twin(color: str) -> str:
    """The colour (#rrggbb) for dark paper: the same hue, as far from the dark background as from the light one."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lightness, *chroma = _TO_LAB @ np.cbrt(_TO_LMS @ linear)
    for kept in np.linspace(1, 0, 41):  # as colourful as a screen can show it
        lab = np.array([_MIRROR - lightness, *(kept * np.array(chroma))])
        linear = np.linalg.solve(_TO_LMS, np.linalg.solve(_TO_LAB, lab) ** 3)
        if linear.min() >= 0 and linear.max() <= 1:
            break
    linear = np.clip(linear, 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * float(part)):02x}" for part in rgb)


def new_figure(width: float, height: float, **spacing: Any) -> Any:
    """An empty figure of this size in inches. `spacing` is that of matplotlib's constrained layout."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(**spacing))


def draw_files(draw: Callable[[], Any], path_stem: Path, table: str | None = None) -> list[Path]:
    """Draw a figure and write it as STEM.png and STEM.svg, with STEM.csv where there is a table."""
    with drawing():
        paths = save(draw(), path_stem)
    return paths if table is None else [*paths, replace_file(Path(f"{path_stem}.csv"), table.encode())]


def grid_behind(axes: Any) -> None:
    """Horizontal grid lines behind everything that is drawn."""
    axes.grid(axis="y")
    axes.set_axisbelow(True)


@contextmanager
def drawing() -> Iterator[None]:
    import matplotlib

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    absent = ("axes.spines.top", "axes.spines.right", "legend.frameon", "text.parse_math")  # a name may be "$x^"
    style: dict[str, Any] = {**dict.fromkeys(inked, INK), **dict.fromkeys(absent, False)}
    style |= {"axes.facecolor": PAPER, "figure.facecolor": PAPER, "grid.color": LINE, "grid.linewidth": 0.6}
    style |= {"axes.linewidth": 0.8, "axes.titlesize": 11, "axes.titlelocation": "left", "font.size": 10}
    style |= {"svg.fonttype": "none", "svg.hashsalt": "muxfer"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message="constrained_layout not applied", category=UserWarning)
        yield


def save(figure: Any, path_stem: Path) -> list[Path]:
    """STEM.png and STEM.svg, the same bytes for the same drawing."""
    from matplotlib.ticker import LogFormatterMathtext, NullFormatter

    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_minor_formatter(), LogFormatterMathtext):
            axis.set_minor_formatter(NullFormatter())  # its TeX would be printed as it is: text is never parsed
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    figure.set_layout_engine("none")  # laid out by now: doing it again for the SVG would cost as much as drawing it
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    drawn = {"png": png, "svg": svg}
    return [replace_file(Path(f"{path_stem}.{kind}"), out.getvalue()) for kind, out in drawn.items()]


def num_columns(num_panels: int) -> int:
    """At most three panels a row. Four panels make two rows of two."""
    return 2 if num_panels == 4 else min(num_panels, 3)


def brief(name: str, length: int = 40) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def pretty(value: float) -> str:
    """2⁻⁷ for 2^-7."""
    text = brief_value(value)
    return f"2{text[2:].translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}" if text.startswith("2^") else text
