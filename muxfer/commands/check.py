"""The check command: does a model keep its coordinates as it grows? A verdict, what each failure means, a figure.

The checked parametrization stands beside a control that is known to fail: a check that cannot fail says nothing. Exit
code 6 where it does not pass. `muxfer.coordinates` measures, `muxfer.mup.slopes` judges; here it is put into words.
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
from muxfer.files import validate_writable
from muxfer.models.count import validate_forward
from muxfer.mup.slopes import MEASURES, TOLERANCE, CoordinateCheck, Line
from muxfer.report.figures import replace_file
from muxfer.report.figures.check import coordinate_figure
from muxfer.study.resolve import PrintLine, output_folder

CONTROL = {"width": "standard", "depth": "mup"}
"""What does not scale along the axis, drawn beside what does."""

TITLES = {
    "change": "outputs change",
    "output_at_init": "fresh outputs",
    "update": "first updates",
    "parameter_at_init": "fresh parameters",
}


def check(name: str, overrides: Sequence[str], *, print_line: PrintLine) -> CommandResult:
    """The coordinate check of a sweep's or a configured model, its figure, and the exit code that scripts read."""
    config = parse_without_grid(compose_model(name, overrides))
    task = _task(config)
    validate_forward(task.model)
    folder = output_folder(config) / f"check-{name}"
    validate_writable(folder)
    request = config.check
    print_line(f"{task.optimizer.parametrization}: {len(request.sizes) * request.seeds} runs of {request.steps} steps")
    found = _coordinates(task, request, seeds=request.seeds)
    panels = [found]
    control = CONTROL[request.axis]
    if control != found.parametrization:
        print_line(f"{control}, the control: {len(request.sizes)} runs of {request.steps} steps")
        panels.append(_coordinates(_control(task, control), request, seeds=1))
    stem = folder / f"{found.parametrization}-{found.axis}"
    paths = coordinate_figure(panels, stem, title=f"{model_name(task.model)}: coordinates by {found.axis}")
    data = check_data(found, model=model_name(task.model), width=task.model.width)
    lines = [check_text(found, model=model_name(task.model)), ""]
    data["control"] = None
    for beside in panels[1:]:
        data["control"] = {"parametrization": beside.parametrization, "verdict": beside.verdict}
        told = "as it should" if not beside.passed else "too, so this check could not have told: widen check.sizes"
        lines.append(f"control: {beside.parametrization} {'fails' if not beside.passed else 'passes'} {told}")
    data["figure"] = str(paths[0])
    replace_file(stem.with_suffix(".json"), json.dumps(data, indent=1).encode())
    lines.append(f"figure:  {paths[0]}")
    return CommandResult(data=data, text="\n".join(lines), exit_code=0 if found.passed else NotConfirmed.exit_code)


def check_data(found: CoordinateCheck, *, model: str, width: int) -> dict[str, Any]:
    """The JSON of the command, as the command line's contract has it; `slope` null: zero at every size."""
    return {
        "model": model,
        "verdict": found.verdict,
        "parametrization": found.parametrization,
        "axis": found.axis,
        "widths": list(found.sizes) if found.axis == "width" else [width],
        "sizes": list(found.sizes),
        "steps": found.steps,
        "seeds": found.seeds,
        "loss_change": found.loss_change,
        "measures": found.measures,
        "modules": [
            {
                "name": line.name,
                "measure": line.measure,
                "step": line.step,
                "role": line.role,
                "expected": line.expected,
                "slope": line.slope,
                "low": line.low,
                "high": line.high,
                "pass": line.passed,
            }
            for line in found.lines
        ],
    }


def check_text(found: CoordinateCheck, *, model: str) -> str:
    """The verdict, one row a measure with its worst slope, and every failure under what it means."""
    sizes = ", ".join(map(str, found.sizes))
    seeds = f"{found.seeds} seed{'s' if found.seeds > 1 else ''}"
    text = [
        f"{model}: {found.parametrization}, {found.axis} {sizes}: {found.verdict}",
        f"{found.steps} steps, {seeds}; the loss moved by at most {100 * found.loss_change:.1f} %",
        "",
        f"        {'slopes over log ' + found.axis:<24}{'failed':>10}   worst",
    ]
    for measure in MEASURES:
        lines = [line for line in found.lines if line.measure == measure]
        failed = sum(not line.passed for line in lines)
        mark = "pass" if not failed else "FAIL"
        text.append(f"  {mark}  {TITLES[measure]:<24}{f'{failed}/{len(lines)}':>10}   {_worst(lines)}")
    still = [line.name for line in found.lines if line.measure == "update" and line.slope is None and line.passed]
    if still:
        names = ", ".join(still[:3]) + (f" and {len(still) - 3} more" if len(still) > 3 else "")
        text += ["", f"no gradient in {found.steps} steps, so their updates are not judged: {names}"]
    for meaning, lines in failures(found).items():
        text += ["", f"{meaning}:"]
        rows = _rows(lines)
        width = max(len(row[0]) for row in rows)
        text += [f"  {name:<{width}}  {told}".rstrip() for name, told in rows]
    return "\n".join(text)


