"""The multiplier table: what each role's init, learning rate, weight decay and eps are, relative to the base width.

Pure numbers, no torch. Written folded: a constant multiplier f in the forward pass (the output multiplier α over the
width ratio m, for a readout) lives in the weight's own numbers, init·f, lr·f, decay/f, eps/f, and its gradient enters
the clipping norm as f·g (Tensor Programs V, appendix J.2.1). So a model needs no readout module and no attribute.

`completep` is `mup` with depth (Dey et al. 2025, alpha = 1): every residual branch counts s = base depth / depth, which
is folded into the branch's end. Gradients inside a branch are s times what they were, and so is eps.

Refuses a role or a parametrization that it does not know, an output multiplier or a depth without effect.
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
    """One parameter's numbers relative to the base width (and the base depth, under `completep`).

    `init_std` multiplies the deviation of the base width's law; `lr`, `weight_decay` (which AdamW multiplies by lr) and
    `eps` multiply the base values; `fold` is the forward multiplier f that the weight holds.
    """

    role: str
    init_std: float
    lr: float
    weight_decay: float
    eps: float
    fold: float


@dataclass(frozen=True, kw_only=True)
class Initialization:
    """How a parameter is initialized: `std` around `mean`, a constant where `std` is 0.

    `recorded` means known from the initialization's own calls for every entry. False: part of the tensor is held at the
    mean (padding rows), or the numbers were measured; then a tensor is not tested against its law.
    """

    mean: float
    std: float
    recorded: bool = True


@dataclass(frozen=True, kw_only=True)
class ScalePlan:
    """Every parameter's scale at one width, by name, and what it takes to apply them: a function of shapes alone.

    `base_laws` and `laws` are the initialization at the base width and at `width`. None: not recorded, so that it is
    measured on the model itself (or not needed, at the base width). Frozen parameters are in none of the mappings.
    `base_depth` and `depth` are 1 where the depth scales nothing.
    """

    parametrization: str
    base_width: int
    width: int
    output_multiplier: float
    readout: str | None
    scales: Mapping[str, Scale]
    shapes: Mapping[str, tuple[int, ...]]
    base_laws: Mapping[str, Initialization | None]
    laws: Mapping[str, Initialization | None]
    base_depth: int = 1
    depth: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data. Depths stand in it under `completep` only, so that the hashes of older plans stay."""
        data = asdict(self)
        data["shapes"] = {name: list(shape) for name, shape in self.shapes.items()}
        if self.parametrization != "completep":
            del data["base_depth"], data["depth"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ScalePlan":
        return cls(
            **{
                **data,
                "scales": {name: Scale(**scale) for name, scale in data["scales"].items()},
                "shapes": {name: tuple(shape) for name, shape in data["shapes"].items()},
                "base_laws": {name: law and Initialization(**law) for name, law in data["base_laws"].items()},
                "laws": {name: law and Initialization(**law) for name, law in data["laws"].items()},
            }
        )

    @cached_property
    def hash(self) -> str:
        """Content hash: equal plans scale equal models alike."""
        return content_hash(self.to_dict())


def validate_parametrization(parametrization: str, output_multiplier: float, depth_ratio: float = 1.0) -> None:
    """Refuse what has no rule, or no effect, before anything is built."""
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
    """The table itself. `width_ratio` is m, the width over the base width; α counts for the declared readout only.

    Under `completep` s is 1 / `depth_ratio`, and a `branch_end` (which is in its branch, said or not) is folded by it.
    Unfolded eps of all that is in a branch is s times that of `mup`, whatever the role, for every gradient there has
    passed s on its way back: a QK-norm's gain, where nothing grows, has s, and a folded end is back at 1/m. Rate and
    decay have no depth in them, unfolded. At depth ratio 1 it is `mup`.

    `standard` has the init of a standard parametrization (fan_in^-1/2) and one lr, decay and eps for all; α is folded
    as under `mup`, so that the two are the same at the base width. `stock` has no factor at all: its init stays.
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
