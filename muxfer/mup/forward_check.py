"""What shapes can't tell: a number in the forward that changes with the width, so that a plan would be wrong.

A forward that multiplies by sqrt(width), or scales attention logits by 1/sqrt(width), has the right shapes and the
wrong sizes; a residual stream can hide it from any measurement of outputs. So the calls themselves are compared: on the
meta device, between two widths, the plain numbers given to every call that a trainable tensor enters.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from muxfer.errors import BadInput

ARITHMETIC = ("mul", "div", "add", "sub", "pow")
"""Calls whose whole numbers count too; elsewhere they are sizes, which may grow."""

Call = tuple[str, tuple[float, ...]]


class _Numbers(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = [*args, *(kwargs or {}).values()]
        name = getattr(func, "__name__", str(func))
        if name != "__get__" and any(isinstance(value, torch.Tensor) and value.requires_grad for value in values):
            kinds = (int, float) if any(part in name for part in ARITHMETIC) else (float,)
            self.calls.append((name, tuple(value for value in values if type(value) in kinds)))
        return func(*args, **(kwargs or {}))


def refuse_changing_forward(prepare: Callable[[int], Callable[[], Any]], *, width: int, other_width: int) -> None:
    """`prepare(w)` builds the model of width w on the meta device and returns its forward. Raises BadInput."""
    seen = {}
    for each in (width, other_width):
        forward = prepare(each)
        with _Numbers() as numbers:
            forward()
        seen[each] = numbers.calls
    for (name, small), (other_name, large) in zip(seen[width], seen[other_width], strict=False):
        if (name, small) != (other_name, large):
            raise BadInput(
                f"the forward calls {_shown(name, small)} at width {width} and {_shown(other_name, large)} at"
                f" {other_width}: it depends on the width in a way that the plan cannot see; keep it fixed"
                " (attention logits: 1/sqrt(head_dim))"
            )
    if len(seen[width]) != len(seen[other_width]):
        raise BadInput(
            f"the forward makes {len(seen[width])} calls at width {width} and {len(seen[other_width])} at width"
            f" {other_width}: only sizes may differ"
        )


def _shown(name: str, numbers: tuple[float, ...]) -> str:
    return f"{name}({', '.join(format(number, '.4g') for number in numbers)})"
