"""How small may the proxy be, as a picture: the regret of each proxy's choice at the largest task, over its cost.

A bar is the regret's 95 % interval. The staircase is the upper bound along the front: no proxy to the left of a step
gets below it. Proxies without a known bound stand in the band above, sorted by the reason. The first varied size is the
colour, the second the marker, and the third fills the marker.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muxfer.analysis.proxy_size import TOLERANCES, Candidate, ProxyFront, Sizes, describe_task
from muxfer.report.figures import style as shared
from muxfer.report.figures.style import INK, LINE, MARKERS, PAPER, SOFT, brief, palette
from muxfer.report.format import rows_csv

BANDS = ("diverges", "not known")  # Rows of the band above the panel, from the bottom

FACES = (1.0, 0.0, 0.45, 0.2, 0.7)
"""How much of its colour fills the marker, by rank in the third varied size from the largest."""
NUMBERS = ("num_trials", "cost", "share", "choice", "sureness", "relative", "estimate", "low", "high")
"""The numbers of a candidate in the CSV."""


def proxies_figure(front: ProxyFront, path_stem: Path) -> list[Path]:
    """STEM.png, STEM.svg, and STEM.csv with a row for each candidate; nothing where there are no candidates."""
    if not front.candidates:
        return []
    return shared.draw_files(lambda: _proxies(front), path_stem, candidates_csv(front))


def candidates_csv(front: ProxyFront) -> str:
    """One row for each candidate, cheapest first. Shares and regrets are fractions, empty where they are not known."""
    rows = []
    for candidate in front.candidates:
        values = candidate.to_dict()
        numbers = (values[name] for name in NUMBERS)
        rows.append([*candidate.task.values(), *numbers, "yes" if candidate.on_front else "", candidate.why])
    return rows_csv([*front.axes, *NUMBERS, "front", "why"], rows)


def _proxies(front: ProxyFront) -> Any:
    known = [candidate for candidate in front.candidates if candidate.upper is not None]
    unknown = [candidate for candidate in front.candidates if candidate.upper is None]
    rows = [name for name in BANDS if any(_band(candidate) == name for candidate in unknown)]
    styles = _Styles(front)
    figure = shared.new_figure(7.6, 4.8, h_pad=0.03, hspace=0.0)
    heights = [0.09 * len(rows) if rows else 1e-3, 1]
    strip, axes = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    question = f"How small may the proxy be that tunes {brief(front.hp, 30)}?"
    strip.set_title(f"{question}\nlargest task: {describe_task(front.largest)}")
    places = _places(front.candidates)
    _draw_strip(strip, unknown, rows, styles, places)
    shared.grid_behind(axes)
    axes.set_xscale("log")
    top = 1.1 * max([2 * max(TOLERANCES), *(candidate.upper or 0.0 for candidate in known)])
    axes.set_ylim(-0.03 * top, top)
    shares = [candidate.share for candidate in front.candidates]
    axes.set_xlim(min(shares) / 1.6, max(shares) * 1.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    if max(shares) < 30 * min(shares):  # few whole powers of ten, if any
        axes.xaxis.set_minor_formatter(lambda value, _: f"{100 * value:g} %" if f"{value:e}"[0] in "25" else "")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    for tolerance in TOLERANCES:
        axes.axhline(tolerance, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    _draw_front(axes, front, places, max(shares) * 1.6)
    for candidate in known:
        _draw_candidate(axes, candidate, styles, places[tuple(candidate.task.values())])
    _ring_recommended(axes, front, places)
    axes.set_xlabel("cost of the proxy's whole sweep, of one run of the largest task (log scale)")
    axes.set_ylabel("regret of its choice at the largest task")
    figure.legend(handles=_legend(front, styles), loc="outside right upper", handlelength=1.8, labelspacing=0.6)
    return figure


def _band(candidate: Candidate) -> str:
    return BANDS[0] if candidate.diverges else BANDS[1]


class _Styles:
    """Colour by the first varied size, marker by the second, fill by the third."""

    def __init__(self, front: ProxyFront) -> None:
        tasks = [candidate.task for candidate in front.candidates]
        self.values = [sorted({task[axis] for task in tasks}) for axis in front.axes[:3]]
        self.axes = front.axes[:3]
        self.colors = palette(len(self.values[0]))

    def of(self, task: Mapping[str, float]) -> dict[str, Any]:
        ranks = [values.index(task[axis]) for axis, values in zip(self.axes, self.values, strict=True)]
        color = self.colors[ranks[0]]
        marker = MARKERS[ranks[1] % len(MARKERS)] if len(ranks) > 1 else "o"
        from_largest = len(self.values[2]) - 1 - ranks[2] if len(ranks) > 2 else 0
        face = _mixed(color, FACES[from_largest % len(FACES)])
        return {"color": color, "marker": marker, "markerfacecolor": face, "markeredgecolor": color}


def _mixed(color: str, share: float) -> str:
    """A share of the colour on the paper, opaque: a bar must not show through a hollow marker."""
    from matplotlib.colors import to_hex, to_rgb

    if share in (0.0, 1.0):
        return color if share else PAPER
    pairs = zip(to_rgb(color), to_rgb(PAPER), strict=True)
    return str(to_hex([share * own + (1 - share) * paper for own, paper in pairs]))


def _draw_candidate(axes: Any, candidate: Candidate, styles: _Styles, x: float) -> None:
    assert candidate.regret is not None
    regret, style = candidate.regret, styles.of(candidate.task)
    if regret.low is not None:
        axes.plot([x, x], [regret.low, regret.high], color=style["color"], linewidth=1.4, zorder=3)
    axes.plot([x], [regret.estimate], linestyle="none", markersize=7, markeredgewidth=1.5, zorder=4, **style)


def _draw_front(axes: Any, front: ProxyFront, places: Mapping[Sizes, float], end: float) -> None:
    """A staircase of upper bounds: the regret that a given cost is sure to stay below."""
    if not front.front:
        return
    x = [places[tuple(candidate.task.values())] for candidate in front.front]
    y = [candidate.upper for candidate in front.front]
    axes.step([*x, end], [*y, y[-1]], where="post", color=INK, linewidth=1.1, zorder=2)
    axes.plot(x, y, linestyle="none", marker="_", markersize=9, markeredgewidth=1.8, color=INK, zorder=2.5)


def _recommended(front: ProxyFront) -> list[tuple[float, Candidate]]:
    """The cheapest candidate within each tolerance. One that meets two tolerances is named for the tighter one."""
    named: list[tuple[float, Candidate]] = []
    for tolerance in TOLERANCES:
        candidate = front.within(tolerance)
        if candidate is not None and all(candidate is not known for _, known in named):
            named.append((tolerance, candidate))
    return named


def _ring_recommended(axes: Any, front: ProxyFront, places: Mapping[Sizes, float]) -> None:
    for _, candidate in _recommended(front):
        assert candidate.regret is not None
        ring = {"marker": "o", "markersize": 13, "markerfacecolor": "none", "markeredgecolor": INK}
        x = places[tuple(candidate.task.values())]
        axes.plot([x], [candidate.regret.estimate], markeredgewidth=1.1, linestyle="none", zorder=5, **ring)


def _places(candidates: Sequence[Candidate]) -> dict[Sizes, float]:
    """Where each candidate stands along the cost. Equal costs stand side by side, so that none hides another."""
    shares = [candidate.share for candidate in candidates]
    step = 0.025 * math.log(max(shares) / min(shares) * 4)
    groups: list[list[Candidate]] = []
    for candidate in sorted(candidates, key=lambda one: one.share):
        if groups and math.log(candidate.share / groups[-1][0].share) < step:
            groups[-1].append(candidate)
        else:
            groups.append([candidate])
    return {
        tuple(one.task.values()): one.share * math.exp(step * (i - (len(group) - 1) / 2))
        for group in groups
        for i, one in enumerate(group)
    }


def _draw_strip(
    strip: Any, unknown: Sequence[Candidate], rows: Sequence[str], styles: _Styles, places: Mapping[Sizes, float]
) -> None:
    for candidate in unknown:
        x, y = places[tuple(candidate.task.values())], rows.index(_band(candidate))
        strip.plot([x], [y], linestyle="none", markersize=6.5, markeredgewidth=1.5, **styles.of(candidate.task))
    strip.set_ylim(-0.7, max(len(rows), 1) - 0.3)
    strip.tick_params(bottom=False, labelbottom=False, left=False, which="both")
    strip.set_yticks(range(len(rows)), rows)
    strip.spines[:].set_visible(False)
    strip.spines["bottom"].set(visible=bool(rows), color=LINE)


def _legend(front: ProxyFront, styles: _Styles) -> list[Any]:
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    bare: dict[str, Any] = {"linestyle": "none", "markersize": 6.5, "markeredgewidth": 1.5}
    for rank, (axis, values) in enumerate(zip(styles.axes, styles.values, strict=True)):
        for value in values:
            task = {name: known[-1] for name, known in zip(styles.axes, styles.values, strict=True)} | {axis: value}
            style = styles.of(task)
            if rank > 0:
                style |= {"color": INK, "markeredgecolor": INK}
                style["markerfacecolor"] = _mixed(INK, 0.0 if style["markerfacecolor"] == PAPER else 1.0)
            if rank == 2:
                style["markerfacecolor"] = _mixed(INK, FACES[(len(values) - 1 - values.index(value)) % len(FACES)])
            if rank != 1:
                style["marker"] = "o"
            handles.append(Line2D([], [], label=describe_task({axis: value}), **bare, **style))
    if front.front:
        handles.append(Line2D([], [], color=INK, linewidth=1.4, label="95 % interval"))
        handles.append(Line2D([], [], color=INK, linewidth=1.1, marker="_", markersize=8, mew=1.8, label="front"))
    handles.append(Line2D([], [], color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)), label="tolerated"))
    if tolerances := [tolerance for tolerance, _ in _recommended(front)]:
        ring: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none"}
        label = "cheapest within " + " and ".join(f"{100 * tolerance:g} %" for tolerance in tolerances)
        handles.append(Line2D([], [], markersize=12, label=label, **ring))
    return handles
