"""The model command: how large one model is, and what each of its parameters gets relative to the base width.

Nothing is trained and no weight is ever in memory. It needs a model and an optimizer alone, so a size that does not fit
the data of the configuration is shown as well. `--scales` writes the same for a trainer that is not ours.
"""

import dataclasses
import json
import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muxfer.commands.result import CommandResult
from muxfer.config.hydra_compose import compose_model
from muxfer.config.models import Declared, Model, with_num_classes
from muxfer.config.parse import parse_part
from muxfer.config.task import Task
from muxfer.errors import BadInput
from muxfer.files import user_path
from muxfer.models.build import scale_plan
from muxfer.models.count import ModelCost, measure, validate_forward
from muxfer.report.figures import replace_file

if TYPE_CHECKING:
    from muxfer.mup import ScalePlan

FACTORS = {"init_std": "init", "lr": "lr", "weight_decay": "decay", "eps": "eps", "fold": "fold"}
"""A scale's numbers, with their names in the table."""


def model(name: str, overrides: Sequence[str], *, scales: str | None = None) -> CommandResult:
    """Parameters, multiply-accumulates, and every parameter's role and scales."""
    plain = compose_model(name, overrides)
    task = _task(plain)
    plan = scale_plan(task)
    validate_forward(task.model)
    cost = measure(task.model)
    rows = parameter_rows(plan)
    describe_data = {
        "model": model_name(task.model),
        "parametrization": plan.parametrization,
        "base_width": plan.base_width,
        "width": plan.width,
    }
    if plan.parametrization == "completep":
        describe_data |= {"base_depth": plan.base_depth, "depth": plan.depth}
    data = {**describe_data, "params": cost.parameters, "macs": cost.macs, "plan_hash": plan.hash, "parameters": rows}
    lines = [model_text(task.model, plan, cost, rows, columns=shutil.get_terminal_size().columns)]
    if scales is not None:
        content = {
            **describe_data,
            "output_multiplier": plan.output_multiplier,
            "readout": plan.readout,
            "hash": plan.hash,
        }
        data["scales"] = str(_write(user_path(scales, "--scales"), {**content, "parameters": rows}))
        lines.append(f"\nscales: {data['scales']}")
    return CommandResult(data=data, text="\n".join(lines))


def model_name(model: Model) -> str:
    return model.target if isinstance(model, Declared) else model.family


def parameter_rows(plan: "ScalePlan") -> list[dict[str, Any]]:
    """Every trainable parameter, in the model's order: shape, role, factors relative to the base width.

    `mean` and `std` are its initialization at this width, None where no call of the constructor says it.
    """
    rows = []
    for name, scale in plan.scales.items():
        mean = std = None
        if plan.parametrization == "stock":
            if own := plan.initializations[name]:
                mean, std = own.mean, own.std
        elif base := plan.base_initializations[name]:
            mean, std = base.mean * scale.fold, base.std * scale.init_std
        shape = list(plan.shapes[name])
        rows.append({"name": name, "shape": shape, **dataclasses.asdict(scale), "mean": mean, "std": std})
    return rows


def collapsed(names: Iterable[str]) -> str:
    """Names that differ in their first number alone, as one: blocks.{0..27}.attn.qkv.weight."""
    names = list(names)
    head, _, tail = numbered(names[0])
    indices = sorted(int(numbered(name)[1]) for name in names) if len(names) > 1 else []
    if not indices:
        return names[0]
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    shown = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return f"{head}{{{','.join(shown)}}}{tail}"


