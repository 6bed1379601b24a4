"""The coordinate check: does a parametrized model behave alike at every width? Measures slopes over log width.

Four measures are taken of every module and parameter (see slopes.py). Each sees faults that the others miss, as
breaking the rules one by one has shown. This module knows no family, no data and no configuration: a run is anything
that can take a step. Slopes cannot show faults of decay, eps, clipping and the schedule; those have tests of their own.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from muxfer.errors import BadInput
from muxfer.mup.rules import ScalePlan
from muxfer.mup.slopes import MEASURES, CoordinateCheck, Key, Kind, judge

EARLY_STEPS = (1, 2, 3)
STEP = "step"
"""Key of RMS(dp) of a matrix's first update. It has no line; it tells a wrong rate from an incoherent gradient."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One freshly scaled model at one size, and how it is trained: a loss by step, and the loss on a fixed batch."""

    model: nn.Module
    plan: ScalePlan
    optimizer: torch.optim.Optimizer
    loss: Callable[[int], torch.Tensor]
    probe: Callable[[], torch.Tensor]  # The loss on a batch that is never trained on
    branch_ends: Collection[str] = ()  # Parameters that hold the depth factor, under depth scaling


def coordinate_check(
    make_run: Callable[[int, int], Run], *, sizes: Sequence[int], steps: int, seeds: Sequence[int], axis: str = "width"
) -> CoordinateCheck:
    """Train `make_run(size, seed)` for `steps` steps at every size and seed, and judge the slopes. `sizes` are widths
    or depths by `axis`. Runs follow one another. Raises BadInput where a run diverges: then the rate is not small, and
    no slope means anything.
    """
    values: dict[Key, dict[int, list[float]]] = {}
    kinds: dict[tuple[str, str], Kind] = {}
    loss_change = 0.0
    plan = None
    for size in sorted(sizes):
        for seed in seeds:
            run = make_run(size, seed)
            plan = run.plan
            tally, change = _measure(run, steps=steps, axis=axis)
            loss_change = max(loss_change, change)
            for key, value in tally.values().items():
                values.setdefault(key, {}).setdefault(size, []).append(value)
            kinds = tally.kinds | kinds  # kinds are those of the smallest size, which comes first
    assert plan is not None
    lines = [
        judge(
            key,
            by_size,
            kinds[key[:2]],
            sizes=sizes,
            num_seeds=len(seeds),
            axis=axis,
            steps=values.get((STEP, key[1], None)) if key[0] == "update" else None,
        )
        for key, by_size in values.items()
        if key[0] != STEP
    ]
    order = {measure: i for i, measure in enumerate(MEASURES)}
    return CoordinateCheck(
        parametrization=plan.parametrization,
        axis=axis,
        sizes=tuple(sizes),
        steps=steps,
        seeds=len(seeds),
        lines=tuple(sorted(lines, key=lambda line: (order[line.measure], line.step or 0))),
        loss_change=loss_change,
    )


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One call of a module in a forward: its first input (None where that was no tensor) and its output."""

    x: torch.Tensor | None
    out: torch.Tensor


def _measure(run: Run, *, steps: int, axis: str) -> "tuple[_Tally, float]":
    """The values of one run, and how much the loss changed relative to the first."""
    model, plan = run.model, run.plan
    tally = _Tally(plan, run.branch_ends, axis=axis)
    parameters = {name: p for name, p in model.named_parameters() if name in plan.scales}
    owners = _owners(model, parameters)
    fresh, first_loss = _probed(run)
    last_loss = first_loss
    for name, parameter in parameters.items():
        tally.add("parameter_at_init", name, parameter.detach())
    for name, calls in fresh.items():
        _output_at_init(tally, name, model.get_submodule(name), calls, owners)
    waiting = dict(parameters)
    for step in range(1, steps + 1):
        before = {name: parameter.detach().clone() for name, parameter in waiting.items()}
        run.optimizer.zero_grad(set_to_none=True)
        loss = run.loss(step - 1)
        if not torch.isfinite(loss):
            raise BadInput(f"the coordinate check diverged at step {step}: its rate must be small; lower check.base_lr")
        loss.backward()
        run.optimizer.step()
        moved = [name for name, p in waiting.items() if p.grad is not None and bool(p.grad.any())]
        if moved or step in (*EARLY_STEPS, steps):
            now, last_loss = _probed(run)
            for name in moved:
                _update(tally, name, waiting.pop(name).detach() - before[name], model, now, owners)
            if step in (*EARLY_STEPS, steps):
                for name, calls in now.items():
                    _change(tally, name, step, fresh[name], calls, owners)
    for name, parameter in waiting.items():  # no gradient in any step: a line without a slope
        tally.add("update", name, torch.zeros_like(parameter))
    return tally, abs(last_loss / first_loss - 1)


class _Tally:
    """Collects mean squares by (measure, name, step). Over depths, the blocks of a list count as one."""

    def __init__(self, plan: ScalePlan, branch_ends: Collection[str], *, axis: str) -> None:
        self.plan = plan
        self.branch_ends = branch_ends
        self.axis = axis
        self.kinds: dict[tuple[str, str], Kind] = {}
        self._squares: dict[Key, list[float]] = {}

    def add(
        self,
        measure: str,
        name: str,
        value: torch.Tensor,
        *,
        over: torch.Tensor | None = None,
        step: int | None = None,
        weight: str | None = None,
        is_bare: bool = False,
    ) -> None:
        """Add RMS of `value`, divided by that of `over`. The expected slope follows the role of `weight`."""
        square = value.double().square().mean().item()
        if over is not None:
            square /= max(over.double().square().mean().item(), 1e-300)
        weight = weight or (name if name in self.plan.scales else None)
        role = "" if weight is None else self.plan.scales[weight].role
        is_end = weight is not None and weight in self.branch_ends
        if self.axis == "depth":
            name = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        self.kinds.setdefault(
            (measure, name), Kind(role=role, is_branch_end=is_end, num_entries=value.numel(), is_bare=is_bare)
        )
        self._squares.setdefault((measure, name, step), []).append(square)

    def values(self) -> dict[Key, float]:
        return {key: math.sqrt(sum(squares) / len(squares)) for key, squares in self._squares.items()}


def _owners(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """The weight of every module that is one linear map or table, by the module's name."""
    return {
        name.rpartition(".")[0]: name
        for name in parameters
        if name.endswith(".weight")
        and isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear | nn.Conv2d | nn.Embedding)
    }


