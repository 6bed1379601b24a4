"""Finds which dimensions grow with the width, and from that every parameter's role.

A model is built on the meta device at the base width, at another width and at the width used. Two widths alone could
agree in a dimension that grows. Roles follow from which of a weight's fan-in and fan-out grow:

    both: hidden    fan-out alone, or a vector: input    fan-in alone: readout    none: finite

Refuses, naming the parameter: nothing that grows, three growing dimensions, growth out of proportion to the width, a
layout that shapes cannot tell, one tensor in two roles, a reparametrized weight, a growing head dim. Also refuses a
forward that depends on the width through a number that a module keeps, as a float or as a scalar buffer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from muxfer.errors import BadInput, nearest
from muxfer.mup.initialization import Recorder, measure, recording
from muxfer.mup.rules import ROLES, Initialization

Build = Callable[[int], nn.Module]

VECTOR_TABLES = (
    *("pos_embed", "pos_embedding", "position_embedding", "position_embeddings", "positional_embedding"),
    *("cls_token", "class_token", "mask_token", "dist_token", "register_tokens", "bias_k", "bias_v"),
    *("scale_shift_table", "modulation"),
)
"""Last names of raw parameters [..., width] that are added or multiplied entry by entry. Their role is input."""
_MHA_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_HEADS = (("num_heads", "embed_dim"), ("heads", "inner_dim"), ("num_heads", "inner_dim"), ("num_heads", "dim"))


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One trainable tensor at one width. `fans` has (fan-in, fan-out) by each of its names, or None: layout unknown."""

    shape: tuple[int, ...]
    fans: Mapping[str, tuple[int, int] | None]
    initialization: Initialization | None


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a plan reads from a model at one width: its weights by first name, and head dims by attention module.
    `numbers` are the floats that its modules keep, by module and name: attributes, and scalar buffers where known.
    """

    width: int
    weights: Mapping[str, Weight]
    head_dims: Mapping[str, int]
    numbers: Mapping[tuple[str, str], float]


def outline(build: Build, width: int) -> Outline:
    """Build on the meta device, recording how each parameter is initialized, and read the shapes."""
    scalars = _Scalars()
    with torch.random.fork_rng(devices=[]), torch.device("meta"), scalars, recording() as recorder:
        model = _built(build, width)
    _refuse_reparametrized(model)
    names: dict[int, list[str]] = {}
    parameters: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(name)
            parameters[id(parameter)] = parameter
    weights = {
        aliases[0]: Weight(
            shape=tuple(parameters[key].shape),
            fans={name: _fans(model, name, parameters[key]) for name in aliases},
            initialization=recorder.initialization(parameters[key]),
        )
        for key, aliases in names.items()
    }
    head_dims = {name: dim for name, module in model.named_modules() if (dim := _head_dim(module)) is not None}
    return Outline(width=width, weights=weights, head_dims=head_dims, numbers=_numbers(model, recorder, scalars))


def measure_initializations(build: Build, width: int, names: Sequence[str]) -> dict[str, Initialization]:
    """Initializations that could not be recorded, measured on one real model on the CPU, seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parameters = dict(_built(build, width).named_parameters())
    return {name: measure(parameters[name]) for name in names}


def infer_roles(base: Outline, other: Outline, used: Outline, declared: Mapping[str, str]) -> dict[str, str]:
    """Role of every parameter by name; `declared` roles win over shapes. `used` may be `base` or `other` itself."""
    for outlined in (other, used):
        _refuse_different_layout(base, outlined)
    known = {alias for weight in base.weights.values() for alias in weight.fans}
    for name, role in declared.items():
        if name not in known:
            raise BadInput(f"role declared for {name!r}, which is no parameter of the model; {nearest(name, known)}")
        if role not in ROLES:
            raise BadInput(f"unknown role {role!r} declared for {name}; {nearest(role, ROLES)}")
    if all(weight.shape == other.weights[name].shape for name, weight in base.weights.items()):
        raise BadInput(
            f"nothing grows between widths {base.width} and {other.width}; the builder must use the width that it gets"
        )
    _refuse_growing_heads(base, other)
    _refuse_growing_heads(base, used)
    _refuse_changing_numbers(base, other)
    _refuse_changing_numbers(base, used)
    return {name: _role(name, base, other, used, declared) for name in base.weights}


def _role(name: str, base: Outline, other: Outline, used: Outline, declared: Mapping[str, str]) -> str:
    small, large = base.weights[name], other.weights[name]
    growing = [i for i, (a, b) in enumerate(zip(small.shape, large.shape, strict=True)) if a != b]
    for outlined in (other, used):
        _refuse_out_of_proportion(name, growing, base, outlined)
    if len(growing) > 2:
        raise BadInput(
            f"{name} {list(small.shape)} grows in {len(growing)} dimensions; at most 2 have a rule:"
            " keep the others fixed"
        )
    roles = {
        alias: declared[alias] if alias in declared else _shape_role(alias, small, large, growing)
        for alias in small.fans
    }
    if len(set(roles.values())) > 1:
        described = ", ".join(f"{alias} ({role})" for alias, role in roles.items())
        raise BadInput(f"one tensor in two roles: {described}; untie them")
    return roles[name]


def _shape_role(alias: str, small: Weight, large: Weight, growing: list[int]) -> str:
    if not growing:
        return "finite"
    if len(small.shape) == 1:
        return "input"
    fans, grown = small.fans[alias], large.fans[alias]
    if fans is not None and grown is not None and max(growing) <= 1:
        role = {(True, True): "hidden", (False, True): "input", (True, False): "readout"}.get(
            (fans[0] != grown[0], fans[1] != grown[1])
        )
        if role is not None:
            return role
    if alias.split(".")[-1] in VECTOR_TABLES and growing == [len(small.shape) - 1]:
        return "input"
    raise BadInput(
        f"{alias} {list(small.shape)} grows to {list(large.shape)}, and its module does not say which side is"
        f" the input; declare its role: {', '.join(ROLES)}"
    )


