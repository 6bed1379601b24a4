"""Numbers, settings and durations as people read them."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from muxfer.analysis.cells import Cell, Table, all_cells, best_value, finite, ordered, percent, shown
from muxfer.trial import Optimum, Outcome, Record, Regret, Setting, Verdict

METRIC = "validation loss"
TERMINAL = 80


def show_setting(setting: Setting) -> str:
    """A setting as a person writes it: base_lr=2^-7 width=64."""
    return " ".join(f"{name}={value if isinstance(value, str) else shown(value)}" for name, value in setting.items())


def show_seconds(seconds: float) -> str:
    """A time for a terminal, in whole seconds: 2h03m, 3m05s, 12s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def show_hours(hours: float | None) -> str:
    """A planned time for a terminal: 2h03m, from 100 hours on in hours alone, "-" where it is unknown."""
    return "-" if hours is None else show_seconds(3600 * hours) if hours < 100 else f"{hours:.3g} h"


def show_time(seconds: float) -> str:
    """A measured time for a page, in one unit and with one decimal: 61.0 s, 3.1 min, 2.1 h."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def brief_value(value: float | int | str) -> str:
    """A setting's value, rounded for reading. The CSV has it in full."""
    text = value if isinstance(value, str) else shown(value)
    return text if isinstance(value, str) or len(text) <= 8 else f"{value:.4g}"


def with_interval(name: str, highs: Iterable[float | None]) -> str:
    """A heading, with 95 % where at least one value has an interval."""
    return f"{name}, 95 %" if any(map(finite, highs)) else name


def regret_text(regret: Regret | None) -> str:
    """The regret on the smoothed curve where there is one, else as measured: what the verdict uses."""
    if regret is None:
        return ""
    value = regret.relative if regret.estimate is None else regret.estimate
    if value is None:
        return "diverges"
    interval = f" (to {percent(regret.high)})" if finite(regret.high) else ""
    return percent(value) + interval


def edge_text(hp: str, optimum: Optimum) -> str:
    """How far the optimum is below the largest stable value; empty where nothing diverged above it."""
    best = best_value(optimum)
    if best is None or optimum.stable is None or optimum.diverges is None:
        return ""
    is_ratio = min(best, optimum.stable) > 0
    up = math.log2(optimum.stable / best) if is_ratio else optimum.stable - best
    if up < 0.05:
        return f"the optimum is the largest stable {hp}, {brief_value(optimum.stable)}"
    steps = f"{up:.1f} doublings" if is_ratio else f"{up:.1f}"
    return f"the optimum is {steps} below the largest stable {hp}, {brief_value(optimum.stable)}"


def csv_text(records: Iterable[Record]) -> str:
    """One row for each proxy trial: settings, replicate, outcome, metric (empty where it has none) and last step."""
    proxies = ordered(record for record in records if record.kind == "proxy")
    names = sorted({name for record in proxies for name in record.setting})
    settings = ([record.setting.get(name, "") for name in names] for record in proxies)
    rows = [[*own, r.replicate, str(r.outcome), r.metric, r.step] for own, r in zip(settings, proxies, strict=True)]
    return rows_csv([*names, "replicate", "outcome", "metric", "step"], rows)


def rows_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV with numbers in full, so that they are read back exactly. None is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def cell_text(cell: Cell | None, decimals: int, short: bool = False) -> str:
    if cell is None:
        return "-"
    if cell.mean is not None:
        return f"{cell.mean:.{decimals}f}" if abs(cell.mean) < 1e5 else f"{cell.mean:.1e}"
    if cell.outcome is Outcome.FAILED:
        return "failed"
    name = str(cell.outcome)
    return f"{name[:1] if short else name}@{cell.step}" if cell.step else name


def hp_text(value: float, *, log2_hp: bool = True) -> str:
    """A setting's value between those of the grid."""
    return f"2^{math.log2(value):.2f}" if log2_hp and 0 < value < 1 else f"{value:.3g}"


def drift_text(verdict: Verdict) -> str | None:
    """The drift with its interval; None where it is not known."""
    value, low, high = (verdict.drift_per_doubling.get(name) for name in ("value", "low", "high"))
    if value is None:
        return None
    interval = f" (95 %: {low:+.2f} to {high:+.2f})" if finite(low) and finite(high) else ""
    return f"{value:+.2f}{interval} in {drift_unit(verdict)}"


def drift_unit(verdict: Verdict) -> str:
    unit = f"log2 of {verdict.hp}" if verdict.log2_hp else verdict.hp
    return f"{unit} per doubling of {verdict.axis}"


def whole_powers(low: float, high: float, *, most: int = 9) -> list[int]:
    """The whole numbers between two exponents, thinned evenly to at most `most`."""
    first, last = math.ceil(low), math.floor(high)
    return list(range(first, last + 1, math.ceil((last - first + 1) / most) or 1))


def num_decimals(table: Table) -> int:
    """Decimals that give the best loss four significant digits. A whole table has the same, so that columns compare."""
    best = min((abs(cell.mean) for cell in all_cells(table) if cell.mean), default=1.0)
    return min(max(3 - math.floor(math.log10(best)), 0), 8)
