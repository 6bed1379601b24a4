"""Refuses a forward that uses a number which changes with the width. No plan can be right for it.

Shapes cannot show this. A forward that multiplies by sqrt(width), or scales attention logits by 1/sqrt(width), has the
right shapes and the wrong sizes. A residual stream can hide it from any measurement of outputs. So the calls themselves
are compared, on the meta device and between two widths. What is compared are the plain numbers that every call with a
trainable tensor gets.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from muxfer.errors import BadInput

ARITHMETIC = ("mul", "div", "add", "sub", "pow")
"""Calls whose integers are compared too. In other calls integers are sizes, which may grow."""
Call = tuple[str, tuple[float, ...]]


class _CallRecorder(TorchFunctionMode):
    """Records every call that a trainable tensor enters: its name and the plain numbers among its arguments."""

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
    """Raise BadInput where a call or a number differs. `prepare(w)`: the forward of width w on the meta device."""
    calls, other_calls = (_recorded_calls(prepare(each)) for each in (width, other_width))
    for (name, small), (other_name, large) in zip(calls, other_calls, strict=False):
        if (name, small) != (other_name, large):
            raise BadInput(
                f"the forward calls {_shown(name, small)} at width {width} and {_shown(other_name, large)} at"
                f" {other_width}: it depends on the width in a way that the plan cannot see; keep it fixed"
                " (attention logits: 1/sqrt(head_dim))"
            )
    if len(calls) != len(other_calls):
        raise BadInput(
            f"the forward makes {len(calls)} calls at width {width} and {len(other_calls)} at width {other_width}:"
            " only sizes may differ"
        )


def _recorded_calls(forward: Callable[[], Any]) -> list[Call]:
    with _CallRecorder() as recorder:
        forward()
    return recorder.calls


def _shown(name: str, numbers: tuple[float, ...]) -> str:
    return f"{name}({', '.join(format(number, '.4g') for number in numbers)})"
