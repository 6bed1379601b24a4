"""A plan for a person to read: sizes, totals, shares of the target, hours, and what a budget pays for."""

from collections.abc import Mapping, Sequence
from typing import Any

from muxfer.report.format import show_hours, show_setting
from muxfer.report.terminal import table_lines

MANY = 8  # A table of more than twice as many sizes shows this many from either end


def plan_lines(data: Mapping[str, Any], why: str) -> list[str]:
    """Sizes, totals, shares and hours. `why` says why the ledger's throughput is unknown."""
    sizes, num_hidden = data["sizes"], len(data["sizes"]) - 2 * MANY
    shown = [*sizes[:MANY], *sizes[-MANY:]] if num_hidden > 0 else sizes
    rows = [["setting", "parameters", "FLOPs a trial", "trials", "hours of all"]]
    rows += [_row(show_setting(one["setting"]) or "as the task", one) for one in shown]
    target = data["target"]
    shape = show_setting({"width": target["width"], "steps": target["steps"]})
    of_target = {"flops": data["target_flops"], "trials": 1, "hours": data["target_hours"]}
    rows.append(_row(f"target: {shape}", {"parameters": target["parameters"], **of_target}))
    lines = table_lines(rows)
    if num_hidden > 0:
        lines.insert(1 + MANY, f"... {num_hidden} more, with --json ...")
    ratio, counted = data["tuning_ratio"], data["tuning_ratio_counted"]
    share = f"share of the target: {_percent(ratio)} by trials x parameters x samples (equation 1)"
    if counted != ratio:
        share += f" as the paper counts parameters, {_percent(counted)} as we do"
    lines += ["", f"{data['trials']} trials, {data['proxy_flops']:.2e} FLOPs"]
    lines.append(f"{share}; {_percent(data['tuning_ratio_flops'])} by counted FLOPs")
    if "experts_ratio" in data:
        lines.append(f"share of what tuning the target by hand took: {_percent(data['experts_ratio'])}")
    if data["hours"] is not None:
        return [*lines, f"hours: {show_hours(data['hours'])} of training, summed over slots"]
    unknown = f" ({why})" if why else " for every size: nothing of a similar size is recorded"
    return [*lines, f"hours: not measured{unknown}"]


def proposal_lines(rows: Sequence[Mapping[str, Any]], budget: float) -> list[str]:
    """What a budget pays for, and the command of the best proposal."""
    table = [["width", "parameters", "batch", "steps", "settings", "trials", "share"]]
    for row in rows:
        counts = (row["batch_size"], row["steps"], row["settings"], row["trials"])
        share = _percent(row["ratio_flops"])
        table.append([str(row["width"]), _count(row["parameters"]), *map(str, counts), share])
    return [
        f"proxies that stay below {_percent(budget)} of the target's FLOPs, settings first, then width, then steps:",
        *table_lines(table, align="r" * len(table[0]), indent=2),
        "  for a DiT the paper saw transfer hold from width 144 (half the base), batch 256 and 150K steps on",
        f"the first: {rows[0]['command']}",
    ]


def _row(name: str, size: Mapping[str, Any]) -> list[str]:
    trials, hours = str(size["trials"]), show_hours(size["hours"])
    return [name, _count(size["parameters"]), f"{size['flops']:.2e}", trials, hours]


def _count(parameters: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return f"{parameters:g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
