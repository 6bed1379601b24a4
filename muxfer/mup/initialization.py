"""Records how a model initializes itself, from the random and fill calls of its constructor on the meta device.

Measuring would be worse: deviations of small biases spread by up to 22 %, and a base width of 1920 is 2.5B parameters.
The recorded calls give the exact distribution and take no memory. An unrecognised call leaves the tensor's
distribution unknown. It is then measured, never guessed. Overwriting a part with the mean (an embedding's padding row)
keeps the distribution of the other entries.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from statistics import NormalDist
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from muxfer.mup.rules import Initialization

_GAUSS = NormalDist()


@dataclass(frozen=True, kw_only=True)
class _Draw:
    """Distribution of a storage's values in `low` to `high`. `entire` is False where a part equals the mean instead."""

    mean: float
    std: float
    low: float
    high: float
    uniform: bool = False
    entire: bool = True


def _constant(value: float) -> _Draw:
    return _Draw(mean=value, std=0.0, low=value, high=value)


def _normal(mean: float, std: float) -> _Draw:
    return _Draw(mean=mean, std=std, low=-math.inf, high=math.inf)


def _uniform(low: float, high: float) -> _Draw:
    return _Draw(mean=(low + high) / 2, std=(high - low) / math.sqrt(12), low=low, high=high, uniform=True)


def _truncated(mean: float, std: float, low: float, high: float) -> _Draw:
    """A normal distribution truncated at low and high (Johnson, Kotz and Balakrishnan 1994, section 13.10.1)."""
    a, b = (low - mean) / std, (high - mean) / std
    density_a, density_b = _GAUSS.pdf(a), _GAUSS.pdf(b)
    mass = _GAUSS.cdf(b) - _GAUSS.cdf(a)
    shift = (density_a - density_b) / mass
    edge_a, edge_b = (x * density if density else 0.0 for x, density in ((a, density_a), (b, density_b)))
    variance = 1 + (edge_a - edge_b) / mass - shift**2
    return _Draw(mean=mean + std * shift, std=std * math.sqrt(variance), low=low, high=high)


def _affine(draw: _Draw, factor: float, offset: float) -> _Draw:
    low, high = sorted((draw.low * factor + offset, draw.high * factor + offset)) if factor else (offset, offset)
    return replace(draw, mean=draw.mean * factor + offset, std=draw.std * abs(factor), low=low, high=high)


def _erfinv(draw: _Draw) -> _Draw | None:
    """erfinv of uniform values in (-1, 1): a truncated normal, as in timm's trunc_normal_. None for other draws."""
    if not draw.uniform or not -1 <= draw.low < draw.high <= 1:
        return None
    low, high = (
        math.copysign(math.inf, x) if abs(x) == 1 else _GAUSS.inv_cdf((1 + x) / 2) for x in (draw.low, draw.high)
    )
    return _affine(_truncated(0.0, 1.0, low, high), math.sqrt(0.5), 0.0)


def _clamp(draw: _Draw, low: Any = None, high: Any = None) -> _Draw | None:
    """The draw itself where all of it within 8 deviations, up to rounding, is inside the bounds. Else None: unknown."""
    least, most = max(draw.low, draw.mean - 8 * draw.std), min(draw.high, draw.mean + 8 * draw.std)
    slack = 1e-6 * (most - least)
    inside = (low is None or least >= low - slack) and (high is None or most <= high + slack)
    return draw if inside else None


def _filled(value: Any) -> _Draw | None:
    return _constant(float(value)) if isinstance(value, Real) else None


_Change = Callable[..., _Draw | None]

_WRITES: Mapping[str, _Change] = {
    "uniform_": lambda low=0.0, high=1.0, **_: _uniform(low, high),
    "normal_": lambda mean=0.0, std=1.0, **_: _normal(mean, std),
    "fill_": lambda value, **_: _filled(value),
    "zero_": lambda **_: _constant(0.0),
}
_FACTORIES: Mapping[str, _Change] = {
    **dict.fromkeys(("zeros", "new_zeros", "zeros_like"), lambda *_: _constant(0.0)),
    **dict.fromkeys(("ones", "new_ones", "ones_like"), lambda *_: _constant(1.0)),
    **dict.fromkeys(("full", "full_like"), lambda _, value: _filled(value)),
    "new_full": lambda *args: _filled(args[2]),
    **dict.fromkeys(("randn", "randn_like"), lambda *_: _normal(0.0, 1.0)),
    **dict.fromkeys(("rand", "rand_like"), lambda *_: _uniform(0.0, 1.0)),
}
_CHANGES: Mapping[str, Callable[[_Draw, Any], _Draw | None]] = {
    "mul": lambda draw, x: _affine(draw, x, 0.0),
    "div": lambda draw, x: _affine(draw, 1 / x, 0.0),
    "add": lambda draw, x: _affine(draw, 1.0, x),
    "sub": lambda draw, x: _affine(draw, 1.0, -x),
}
_COPIES = ("_to_copy", "clone", "copy_")


