"""`muxfer check`: the coordinate check of a model, as a verdict, an explanation of each failure, and a figure.

A control that is known to fail is checked as well: if it passed too, the check could not tell right from wrong. Exit
code 6 if the model does not pass. `muxfer.models.coordinate_run` measures and `muxfer.mup.slopes` judges.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from muxfer.commands.model import collapsed, model_name, numbered
from muxfer.commands.result import CommandResult
from muxfer.config.hydra_compose import compose_model
from muxfer.config.models import with_num_classes
from muxfer.config.parse import parse_part, parse_without_grid
from muxfer.config.settings import with_setting
from muxfer.config.study import Check, Config
from muxfer.config.task import Task, to_plain
from muxfer.errors import BadInput, NotConfirmed
from muxfer.files import replace_file, validate_writable
from muxfer.models.count import validate_forward
from muxfer.mup.slopes import MEASURES, TOLERANCE, CoordinateCheck, Line
from muxfer.report.figures.check import coordinate_figure
from muxfer.report.terminal import table_lines
from muxfer.study.resolve import PrintLine, output_folder

CONTROL = {"width": "standard", "depth": "mup"}
"""The parametrization that does not scale along the axis, which is drawn beside the checked one."""
LINE_KEYS = {name: name for name in ("name", "measure", "step", "role", "expected", "slope", "low", "high")}
LINE_KEYS |= {"pass": "passed"}
"""The keys of a line in the JSON, and the fields that they show."""

TITLES = {
    "change": "outputs change",
    "output_at_init": "fresh outputs",
    "update": "first updates",
    "parameter_at_init": "fresh parameters",
}


def check(name: str, overrides: Sequence[str], *, print_line: PrintLine) -> CommandResult:
    """The coordinate check of a sweep's or a configured model, with its figure and an exit code for scripts."""
    config = parse_without_grid(compose_model(name, overrides))
    task, request = _task(config), config.check
    validate_forward(task.model)
    folder = output_folder(config) / f"check-{name}"
    validate_writable(folder)
    print_line(f"{task.optimizer.parametrization}: {len(request.sizes) * request.seeds} runs of {request.steps} steps")
    checked = _coordinates(task, request, seeds=request.seeds)
    panels = [checked]
    model = model_name(task.model)
    data = check_data(checked, model=model, width=task.model.width)
    lines = [check_text(checked, model=model), ""]
    data["control"] = None
    if (parametrization := CONTROL[request.axis]) != checked.parametrization:
        print_line(f"{parametrization}, the control: {len(request.sizes)} runs of {request.steps} steps")
        control = _coordinates(_control(task, parametrization), request, seeds=1)
        panels.append(control)
        data["control"] = {"parametrization": parametrization, "verdict": control.verdict}
        comment = (
            "passes too, so this check proves nothing: widen check.sizes" if control.passed else "fails as it should"
        )
        lines.append(f"control: {parametrization} {comment}")
    stem = folder / f"{checked.parametrization}-{checked.axis}"
    paths = coordinate_figure(panels, stem, title=f"{model}: coordinates by {checked.axis}")
    data["figure"] = str(paths[0])
    replace_file(stem.with_suffix(".json"), json.dumps(data, indent=1).encode())
    lines.append(f"figure:  {paths[0]}")
    return CommandResult(data=data, text="\n".join(lines), exit_code=0 if checked.passed else NotConfirmed.exit_code)


def check_data(checked: CoordinateCheck, *, model: str, width: int) -> dict[str, Any]:
    """The JSON of the command. A `slope` is null where the values are zero at every size."""
    return {
        "model": model,
        "verdict": checked.verdict,
        "parametrization": checked.parametrization,
        "axis": checked.axis,
        "widths": list(checked.sizes) if checked.axis == "width" else [width],
        "sizes": list(checked.sizes),
        "steps": checked.steps,
        "seeds": checked.seeds,
        "loss_change": checked.loss_change,
        "measures": checked.measures,
        "modules": [{key: getattr(line, field) for key, field in LINE_KEYS.items()} for line in checked.lines],
    }


def check_text(checked: CoordinateCheck, *, model: str) -> str:
    """The verdict, a row for each measure with its worst slope, and the failures under what they mean."""
    sizes = ", ".join(map(str, checked.sizes))
    seeds = f"{checked.seeds} seed{'s' if checked.seeds > 1 else ''}"
    rows = [["", f"slopes over log {checked.axis}", "failed", "worst"]]
    for measure in MEASURES:
        lines = [line for line in checked.lines if line.measure == measure]
        failed = sum(not line.passed for line in lines)
        rows.append(["FAIL" if failed else "pass", TITLES[measure], f"{failed}/{len(lines)}", _worst(lines)])
    text = [
        f"{model}: {checked.parametrization}, {checked.axis} {sizes}: {checked.verdict}",
        f"{checked.steps} steps, {seeds}; the loss moved by at most {100 * checked.loss_change:.1f} %",
        "",
        *table_lines(rows, align="llrl", indent=2),
    ]
    still = [line.name for line in checked.lines if line.measure == "update" and line.slope is None and line.passed]
    if still:
        names = ", ".join(still[:3]) + (f" and {len(still) - 3} more" if len(still) > 3 else "")
        text += ["", f"no gradient in {checked.steps} steps, so their updates are not judged: {names}"]
    for meaning, lines in failures(checked).items():
        text += ["", f"{meaning}:", *table_lines(_rows(lines), align="lll", indent=2)]
    return "\n".join(text)