def failures(found: CoordinateCheck) -> dict[str, list[Line]]:
    """The lines that failed, by what that means in plain words; causes before what follows from them."""
    failed = [line for line in found.lines if not line.passed]
    grouped: dict[str, list[Line]] = {}
    for line in sorted(failed, key=lambda line: _CAUSES_FIRST.index(line.measure)):
        grouped.setdefault(_meaning(line, found), []).append(line)
    return grouped


_CAUSES_FIRST = ("parameter_at_init", "update", "output_at_init", "change")


def _meaning(line: Line, found: CoordinateCheck) -> str:
    axis, role = found.axis, line.role
    title = TITLES[line.measure]
    if line.slope is None:
        return f"{title}: zero or not finite, at some {axis}s or for some seeds only"
    up = line.slope > line.expected
    if line.measure in ("parameter_at_init", "update"):
        number = "initial deviation" if line.measure == "parameter_at_init" else "learning rate"
        should_fall = line.expected < 0 or (line.measure == "update" and role in ("hidden", "readout"))
        falls = f"falls too {'slowly' if up else 'fast'}" if should_fall else "grows" if up else "falls"
        return f"{title}: the {number} of {role} parameters {falls} with the {axis}"
    unseen = f"the forward depends on the {axis} in a way that the plan cannot see"
    starts_right = _starts_right(line.name, found)
    if line.measure == "output_at_init":
        if starts_right:
            return f"{title}: {unseen}, for the parameters start right"
        return f"{title}: {'too large' if up else 'too small'} at the larger {axis}s; see the fresh parameters"
    moves = f"{title}: {'more' if up else 'less'} at the larger {axis}s"
    if not found.measures["update"]:
        return f"{moves}; see the first updates"
    return f"{moves}, though the first updates pass: {unseen}" if starts_right else moves


def _starts_right(module: str, found: CoordinateCheck) -> bool:
    """Whether every parameter of the module (of all, where it has none of its own) passes at initialization."""
    inits = [line for line in found.lines if line.measure == "parameter_at_init"]
    own = [line for line in inits if module == "" or line.name.startswith(f"{module}.")]
    return all(line.passed for line in own or inits)


def _worst(lines: Sequence[Line]) -> str:
    """The slope that is farthest from what is expected."""
    sloped = [(abs(line.slope - line.expected), line) for line in lines if line.slope is not None]
    if not sloped:
        return "all zero"
    distance, line = max(sloped, key=lambda pair: pair[0])
    allowed = f"{line.expected:+g} ± {TOLERANCE[line.measure]:g}" if line.expected else f"± {TOLERANCE[line.measure]:g}"
    at = f", step {line.step}" if line.step else ""
    few = ", within the error of few draws" if line.passed and distance > TOLERANCE[line.measure] else ""
    return f"{_signed(line.slope)} ({allowed}{few}) {_named(line.name)}{at}"


def _signed(value: float | None) -> str:
    return f"{round(value or 0.0, 2) + 0.0:+.2f}"


def _named(name: str) -> str:
    return name or "(the model)"


def _rows(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """One row for lines that differ in the number of their block or in the step alone."""
    alike: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        head, number, tail = numbered(line.name)
        alike.setdefault((head, bool(number), tail, line.role), []).append(line)
    rows = []
    for several in alike.values():
        name = collapsed(dict.fromkeys(line.name for line in several))
        slopes = sorted(line.slope for line in several if line.slope is not None)
        told = several[0].role
        if slopes:
            told = f"{told:<8} slope {_signed(slopes[0])}" + (f" to {_signed(slopes[-1])}" if len(slopes) > 1 else "")
            told += f", expected {several[0].expected:+g}" if several[0].expected else ""
        if steps := sorted({line.step for line in several if line.step}):
            told += f", step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"
        rows.append((_named(name), told))
    return rows


def _task(config: Config) -> Task:
    """The checked task, tried at every size before anything runs."""
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
