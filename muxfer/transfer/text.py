"""What `transfer` says of a target in words: its scales, what was carried over, who watches it, how it ended."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from muxfer.analysis.cells import shown
from muxfer.analysis.loss_band import LossBand
from muxfer.config.task import Task
from muxfer.transfer.target import Carried, TargetRun, value_text
from muxfer.trial import Outcome, Record

if TYPE_CHECKING:
    from muxfer.mup import ScalePlan


def settings_text(settings: Sequence[Carried]) -> str:
    """What was carried, rescaled or left, a line each: where the value stays the same it is told once."""
    rows = []
    for one in settings:
        value, target = value_text(one.value), value_text(one.target)
        rows.append((one.how, one.name, value if value == target else f"{value} -> {target}", one.why))
    widths = [max(len(row[index]) for row in rows) for index in range(3)]
    return "\n".join(
        f"  {how:<{widths[0]}} {name:<{widths[1]}} {value:<{widths[2]}}  {why}" for how, name, value, why in rows
    )


def watch_text(band: LossBand | str, *, guarded: bool) -> str:
    if isinstance(band, str):
        return f"not watched: {band}"
    if not guarded:
        return "not watched: target.guard=off"
    low, high = band.predicted[-1], band.limit[-1]
    return (
        f"watched: in the end the proxies predict a training loss of {low:.4g} or less; halted if long above {high:.4g}"
    )


def failure_text(record: Record, target: TargetRun) -> str:
    """Why there is no result, and what to do."""
    if record.outcome is not Outcome.DIVERGED:
        return f"the target {record.outcome} at step {record.step}: {record.error or 'see its loss'}"
    left = f"its last checkpoint before that is {record.checkpoint}" if record.checkpoint else "it left no checkpoint"
    rate = target.task.optimizer.base_lr
    return (
        f"the target diverged at step {record.step}: its loss was not finite, or twice that of its first step; {left};"
        f" lower the rate, it was base_lr {shown(rate)}: target.base_lr={rate / 4:g}"
    )


def scale_groups(scales: "ScalePlan", task: Task) -> list[dict[str, Any]]:
    """Each parameter group of the target: how many tensors, and its rate, decay and eps after scaling."""
    optimizer = task.optimizer
    counts = Counter((s.role, s.lr, s.weight_decay, s.eps, s.init_std) for s in scales.scales.values())
    return [
        {
            "role": role,
            "tensors": count,
            "lr": optimizer.base_lr * lr,
            "weight_decay": optimizer.weight_decay * decay,
            "eps": optimizer.eps * eps,
            "init_std": init,
        }
        for (role, lr, decay, eps, init), count in sorted(counts.items())
    ]


def scales_text(scales: "ScalePlan", task: Task) -> str:
    """The same as a table for a terminal."""
    lines = [
        f"plan {scales.hash}: {scales.parametrization}, width {scales.width}, base width {scales.base_width}"
        f"{base_depth(scales)}",
        f"  {'role':<8} {'tensors':>7} {'lr':>12} {'weight decay':>13} {'eps':>9} {'init':>7}",
    ]
    for group in scale_groups(scales, task):
        lines.append(
            f"  {group['role']:<8} {group['tensors']:>7} {shown(group['lr']):>12} {group['weight_decay']:>13.3g}"
            f" {group['eps']:>9.2g} {'x' + format(group['init_std'], '.3g'):>7}"
        )
    return "\n".join(lines)


def base_depth(scales: "ScalePlan") -> str:
    scaled = scales.parametrization == "completep"
    return f", depth {scales.depth}, base depth {scales.base_depth}" if scaled else ""