def numbered(name: str) -> tuple[str, str, str]:
    """A name around its first number: ("blocks.", "3", ".attn.qkv.weight"); the number is empty where there is none."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            head, tail = parts[:i], parts[i + 1 :]
            return ".".join([*head, ""]), part, ".".join(["", *tail])
    return name, "", ""


def with_prefix(number: float, unit: str = "") -> str:
    """Four significant digits with an SI prefix, 674.8 M; below 10,000 the number itself."""
    if number < 10_000:
        return f"{number:,.0f} {unit}".rstrip()
    power = min(int(math.log10(number)) // 3, 6)
    return f"{number / 1000**power:#.4g}".rstrip(".") + f" {' kMGTPE'[power]}{unit}"


@dataclass(frozen=True, kw_only=True)
class _Line:
    """Parameters that are shown as one."""

    name: str
    shape: str
    count: str
    init: str


def model_text(
    model: Model, plan: "ScalePlan", cost: ModelCost, rows: Sequence[Mapping[str, Any]], *, columns: int = 80
) -> str:
    """The same for a person: size on top, then a section for each set of factors, alike blocks as one line."""
    size = f"width {plan.width}, base width {plan.base_width}"
    if plan.parametrization == "completep":
        size += f", depth {plan.depth}, base depth {plan.base_depth}"
    sections: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        sections.setdefault((row["role"], *(row[key] for key in FACTORS)), []).append(row)
    by_role = sorted(sections.items(), key=lambda item: _ROLE_ORDER[item[0][0]])
    lines = {factors: _collapsed_lines(several) for factors, several in by_role}
    every = [line for several in lines.values() for line in several]
    widths = [max(len(getattr(line, key.name)) for line in every) for key in dataclasses.fields(_Line)]
    widths[0] = min(widths[0], columns - sum(widths[1:]) - 2 * len(widths))
    total = max(sum(widths) + 2 * len(widths), 60)

    roles = Counter(row["role"] for row in rows)
    told = ", ".join(f"{roles[role]} {role}" for role in _ROLE_ORDER if role in roles)
    digits = len(f"{max(cost.parameters, cost.macs):,}")
    text = [
        f"{model_name(model)}: {plan.parametrization}, {size}",
        "",
        f"  {cost.parameters:>{digits},}  parameters ({with_prefix(cost.parameters)})",
        f"  {cost.macs:>{digits},}  multiply-accumulates a sample, forward ({with_prefix(cost.macs, 'MACs')})",
        f"  {len(rows):>{digits},}  trained tensors: {told}",
    ]
    for factors, several in by_role:
        role, *numbers = factors
        shown = [f"{name} ×{number:.4g}" for name, number in zip(FACTORS.values(), numbers, strict=True)]
        if numbers[-1] == 1:
            shown.pop()  # nothing is folded
        numel = sum(math.prod(row["shape"]) for row in several)
        counted = f"{len(several)} tensor{'s' if len(several) > 1 else ''}, {with_prefix(numel)}"
        text += ["", *_spread(f"{role:<8} {'  '.join(shown)}", counted, total, columns)]
        text += [_row(line, widths) for line in lines[factors]]
    base = "base width and depth" if plan.parametrization == "completep" else "base width"
    note = f"× the value at the {base}; AdamW multiplies decay by lr; std: the initialization at width {plan.width}"
    return "\n".join([*text, "", *textwrap.wrap(note, columns)])


_ROLE_ORDER = {"input": 0, "hidden": 1, "readout": 2, "finite": 3}


def _collapsed_lines(rows: Sequence[Mapping[str, Any]]) -> list[_Line]:
    alike: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        head, index, tail = numbered(row["name"])
        alike.setdefault((head, bool(index), tail, tuple(row["shape"]), row["mean"], row["std"]), []).append(row)
    lines = []
    for several in alike.values():
        first = several[0]
        numel = with_prefix(math.prod(first["shape"]))
        lines.append(
            _Line(
                name=collapsed(row["name"] for row in several),
                shape="×".join(map(str, first["shape"])) or "scalar",
                count=numel if len(several) == 1 else f"{len(several)} × {numel}",
                init=_init(first["mean"], first["std"]),
            )
        )
    return lines


def _init(mean: float | None, std: float | None) -> str:
    if mean is None or std is None:
        return "measured"
    if std == 0:
        return f"all {mean:.4g}"
    return f"std {std:.3g}" if mean == 0 else f"{mean:.3g} ± {std:.3g}"


def _row(line: _Line, widths: Sequence[int]) -> str:
    """A name that leaves no room for its numbers has a line of its own: names are there to be copied."""
    numbers = "  ".join(
        text.rjust(width) for text, width in zip((line.shape, line.count, line.init), widths[1:], strict=True)
    )
    if len(line.name) > widths[0]:
        return f"  {line.name}\n  {'':<{widths[0]}}  {numbers}"
    return f"  {line.name:<{widths[0]}}  {numbers}"


def _spread(left: str, right: str, total: int, columns: int) -> list[str]:
    """Both on one line, the right one at its end; on two where they don't fit."""
    if len(left) + 2 + len(right) > columns:
        return [left, right.rjust(total)]
    return [left + right.rjust(max(total - len(left), len(right) + 2))]


def _task(plain: Mapping[str, Any]) -> Task:
    """The task with each part checked by itself; of what joins them only what concerns the model."""
    task = Task(**{part.name: parse_part(part.name, plain) for part in dataclasses.fields(Task)})
    task.validate_depth()
    if getattr(task.model, "num_classes", 0) is None and getattr(task.model, "text_dim", None) is None:
        from muxfer.data.source import describe_data

        task = dataclasses.replace(task, model=with_num_classes(task.model, describe_data(task.data).num_classes))
    return task


def _write(path: Path, content: Mapping[str, Any]) -> Path:
    if path.suffix != ".json":
        raise BadInput(f"--scales {path.name}: the scales are JSON; give a file name that ends in .json")
    return replace_file(path, f"{json.dumps(content, indent=2, allow_nan=False)}\n".encode())
