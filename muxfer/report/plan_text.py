"""A plan for a person to read: a table of sizes, totals, shares of the target, hours, and what a budget pays for."""

from collections.abc import Mapping, Sequence
from typing import Any

from muxfer.report.format import show_hours, show_setting

MANY = 8
"""Of more than twice as many sizes a table shows so many from either end."""


def plan_lines(data: Mapping[str, Any], why: str) -> list[str]:
    """Sizes, totals, shares and hours; `why` says why nothing is known of the ledger's throughput."""
    target = data["target"]
    rows = [["setting", "parameters", "FLOPs a trial", "trials", "hours of all"]]
    shown, hidden = data["sizes"], len(data["sizes"]) - 2 * MANY
    if hidden > 0:
        shown = [*shown[:MANY], *shown[-MANY:]]
    for size in shown:
        setting = show_setting(size["setting"]) or "as the task"
        rows.append(
            [
                setting,
                _count(size["parameters"]),
                f"{size['flops']:.2e}",
                str(size["trials"]),
                show_hours(size["hours"]),
            ]
        )
    shape = {"width": target["width"], "steps": target["steps"]}
    rows.append(
        [
            f"target: {show_setting(shape)}",
            _count(target["parameters"]),
            f"{data['target_flops']:.2e}",
            "1",
            show_hours(data["target_hours"]),
        ]
    )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(_cell(row, widths, i) for i in range(len(row))) for row in rows]
    if hidden > 0:
        lines.insert(1 + MANY, f"... {hidden} more, with --json ...")
    ratio, counted = data["tuning_ratio"], data["tuning_ratio_counted"]
    share = f"share of the target: {_percent(ratio)} by trials x parameters x samples (equation 1)"
    if counted != ratio:
        share += f" as the paper counts parameters, {_percent(counted)} as we do"
    lines += ["", f"{data['trials']} trials, {data['proxy_flops']:.2e} FLOPs"]
    lines.append(f"{share}; {_percent(data['tuning_ratio_flops'])} by counted FLOPs")
    if "experts_ratio" in data:
        lines.append(f"share of what tuning the target by hand took: {_percent(data['experts_ratio'])}")
    unknown = f" ({why})" if why else " for every size: nothing of a similar size is recorded"
    told = (
        f"{show_hours(data['hours'])} of training, summed over slots" if data["hours"] is not None else "not measured"
    )
    lines.append(f"hours: {told}{unknown if data['hours'] is None else ''}")
    return lines


def proposal_lines(rows: Sequence[Mapping[str, Any]], budget: float) -> list[str]:
    """What a budget pays for, and the command of the best."""
    lines = [
        f"proxies that stay below {_percent(budget)} of the target's FLOPs, settings first, then width, then steps:"
    ]
    lines.append(
        f"  {'width':>6} {'parameters':>10} {'batch':>6} {'steps':>8} {'settings':>8} {'trials':>6} {'share':>7}"
    )
    for row in rows:
        lines.append(
            f"  {row['width']:>6} {_count(row['parameters']):>10} {row['batch_size']:>6} {row['steps']:>8}"
            f" {row['settings']:>8} {row['trials']:>6} {_percent(row['ratio_flops']):>7}"
        )
    lines.append("  for a DiT the paper saw transfer hold from width 144 (half the base), batch 256 and 150K steps on")
    return [*lines, f"the first: {rows[0]['command']}"]


def _cell(row: Sequence[str], widths: Sequence[int], i: int) -> str:
    return row[i].ljust(widths[i]) if i == 0 else row[i].rjust(widths[i])


def _count(parameters: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return f"{parameters:g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