class Recorder(TorchDispatchMode):
    """While active, follows the distribution of every storage that is written. Use it through `recording`."""

    def __init__(self) -> None:
        super().__init__()
        self._draws: dict[int, _Draw | None] = {}
        self._alive: list[torch.UntypedStorage] = []  # a freed storage's address is used again

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports torch._dynamo (2 s of CPU time) only to skip this mode

    def initialization(self, tensor: torch.Tensor) -> Initialization | None:
        """How a whole tensor was initialized, or None where that is not known."""
        draw = self._draws.get(_key(tensor)) if _covers(tensor) else None
        return None if draw is None else Initialization(mean=draw.mean, std=draw.std, recorded=draw.entire)

    def write(self, tensor: torch.Tensor, draw: _Draw | None) -> None:
        """Note that the tensor now holds this draw; None: values of unknown distribution."""
        key = _key(tensor)
        self._alive.append(tensor.untyped_storage())
        old = self._draws.get(key)
        if draw is not None and not _covers(tensor) and old is not None and draw.std == 0 and draw.mean == old.mean:
            self._draws[key] = old if old.std == 0 else replace(old, entire=False)
        else:
            self._draws[key] = draw if _covers(tensor) else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[-1]
        out = _drawn_without_values(name, args, kwargs)
        if out is None:
            out = func(*args, **kwargs)
        written = _written(func, args, kwargs)
        for tensor in written:
            self.write(tensor, self._written_draw(name, tensor, args, kwargs))
        if not written and isinstance(out, torch.Tensor):
            draw = self._made_draw(name, out, args, kwargs)
            if draw is not None:
                self.write(out, draw)
        return out

    def _written_draw(self, name: str, tensor: torch.Tensor, args: Any, kwargs: Any) -> _Draw | None:
        if name in _WRITES and tensor is args[0]:
            keywords = {{"from": "low", "to": "high"}.get(key, key): value for key, value in kwargs.items()}
            return _WRITES[name](*args[1:], **keywords)
        old = self._draws.get(_key(tensor))
        if name == "copy_":
            return self._copied(tensor, args[1])
        if old is None or not _covers(tensor):
            return None
        if name == "erfinv_":
            return _erfinv(old)
        if name == "clamp_":
            return _clamp(
                old, *args[1:], **{{"min": "low", "max": "high"}[key]: value for key, value in kwargs.items()}
            )
        if name.removesuffix("_") in _CHANGES and len(args) == 2 and isinstance(args[1], Real) and not kwargs:
            return _CHANGES[name.removesuffix("_")](old, args[1])
        return None

    def _made_draw(self, name: str, out: torch.Tensor, args: Any, kwargs: Any) -> _Draw | None:
        if name in _FACTORIES:
            return _FACTORIES[name](*args)
        if name in _COPIES:
            return self._copied(out, args[0])
        scalar = len(args) == 2 and isinstance(args[0], torch.Tensor) and isinstance(args[1], Real) and not kwargs
        if name in _CHANGES and scalar:
            old = self._draws.get(_key(args[0])) if _covers(args[0]) else None
            return old and _CHANGES[name](old, args[1])
        return None

    def _copied(self, tensor: torch.Tensor, source: torch.Tensor) -> _Draw | None:
        if source.shape != tensor.shape or not _covers(source):
            return None
        return self._draws.get(_key(source))


def _drawn_without_values(name: str, args: Any, kwargs: Any) -> torch.Tensor | None:
    """The result of a fill or draw on the meta device, made without that call. None: the call is another one. torch
    2.15 imports 900 modules for the first such call. Without it, every process that makes a plan saves 2 s of CPU time.
    """
    if name in _WRITES and isinstance(args[0], torch.Tensor) and args[0].is_meta:
        return args[0]
    if name in ("randn", "rand") and torch.device(kwargs.get("device") or "cpu").type == "meta":
        return torch.empty(args[0], dtype=kwargs.get("dtype"), device="meta")
    return None


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _covers(tensor: torch.Tensor) -> bool:
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _written(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    values = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            values += [value] if isinstance(value, torch.Tensor) else list(value or ())
    return values


class _SilentInits(TorchFunctionMode):
    """Notices initializations that do nothing on a meta tensor: the recorder would keep the distribution of before.

    torch 2.15 has four in torch.nn.init (seen 2026-11): trunc_normal_, orthogonal_, dirac_, sparse_. Each first reads
    is_meta. This mode sees that read and the frame of its caller. The arguments of trunc_normal_ give its distribution;
    those of the other three are unknown.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _IS_META:
            frame = sys._getframe(1)
            if frame.f_code.co_filename == nn.init.__file__:
                is_truncated = frame.f_code.co_name == "_no_grad_trunc_normal_"
                arguments = frame.f_locals
                draw = _truncated(*(arguments[name] for name in ("mean", "std", "a", "b"))) if is_truncated else None
                self._recorder.write(args[0], draw)
        return func(*args, **(kwargs or {}))


_IS_META = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record how tensors are initialized that are made on the meta device inside this context."""
    recorder = Recorder()
    with _SilentInits(recorder), recorder:
        yield recorder


def measure(tensor: torch.Tensor) -> Initialization:
    """Mean and deviation of real values. A mean within five standard errors of 0 counts as 0, so zeros stay zeros."""
    values = tensor.detach().double()
    mean, std = values.mean().item(), values.std(correction=0).item()
    if std < 1e-12 * abs(mean):
        std = 0.0
    if std and abs(mean) < 5 * std / math.sqrt(values.numel()):
        mean = 0.0
        std = values.square().mean().sqrt().item()
    return Initialization(mean=mean, std=std, recorded=False)