def _probed(run: Run) -> tuple[dict[str, list[_Call]], float]:
    """Run the fixed batch in evaluation mode. Returns the calls of every module that has parameters, and the loss."""
    calls: dict[str, list[_Call]] = {}
    was_training = run.model.training
    run.model.eval()
    with torch.no_grad(), _recording_calls(run.model, calls):
        loss = run.probe().item()
    run.model.train(was_training)
    return calls, loss


@contextmanager
def _recording_calls(model: nn.Module, calls: dict[str, list[_Call]]) -> Iterator[None]:
    def recorder(name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
            x = inputs[0] if inputs and isinstance(inputs[0], torch.Tensor) else None
            outs = [out] if isinstance(out, torch.Tensor) else out if isinstance(out, tuple) else []
            calls.setdefault(name, []).extend(
                _Call(x=x, out=part.detach().clone()) for part in outs if isinstance(part, torch.Tensor)
            )

        return record

    handles = [
        module.register_forward_hook(recorder(name))
        for name, module in model.named_modules()
        if any(True for _ in module.parameters())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _output_at_init(
    tally: _Tally, name: str, module: nn.Module, calls: Sequence[_Call], owners: Mapping[str, str]
) -> None:
    if name in owners:
        for call in calls:
            mapped = _mapped(module, module.weight, call.x)
            if mapped is not None and call.x is not None:
                tally.add("output_at_init", name, mapped, over=call.x, weight=owners[name])
                if tally.plan.scales[owners[name]].role in ("hidden", "readout"):  # x is as wide as the model
                    tally.add("output_at_init", f"{name} (input)", call.x)
            elif isinstance(module, nn.Embedding):
                tally.add("output_at_init", name, call.out, weight=owners[name])
    elif _is_trunk(tally, name, module):
        for call in calls:
            tally.add("output_at_init", name, call.out)


def _is_trunk(tally: _Tally, name: str, module: nn.Module) -> bool:
    """Whether a compound module's output has the size of the trunk. It has, unless a parameter inside is a readout."""
    inside = [
        tally.plan.scales[f"{name}.{own}"]
        for own, _ in module.named_parameters()
        if f"{name}.{own}" in tally.plan.scales
    ]
    if not name or any(scale.role == "readout" for scale in inside):
        return False
    return tally.axis == "width" or name.rpartition(".")[2].isdigit()


def _change(
    tally: _Tally, name: str, step: int, before: Sequence[_Call], now: Sequence[_Call], owners: Mapping[str, str]
) -> None:
    if tally.axis == "depth" and name not in owners and name and not name.rpartition(".")[2].isdigit():
        return
    for old, new in zip(before, now, strict=True):
        tally.add("change", name, new.out - old.out, step=step, weight=owners.get(name))


def _update(
    tally: _Tally,
    name: str,
    delta: torch.Tensor,
    model: nn.Module,
    calls: Mapping[str, Sequence[_Call]],
    owners: Mapping[str, str],
) -> None:
    owner = name.rpartition(".")[0]
    if owners.get(owner) == name and owner in calls:
        for call in calls[owner]:
            mapped = _mapped(model.get_submodule(owner), delta, call.x)
            if mapped is not None:
                tally.add("update", name, mapped, over=call.x)
                tally.add(STEP, name, delta)
                return
    tally.add("update", name, delta, is_bare=True)


def _mapped(module: nn.Module, weight: torch.Tensor | nn.Module, x: torch.Tensor | None) -> torch.Tensor | None:
    """The weight's own linear map of x, without bias; None for a table."""
    assert isinstance(weight, torch.Tensor)
    if x is None or not x.is_floating_point():
        return None
    with torch.no_grad():
        if isinstance(module, nn.Linear):
            return F.linear(x, weight)
        if isinstance(module, nn.Conv2d):
            return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
    return None
