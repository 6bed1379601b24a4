"""The multiplier table: each role's init, learning rate, weight decay and eps, relative to the base width.

Pure numbers, no torch. The table is written folded: a constant multiplier f in the forward pass moves into the weight's
own numbers. A readout's f is the output multiplier α over the width ratio m. Folding gives init·f, lr·f, decay/f and
eps/f, and the gradient enters the clipping norm as f·g (Tensor Programs V, appendix J.2.1). So a model needs no readout
module and no attribute.

`completep` is `mup` with depth (Dey et al. 2025, alpha = 1). Every residual branch is multiplied by s = base depth /
depth, which is folded into the branch's end. Gradients inside a branch become s times as large, and so does eps.

Refuses a role or a parametrization that it does not know, and an output multiplier or a depth that has no effect.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from muxfer.errors import BadInput, nearest
from muxfer.trial import content_hash

ROLES = ("input", "hidden", "readout", "finite")
PARAMETRIZATIONS = ("mup", "standard", "stock", "completep")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One parameter's numbers relative to the base width (and the base depth, under `completep`). `init_std` multiplies
    the deviation of the initialization at the base width. `lr`, `weight_decay` (which AdamW multiplies by lr) and `eps`
    multiply the base values. `fold` is the forward multiplier f that the weight holds.
    """

    role: str
    init_std: float
    lr: float
    weight_decay: float
    eps: float
    fold: float


@dataclass(frozen=True, kw_only=True)
class Initialization:
    """How a parameter is initialized: deviation `std` around `mean`, or a constant where `std` is 0. `recorded`: the
    constructor's own calls gave these numbers, and they hold for every entry. It is False where a part of the tensor
    equals the mean (padding rows), and where the numbers were measured. Then values are not validated against them.
    """

    mean: float
    std: float
    recorded: bool = True


@dataclass(frozen=True, kw_only=True)
class ScalePlan:
    """Every parameter's scale at one width, by name, and what is needed to apply it. A function of shapes alone.

    `base_initializations` and `initializations` describe the parameters at the base width and at `width`. None means
    not recorded: then `parametrize` measures the model itself, except at the base width, where it needs no numbers.
    Frozen parameters are in none of the mappings. `base_depth` and `depth` are 1 where the depth scales nothing.
    """

    parametrization: str
    base_width: int
    width: int
    output_multiplier: float
    readout: str | None
    scales: Mapping[str, Scale]
    shapes: Mapping[str, tuple[int, ...]]
    base_initializations: Mapping[str, Initialization | None]
    initializations: Mapping[str, Initialization | None]
    base_depth: int = 1
    depth: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data. Only `completep` plans have depths in it, so that older plans keep their hashes."""
        data = {_RECORDED_KEYS.get(field, field): value for field, value in asdict(self).items()}
        data["shapes"] = {name: list(shape) for name, shape in self.shapes.items()}
        if self.parametrization != "completep":
            del data["base_depth"], data["depth"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ScalePlan":
        fields = {
            **data,
            "scales": {name: Scale(**scale) for name, scale in data["scales"].items()},
            "shapes": {name: tuple(shape) for name, shape in data["shapes"].items()},
        }
        for field, key in _RECORDED_KEYS.items():
            fields[field] = {name: numbers and Initialization(**numbers) for name, numbers in fields.pop(key).items()}
        return cls(**fields)

    @cached_property
    def hash(self) -> str:
        """Content hash: equal plans scale equal models alike."""
        return content_hash(self.to_dict())


_RECORDED_KEYS = {"base_initializations": "base_laws", "initializations": "laws"}
"""The keys that plan records have for these fields. Hashes of recorded plans hold them, so they stay."""


def validate_parametrization(parametrization: str, output_multiplier: float, depth_ratio: float = 1.0) -> None:
    """Refuse what has no rule or no effect, before any model is built."""
    if parametrization not in PARAMETRIZATIONS:
        raise BadInput(f"unknown parametrization {parametrization!r}; {nearest(parametrization, PARAMETRIZATIONS)}")
    if not 0 < output_multiplier < math.inf:
        raise BadInput(f"output multiplier {output_multiplier}: expected a finite number above 0")
    if parametrization == "stock" and output_multiplier != 1:
        raise BadInput(f"output multiplier {output_multiplier} has no effect under stock; set it to 1, or use mup")
    if not 0 < depth_ratio < math.inf:
        raise BadInput(f"depth ratio {depth_ratio}: expected a finite number above 0")
    if parametrization != "completep" and depth_ratio != 1:
        raise BadInput(
            f"a depth of {depth_ratio:g} times the base depth has no effect under {parametrization}: leave the base"
            " depth out, or use completep"
        )


def scale_of(
    role: str,
    *,
    width_ratio: float,
    parametrization: str = "mup",
    output_multiplier: float = 1.0,
    is_declared_readout: bool = False,
    depth_ratio: float = 1.0,
    in_branch: bool = False,
    branch_end: bool = False,
) -> Scale:
    """One entry of the table. `width_ratio` is m, the width over the base width. Only the declared readout has α.

    Under `completep` s is 1 / `depth_ratio`. A `branch_end` is folded by s and counts as inside its branch, whatever
    `in_branch` says. Every gradient inside a branch passes s on its way back. So unfolded eps there is s times that of
    `mup`, whatever the role: a QK-norm's gain, where nothing grows, has s, and a folded end is back at 1/m. Unfolded
    rate and decay do not depend on the depth. At depth ratio 1 `completep` is `mup`.

    `standard` has the init of a standard parametrization (fan_in^-1/2) and one lr, decay and eps for all. α is folded
    as under `mup`, so that the two are equal at the base width. `stock` has no factor at all, and keeps its own init.
    """
    validate_parametrization(parametrization, output_multiplier, depth_ratio)
    if role not in ROLES:
        raise BadInput(f"unknown role {role!r}; {nearest(role, ROLES)}")
    m = width_ratio
    alpha = output_multiplier if is_declared_readout else 1.0
    if parametrization == "stock":
        return Scale(role=role, init_std=1.0, lr=1.0, weight_decay=1.0, eps=1.0, fold=1.0)
    if parametrization == "standard":
        init_std = m**-0.5 if role in ("hidden", "readout") else 1.0
        return _folded(role, alpha, init_std=init_std, lr=1.0, weight_decay=1.0, eps=1.0)
    end = 1 / depth_ratio if branch_end else 1.0
    inside = 1 / depth_ratio if in_branch or branch_end else 1.0
    if role == "hidden":
        return _folded(role, end, init_std=m**-0.5, lr=1 / m, weight_decay=m, eps=inside / m)
    if role == "readout":
        return _folded(role, alpha / m * end, init_std=1.0, lr=1.0, weight_decay=1.0, eps=inside / m)
    return _folded(role, end, init_std=1.0, lr=1.0, weight_decay=1.0, eps=inside / m if role == "input" else inside)


def _folded(role: str, fold: float, *, init_std: float, lr: float, weight_decay: float, eps: float) -> Scale:
    return Scale(
        role=role, init_std=init_std * fold, lr=lr * fold, weight_decay=weight_decay / fold, eps=eps / fold, fold=fold
    )
