"""A target in words: its scales, its settings, its loss band, and why it ended without a result."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from muxfer.analysis.cells import shown
from muxfer.analysis.loss_band import LossBand
from muxfer.config.task import Task
from muxfer.report.terminal import table_lines
from muxfer.transfer.target import Carried, TargetRun, value_text
from muxfer.trial import Outcome, Record

if TYPE_CHECKING:
    from muxfer.mup import ScalePlan


def settings_text(settings: Sequence[Carried]) -> str:
    """One line for each setting: carried, rescaled, left or given, its value, and why."""
    rows = []
    for setting in settings:
        value, target = value_text(setting.value), value_text(setting.target)
        rows.append((setting.how, setting.name, value if value == target else f"{value} -> {target}", setting.why))
    return "\n".join(table_lines(rows, align="llll", indent=2))


def watch_text(band: LossBand | str, *, guarded: bool) -> str:
    if isinstance(band, str):
        return f"not watched: {band}"
    if not guarded:
        return "not watched: target.guard=off"
    low, high = band.predicted[-1], band.limit[-1]
    predicted = f"in the end the proxies predict a training loss of {low:.4g} or less"
    return f"watched: {predicted}; halted if long above {high:.4g}"


def failure_text(record: Record, target: TargetRun) -> str:
    """Why a target has no result, and what to do."""
    if record.outcome is not Outcome.DIVERGED:
        return f"the target {record.outcome} at step {record.step}: {record.error or 'see its loss'}"
    last = record.checkpoint
    checkpoint = f"its last checkpoint before that is {last}" if last else "it left no checkpoint"
    rate = target.task.optimizer.base_lr
    return (
        f"the target diverged at step {record.step}: its loss was not finite, or twice that of its first step;"
        f" {checkpoint}; lower the rate, it was base_lr {shown(rate)}: target.base_lr={rate / 4:g}"
    )


def scale_groups(scales: "ScalePlan", task: Task) -> list[dict[str, Any]]:
    """The parameter groups of the target: the number of tensors, and rate, decay, eps and init after scaling."""
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
    """`scale_groups` as a table for a terminal."""
    rows = [["role", "tensors", "lr", "weight decay", "eps", "init"]]
    for group in scale_groups(scales, task):
        numbers = [shown(group["lr"]), f"{group['weight_decay']:.3g}", f"{group['eps']:.2g}"]
        rows.append([group["role"], str(group["tensors"]), *numbers, f"x{group['init_std']:.3g}"])
    plan = f"{scales.parametrization}, width {scales.width}, base width {scales.base_width}{base_depth(scales)}"
    return "\n".join([f"plan {scales.hash}: {plan}", *table_lines(rows, indent=2)])


def base_depth(scales: "ScalePlan") -> str:
    scaled = scales.parametrization == "completep"
    return f", depth {scales.depth}, base depth {scales.base_depth}" if scaled else ""