def _fans(model: nn.Module, name: str, parameter: nn.Parameter) -> tuple[int, int] | None:
    """Fan-in and fan-out in channels, without kernels: only which of them grow is used."""
    owner, _, local = name.rpartition(".")
    module = model.get_submodule(owner)
    if local == "weight":
        if isinstance(module, _ConvNd):
            # The shape does not tell: a transposed one is [in, out/groups, ...], a depthwise one has fan-in 1.
            return module.in_channels // module.groups, module.out_channels
        if isinstance(module, nn.Linear):
            return parameter.shape[1], parameter.shape[0]
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            return 1, parameter.shape[1]
    if local in _MHA_WEIGHTS and isinstance(module, nn.MultiheadAttention):
        return parameter.shape[1], parameter.shape[0]
    return None


def _head_dim(module: nn.Module) -> int | None:
    head_dim = getattr(module, "head_dim", None)
    if isinstance(head_dim, int):
        return head_dim
    for heads_name, width_name in _HEADS:
        heads, width = getattr(module, heads_name, None), getattr(module, width_name, None)
        if isinstance(heads, int) and isinstance(width, int) and heads > 0:
            return width // heads
    return None


class _Scalars(TorchFunctionMode):
    """Remembers the number in torch.tensor(0.25). A meta tensor does not keep it, and a recording does not see it.
    Enter it before the recording, which inspects the frame that calls it. It keeps the tensors: a freed tensor's id
    would be used again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[torch.Tensor, float]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.scalar_tensor) and args and isinstance(args[0], float):
            self._known[id(out)] = (out, float(args[0]))
        return out

    def value(self, tensor: torch.Tensor) -> float | None:
        return self._known[id(tensor)][1] if id(tensor) in self._known else None


def _numbers(model: nn.Module, recorder: Recorder, scalars: _Scalars) -> dict[tuple[str, str], float]:
    """Floats of every module, by module and attribute, and buffers of one entry where the value is known. A meta tensor
    has no value. Fills and the argument of torch.tensor are known. Results of tensor arithmetic and values from numpy
    are not.
    """
    numbers = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, float):
                numbers[name, key] = float(value)
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.numel() == 1 and buffer.is_floating_point():
                initialization, number = recorder.initialization(buffer), scalars.value(buffer)
                if number is None and initialization is not None and initialization.std == 0:
                    number = initialization.mean
                if number is not None:
                    numbers[name, key] = number
    return numbers


def _built(build: Build, width: int) -> nn.Module:
    try:
        return build(width)
    except (NotImplementedError, RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(
            f"the model cannot be built at width {width}: {reason}; its builder must take the base width, another"
            " and the target, on the meta device"
        ) from error


def _refuse_reparametrized(model: nn.Module) -> None:
    for name, module in model.named_modules():
        own = module._parameters
        if is_parametrized(module) or "weight_orig" in own or {"weight_g", "weight_v"} <= set(own):
            raise BadInput(
                f"{name or 'the model'} has a reparametrized weight (weight_norm, spectral_norm): the table has no rule"
                " for its parts; remove it"
            )


def _refuse_different_layout(base: Outline, other: Outline) -> None:
    differ = sorted(set(base.weights) ^ set(other.weights))
    if differ:
        raise BadInput(
            f"{differ[0]} is a parameter at only one of the widths {base.width} and {other.width};"
            " only the width may differ, not the depth"
        )
    for name, weight in base.weights.items():
        small, large = len(weight.shape), len(other.weights[name].shape)
        if small != large:
            raise BadInput(
                f"{name} has {small} dimensions at width {base.width} and {large} at {other.width}; fix them"
            )


def _refuse_out_of_proportion(name: str, growing: list[int], base: Outline, other: Outline) -> None:
    small, large = base.weights[name].shape, other.weights[name].shape
    for i, (a, b) in enumerate(zip(small, large, strict=True)):
        if i in growing and a * other.width != b * base.width:
            raise BadInput(
                f"{name}: dimension {i} is {a} at width {base.width} and {b} at {other.width}, out of proportion;"
                f" make it {a * other.width / base.width:g} there"
            )
        if i not in growing and a != b:
            raise BadInput(
                f"{name}: dimension {i} is {a} at width {base.width} and {b} at {other.width}, but does not grow with"
                " the width; keep it fixed"
            )


def _refuse_growing_heads(base: Outline, other: Outline) -> None:
    for name, head_dim in base.head_dims.items():
        grown = other.head_dims.get(name, head_dim)
        if grown != head_dim:
            raise BadInput(
                f"{name or 'the model'}: head dim {head_dim} at width {base.width} and {grown} at {other.width};"
                " fix the head dim and let the number of heads grow"
            )


def _refuse_changing_numbers(base: Outline, other: Outline) -> None:
    for (name, key), number in base.numbers.items():
        changed = other.numbers.get((name, key), number)
        if not (math.isclose(changed, number, rel_tol=1e-9) or (math.isnan(changed) and math.isnan(number))):
            raise BadInput(
                f"{name or 'the model'}: its attribute {key} is {number:.3g} at width {base.width} and {changed:.3g} at"
                f" {other.width}: the forward depends on the width in a way that the plan cannot see; keep it fixed"
                " (attention logits: 1/sqrt(head_dim))"
            )
