"""`muxfer model`: the size of a model, and the role and scales of each parameter relative to the base width.

Nothing is trained and no weight is allocated. Only the model and the optimizer of a configuration are used, so a size
that does not fit its data can be shown. `--scales` writes the same for a trainer that is not ours.
"""

import dataclasses
import json
import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muxfer.commands.result import CommandResult
from muxfer.config.hydra_compose import compose_model
from muxfer.config.models import Declared, Model, with_num_classes
from muxfer.config.parse import parse_part
from muxfer.config.task import Task
from muxfer.errors import BadInput
from muxfer.files import replace_file, user_path
from muxfer.models.build import scale_plan
from muxfer.models.count import ModelCost, measure, validate_forward
from muxfer.mup.rules import ROLES
from muxfer.report.terminal import table_lines, table_width

if TYPE_CHECKING:
    from muxfer.mup import ScalePlan

FACTORS = {"init_std": "init", "lr": "lr", "weight_decay": "decay", "eps": "eps", "fold": "fold"}
"""The numbers of a scale, with their names in the table."""
Rows = Sequence[Mapping[str, Any]]

INDENT = 2


def model(name: str, overrides: Sequence[str], *, scales: str | None = None) -> CommandResult:
    """The parameters and multiply-accumulates of a model, and the role and scales of each parameter."""
    task = _task(compose_model(name, overrides))
    plan = scale_plan(task)
    validate_forward(task.model)
    cost = measure(task.model)
    rows = parameter_rows(plan)
    depths = ("base_depth", "depth") if plan.parametrization == "completep" else ()
    described = {"model": model_name(task.model)}
    described |= {key: getattr(plan, key) for key in ("parametrization", "base_width", "width", *depths)}
    data = {**described, "params": cost.parameters, "macs": cost.macs, "plan_hash": plan.hash, "parameters": rows}
    lines = [model_text(task.model, plan, cost, rows, columns=shutil.get_terminal_size().columns)]
    if scales is not None:
        content = {**described, "output_multiplier": plan.output_multiplier, "readout": plan.readout, "hash": plan.hash}
        data["scales"] = str(_write(user_path(scales, "--scales"), {**content, "parameters": rows}))
        lines.append(f"\nscales: {data['scales']}")
    return CommandResult(data=data, text="\n".join(lines))


def model_name(model: Model) -> str:
    return model.target if isinstance(model, Declared) else model.family


def parameter_rows(plan: "ScalePlan") -> list[dict[str, Any]]:
    """A row for each trainable parameter, in the model's order: shape, role, factors relative to the base width. `mean`
    and `std` are the initialization at this width, or None where the constructor does not define it.
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
    """Names that differ only in their first number, as one: blocks.{0..27}.attn.qkv.weight."""
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
    """A name split at its first number: ("blocks.", "3", ".attn.qkv.weight"). Without one the last two are empty."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            head, tail = parts[:i], parts[i + 1 :]
            return ".".join([*head, ""]), part, ".".join(["", *tail])
    return name, "", ""


def with_prefix(number: float, unit: str = "") -> str:
    """Four significant digits with an SI prefix, such as 674.8 M. Below 10,000 the number itself."""
    if number < 10_000:
        return f"{number:,.0f} {unit}".rstrip()
    power = min(int(math.log10(number)) // 3, 6)
    return f"{number / 1000**power:#.4g}".rstrip(".") + f" {' kMGTPE'[power]}{unit}"


def model_text(model: Model, plan: "ScalePlan", cost: ModelCost, rows: Rows, *, columns: int = 80) -> str:
    """The size of the model, then a section for each set of factors. Alike blocks share a line."""
    size = f"width {plan.width}, base width {plan.base_width}"
    base = "base width"
    if plan.parametrization == "completep":
        size += f", depth {plan.depth}, base depth {plan.base_depth}"
        base = "base width and depth"
    roles = Counter(row["role"] for row in rows)
    tensors = ", ".join(f"{roles[role]} {role}" for role in ROLES if role in roles)
    counts = [
        [f"{cost.parameters:,}", f"parameters ({with_prefix(cost.parameters)})"],
        [f"{cost.macs:,}", f"multiply-accumulates a sample, forward ({with_prefix(cost.macs, 'MACs')})"],
        [f"{len(rows):,}", f"trained tensors: {tensors}"],
    ]
    sections: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: ROLES.index(row["role"])):
        sections.setdefault((row["role"], *(row[key] for key in FACTORS)), []).append(row)
    text = [f"{model_name(model)}: {plan.parametrization}, {size}", "", *table_lines(counts, align="rl", indent=2)]
    blocks = _parameter_lines(list(sections.values()), columns)
    for heading, lines in zip(_heading_lines(sections), blocks, strict=True):
        text += ["", *heading, *lines]
    note = f"× the value at the {base}; AdamW multiplies decay by lr; std: the initialization at width {plan.width}"
    return "\n".join([*text, "", *textwrap.wrap(note, columns)])


def _heading_lines(sections: Mapping[tuple[Any, ...], Rows]) -> list[list[str]]:
    """For each section a line with its role and factors, and a line with its number of tensors and entries."""
    table, counts = [], []
    for (role, *numbers), rows in sections.items():
        factors = [f"{name} ×{number:.4g}" for name, number in zip(FACTORS.values(), numbers, strict=True)]
        if numbers[-1] == 1:
            factors[-1] = ""  # nothing is folded
        table.append([role, *factors])
        num_entries = sum(math.prod(row["shape"]) for row in rows)
        counts.append(f"  {len(rows)} tensor{'s' if len(rows) > 1 else ''}, {with_prefix(num_entries)}")
    return [[*pair] for pair in zip(table_lines(table, align="l" * len(table[0])), counts, strict=True)]


def _parameter_lines(sections: Sequence[Rows], columns: int) -> list[list[str]]:
    """The lines of each section, all aligned as one table. A name that is too long has a line of its own."""
    tables = [_collapsed_rows(rows) for rows in sections]
    numbers = [row[1:] for table in tables for row in table]
    longest = columns - INDENT - table_width([["", *row] for row in numbers])
    short = [["" if len(row[0]) > longest else row[0], *row[1:]] for table in tables for row in table]
    lines = iter(table_lines(short, indent=INDENT))
    blocks: list[list[str]] = []
    for table in tables:
        blocks.append([])
        for name, *_ in table:
            blocks[-1] += [*([" " * INDENT + name] if len(name) > longest else []), next(lines)]
    return blocks


def _collapsed_rows(rows: Rows) -> list[list[str]]:
    """Name, shape, number of entries and initialization. Parameters that differ only in their block share a row."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        head, index, tail = numbered(row["name"])
        groups.setdefault((head, bool(index), tail, tuple(row["shape"]), row["mean"], row["std"]), []).append(row)
    collapsed_rows = []
    for group in groups.values():
        first = group[0]
        num_entries = with_prefix(math.prod(first["shape"]))
        collapsed_rows.append(
            [
                collapsed(row["name"] for row in group),
                "×".join(map(str, first["shape"])) or "scalar",
                num_entries if len(group) == 1 else f"{len(group)} × {num_entries}",
                _initialization(first["mean"], first["std"]),
            ]
        )
    return collapsed_rows


def _initialization(mean: float | None, std: float | None) -> str:
    if mean is None or std is None:
        return "measured"
    if std == 0:
        return f"all {mean:.4g}"
    return f"std {std:.3g}" if mean == 0 else f"{mean:.3g} ± {std:.3g}"


def _task(plain: Mapping[str, Any]) -> Task:
    """The task with each part validated by itself. Of the rules over several parts only those on the model apply."""
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