def failures(checked: CoordinateCheck) -> dict[str, list[Line]]:
    """The lines that failed, by what their failure means. Causes come before their effects."""
    failed = [line for line in checked.lines if not line.passed]
    grouped: dict[str, list[Line]] = {}
    for line in sorted(failed, key=lambda line: _CAUSES_FIRST.index(line.measure)):
        grouped.setdefault(_meaning(line, checked), []).append(line)
    return grouped


_CAUSES_FIRST = ("parameter_at_init", "update", "output_at_init", "change")


def _meaning(line: Line, checked: CoordinateCheck) -> str:
    axis, role = checked.axis, line.role
    title = TITLES[line.measure]
    if line.slope is None:
        return f"{title}: zero or not finite, at some {axis}s or for some seeds only"
    up = line.slope > line.expected
    if line.measure in ("parameter_at_init", "update"):
        number = "initial deviation" if line.measure == "parameter_at_init" else "learning rate"
        should_fall = line.expected < 0 or (line.measure == "update" and role in ("hidden", "readout"))
        falls = f"falls too {'slowly' if up else 'fast'}" if should_fall else "grows" if up else "falls"
        return f"{title}: the {number} of {role} parameters {falls} with the {axis}"
    unseen = f"the forward pass depends on the {axis} in a way that the scales do not cover"
    starts_right = _starts_right(line.name, checked)
    if line.measure == "output_at_init":
        if starts_right:
            return f"{title}: {unseen}, because the parameters start right"
        return f"{title}: {'too large' if up else 'too small'} at the larger {axis}s; see the fresh parameters"
    moves = f"{title}: {'more' if up else 'less'} at the larger {axis}s"
    if not checked.measures["update"]:
        return f"{moves}; see the first updates"
    return f"{moves}, though the first updates pass: {unseen}" if starts_right else moves


def _starts_right(module: str, checked: CoordinateCheck) -> bool:
    """Whether the module's parameters all pass at initialization. A module without parameters stands for the model."""
    inits = [line for line in checked.lines if line.measure == "parameter_at_init"]
    own = [line for line in inits if module == "" or line.name.startswith(f"{module}.")]
    return all(line.passed for line in own or inits)


def _worst(lines: Sequence[Line]) -> str:
    """The slope that is farthest from the expected one."""
    sloped = [(abs(line.slope - line.expected), line) for line in lines if line.slope is not None]
    if not sloped:
        return "all zero"
    distance, line = max(sloped, key=lambda pair: pair[0])
    allowed = f"{line.expected:+g} ± {TOLERANCE[line.measure]:g}" if line.expected else f"± {TOLERANCE[line.measure]:g}"
    at = f", step {line.step}" if line.step else ""
    few = ", within the error of a few draws" if line.passed and distance > TOLERANCE[line.measure] else ""
    return f"{_signed(line.slope)} ({allowed}{few}) {_named(line.name)}{at}"


def _signed(value: float | None) -> str:
    return f"{round(value or 0.0, 2) + 0.0:+.2f}"


def _named(name: str) -> str:
    return name or "(the model)"


def _rows(lines: Sequence[Line]) -> list[list[str]]:
    """Name, role and slopes. Lines that differ only in the number of their block or in the step share a row."""
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        head, number, tail = numbered(line.name)
        groups.setdefault((head, bool(number), tail, line.role), []).append(line)
    rows = []
    for group in groups.values():
        name = collapsed(dict.fromkeys(line.name for line in group))
        slopes = sorted(line.slope for line in group if line.slope is not None)
        parts = []
        if slopes:
            parts.append(f"slope {_signed(slopes[0])}" + (f" to {_signed(slopes[-1])}" if len(slopes) > 1 else ""))
            if group[0].expected:
                parts.append(f"expected {group[0].expected:+g}")
        if steps := sorted({line.step for line in group if line.step}):
            parts.append(f"step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}")
        rows.append([_named(name), group[0].role, ", ".join(parts)])
    return rows


def _task(config: Config) -> Task:
    """The task to check. Every size is validated before anything runs."""
    from muxfer.data.source import load_dataset

    task = config.task
    task = dataclasses.replace(task, model=with_num_classes(task.model, load_dataset(task.data).num_classes))
    for size in config.check.sizes:
        try:
            with_setting(task, {config.check.axis: size})
        except BadInput as error:
            raise BadInput(f"check.sizes holds {size}: {error}") from error
    return task


def _control(task: Task, parametrization: str) -> Task:
    optimizer = {**to_plain(task.optimizer), "parametrization": parametrization}
    return dataclasses.replace(
        task,
        model=dataclasses.replace(task.model, base_depth=None),
        optimizer=parse_part("optimizer", {"optimizer": optimizer}),
    )


def _coordinates(task: Task, request: Check, *, seeds: int) -> CoordinateCheck:
    from muxfer.models.coordinate_run import check_coordinates

    return check_coordinates(
        task,
        axis=request.axis,
        sizes=request.sizes,
        steps=request.steps,
        seeds=range(seeds),
        base_lr=request.base_lr,
        batch_size=request.batch_size,
    )
