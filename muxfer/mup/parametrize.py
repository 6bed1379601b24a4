"""Give every weight its initial scale, learning rate and weight decay: make a scale plan, and apply it to a model.

Only the values of parameters change: no attribute, no hook, no module. Scales are found by name, so state dicts,
compiled models, copies and wrappers keep them. Refuses a plan for another model, and weights that do not follow the
initialization in the plan (trained, loaded, or scaled before). Also refuses optimizers outside the Adam family, and
depth scaling of a model that does not declare where its residual branches end.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from muxfer.errors import BadInput, nearest
from muxfer.mup.initialization import measure
from muxfer.mup.rules import Initialization, Scale, ScalePlan, scale_of, validate_parametrization
from muxfer.mup.shapes import Build, Outline, infer_roles, measure_initializations, outline

_applied: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()
"""Hash of the plan that each living model was scaled by."""


def make_plan(
    build: Build,
    *,
    width: int,
    base_width: int,
    parametrization: str = "mup",
    output_multiplier: float = 1.0,
    readout: str | None,
    declared: Mapping[str, str] | None = None,
    other_width: int | None = None,
    depth: int = 1,
    base_depth: int = 1,
    branches: Sequence[str] = (),
    branch_ends: Sequence[str] = (),
) -> ScalePlan:
    """Roles, scales and initializations of the models that `build` makes, at `width` relative to `base_width`.

    `build(w)` returns the model of width w. It runs on the meta device at base_width, at other_width (default: twice
    the base) and at width. `readout` names the one output weight that α belongs to. `declared` gives roles that shapes
    cannot tell. Raises BadInput for everything that `shapes` and `rules` refuse.

    Under `completep`, `build` makes models of the depth used at every width; initializations are of that depth too.
    `branches` match (fnmatch) the parameters inside residual branches, with gates and tables. `branch_ends` match the
    last weight and bias of each branch, never a gate. Other parametrizations ignore both: depth must be base_depth.
    """
    other_width = 2 * base_width if other_width is None else other_width
    _validate_sizes(width=width, base_width=base_width, other_width=other_width, depth=depth, base_depth=base_depth)
    validate_parametrization(parametrization, output_multiplier, depth / base_depth)
    outlines = {w: outline(build, w) for w in {base_width, other_width, width}}
    base, used = outlines[base_width], outlines[width]
    roles = infer_roles(base, outlines[other_width], used, declared or {})
    _validate_readout(readout, roles, output_multiplier)
    is_deep = parametrization == "completep"
    inside, ends = _find_branches(used, branches, branch_ends, readout) if is_deep else (set(), set())
    entry = partial(
        scale_of,
        width_ratio=width / base_width,
        parametrization=parametrization,
        output_multiplier=output_multiplier,
        depth_ratio=depth / base_depth,
    )
    scales = {
        name: entry(role, is_declared_readout=name == readout, in_branch=name in inside, branch_end=name in ends)
        for name, role in roles.items()
    }
    base_initializations, initializations = _initializations(build, base, used, needed=parametrization != "stock")
    return ScalePlan(
        parametrization=parametrization,
        base_width=base_width,
        width=width,
        output_multiplier=float(output_multiplier),
        readout=readout,
        scales=_stock_scales(scales, base_initializations, initializations) if parametrization == "stock" else scales,
        shapes={name: weight.shape for name, weight in used.weights.items()},
        base_initializations=base_initializations,
        initializations=initializations,
        base_depth=base_depth if is_deep else 1,
        depth=depth if is_deep else 1,
    )


def parametrize(model: nn.Module, plan: ScalePlan) -> None:
    """Rescale a freshly initialized model in place, once. At the base width with α = 1 it stays bit-identical. Each
    random tensor's distance from its mean is multiplied by (base deviation x factor) / (own deviation). So zeros,
    padding rows and orthogonality survive. A constant becomes the base's. Raises BadInput before anything is changed.
    """
    if model in _applied:
        raise BadInput(f"this model was scaled before, by plan {_applied[model]}; scales apply once: build a new model")
    parameters = _parameters(model, plan)
    if plan.parametrization != "stock":
        changes = {name: _rescaling(name, parameter, plan) for name, parameter in parameters.items()}
        with torch.no_grad():
            for name, (mean, ratio, new_mean) in changes.items():
                _rescale(parameters[name], mean, ratio, new_mean)
    _applied[model] = plan.hash


def param_groups(
    model: nn.Module, plan: ScalePlan, *, base_lr: float, weight_decay: float, eps: float, betas: tuple[float, float]
) -> list[dict[str, Any]]:
    """Groups for torch's AdamW, one for each distinct scale, each with its lr, weight decay, eps, role and names. AdamW
    multiplies the decay by the group's lr, so lr x decay is constant in width. A schedule must multiply each group's
    own rate.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in _parameters(model, plan).items():
        scale = plan.scales[name]
        group = groups.setdefault(
            (scale.role, scale.lr, scale.weight_decay, scale.eps),
            {
                "params": [],
                "names": [],
                "role": scale.role,
                "lr": base_lr * scale.lr,
                "weight_decay": weight_decay * scale.weight_decay,
                "eps": eps * scale.eps,
                "betas": tuple(betas),
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def fold_factors(plan: ScalePlan) -> dict[str, float]:
    """The factor f of every parameter by name. A gradient norm must count g as f x g, the unfolded gradient."""
    return {name: scale.fold for name, scale in plan.scales.items()}


def validate_optimizer(optimizer_class: type[torch.optim.Optimizer], *, weight_decay: float = 0.0) -> None:
    """Refuse an optimizer that the table does not cover: one outside the Adam family, or Adam with L2 decay."""
    if issubclass(optimizer_class, torch.optim.AdamW):
        return
    if not issubclass(optimizer_class, torch.optim.Adam):
        raise BadInput(f"optimizer {optimizer_class.__name__} is not of the Adam family; use AdamW")
    if weight_decay:
        raise BadInput(
            f"Adam with weight decay {weight_decay} adds L2 to the gradient, which the table does not cover; use AdamW"
        )


def validate_same_base(source: ScalePlan | Mapping[str, Any], target: ScalePlan) -> None:
    """Refuse a target of another base width, base depth or parametrization: the same base rate means other rates."""
    data = source.to_dict() if isinstance(source, ScalePlan) else source
    expected = {"base_width": data["base_width"], "parametrization": data["parametrization"]}
    for key, value in (expected | {"base_depth": data.get("base_depth", 1)}).items():
        given = getattr(target, key)
        if given != value:
            raise BadInput(
                f"target has {key} {given}, its source {value}; base rates transfer only within one: use {value}"
            )


def _validate_sizes(*, base_width: int, other_width: int, **sizes: int) -> None:
    for name, value in {**sizes, "base_width": base_width, "other_width": other_width}.items():
        if value < 1:
            raise BadInput(f"{name.replace('_', ' ')} {value}: expected at least 1")
    if other_width == base_width:
        raise BadInput(f"other width {other_width} is the base width; what grows shows between two different ones")


def _validate_readout(readout: str | None, roles: Mapping[str, str], output_multiplier: float) -> None:
    if readout is None:
        if output_multiplier != 1:
            raise BadInput(f"output multiplier {output_multiplier} has no effect: no readout is declared; name it")
        return
    if readout not in roles:
        raise BadInput(f"readout {readout!r} is no parameter of the model; {nearest(readout, roles)}")
    if roles[readout] != "readout":
        readouts = ", ".join(name for name, role in roles.items() if role == "readout") or "none"
        raise BadInput(
            f"{readout} is declared the readout but its shapes make it {roles[readout]}; readouts: {readouts}"
        )


def _initializations(
    build: Build, base: Outline, used: Outline, *, needed: bool
) -> tuple[dict[str, Initialization | None], dict[str, Initialization | None]]:
    """Initialization of every parameter at the base width and at the width used. Where one of the two was not recorded,
    the base's is measured here and the other is left to `parametrize`. A recorded number over a measured one would mix
    two conventions. At the base width, or where the numbers are not `needed`, nothing is measured.
    """
    base_recorded = {name: weight.initialization for name, weight in base.weights.items()}
    recorded = {name: weight.initialization for name, weight in used.weights.items()}
    if not needed or used.width == base.width:
        return base_recorded, recorded
    unknown = [name for name in base_recorded if base_recorded[name] is None or recorded[name] is None]
    if not unknown:
        return base_recorded, recorded
    return base_recorded | measure_initializations(build, base.width, unknown), recorded | dict.fromkeys(unknown)


def _find_branches(
    used: Outline, branches: Sequence[str], branch_ends: Sequence[str], readout: str | None
) -> tuple[set[str], set[str]]:
    """Names of the parameters inside residual branches, and of the branch ends among them."""
    if not branch_ends:
        raise BadInput(
            "the model declares no branch ends, so it can't be scaled in depth; declare branches and branch_ends, or"
            " use mup (stock U-ViT has none, for its skip linear mixes the trunk anew: model.skip=residual offers"
            " x + W[x; skip])"
        )
    aliases = {name: weight.fans for name, weight in used.weights.items()}
    inside = _matching(aliases, branches, "branches")
    ends = _matching(aliases, branch_ends, "branch_ends")
    for name in sorted(ends):
        if name not in inside:
            raise BadInput(
                f"branch end {name} is in none of the branches {', '.join(branches) or '(none)'}; widen them"
            )
        for this, other in (("weight", "bias"), ("bias", "weight")):
            partner = name.removesuffix(this) + other
            if name.endswith(this) and partner in aliases and partner not in ends:
                raise BadInput(f"{name} is a branch end and {partner} is not: the factor belongs to both; declare both")
    if readout in inside:
        raise BadInput(f"the readout {readout} is declared inside a residual branch; narrow the branches")
    return inside, ends


def _matching(aliases: Mapping[str, Iterable[str]], patterns: Sequence[str], what: str) -> set[str]:
    """Names of the parameters that match a pattern. `aliases` has all their names. BadInput if no pattern matches."""
    matches = set()
    for name, names in aliases.items():
        matched = {alias: any(fnmatchcase(alias, pattern) for pattern in patterns) for alias in names}
        if len(set(matched.values())) > 1:
            described = ", ".join(f"{alias} ({'yes' if hit else 'no'})" for alias, hit in matched.items())
            raise BadInput(f"one tensor matches {what} under one name and not under another: {described}; untie them")
        if matched[name]:
            matches.add(name)
    if patterns and not matches:
        raise BadInput(
            f"{what} match no parameter of the model: {', '.join(patterns)}; its names are like {next(iter(aliases))}"
        )
    return matches


def _stock_scales(
    scales: Mapping[str, Scale], base: Mapping[str, Initialization | None], used: Mapping[str, Initialization | None]
) -> dict[str, Scale]:
    """The scales with the class's own change of deviation, for display only: `stock` applies nothing."""
    changed = {}
    for name, scale in scales.items():
        at_base, own = base[name], used[name]
        changed[name] = replace(scale, init_std=own.std / at_base.std) if own and at_base and at_base.std else scale
    return changed


def _parameters(model: nn.Module, plan: ScalePlan) -> dict[str, nn.Parameter]:
    """Trainable parameters by the plan's names, without the prefixes of a compiled or data-parallel wrapper."""
    named = {_unwrapped(name, plan): p for name, p in model.named_parameters() if p.requires_grad}
    shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
    for name in sorted(set(shapes) | set(plan.shapes)):
        if shapes.get(name) != plan.shapes.get(name):
            raise BadInput(
                f"the plan is for another model: {name} is {_shown(shapes.get(name))} here and"
                f" {_shown(plan.shapes.get(name))} in the plan of width {plan.width}; make a plan for this model"
            )
    return named


def _unwrapped(name: str, plan: ScalePlan) -> str:
    if name in plan.shapes:
        return name
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _rescaling(name: str, parameter: nn.Parameter, plan: ScalePlan) -> tuple[float, float, float]:
    """(mean, ratio, new mean) of (value - mean) x ratio + new mean. Refuses values unlike their initialization."""
    if parameter.is_meta:
        raise BadInput(f"{name} is on the meta device; initialize the model before scaling it")
    scale, own = plan.scales[name], plan.initializations[name]
    if own is not None:
        _validate_initialization(name, parameter, own)
    if plan.width == plan.base_width:
        return 0.0, scale.fold, 0.0
    base = plan.base_initializations[name]
    own = measure(parameter) if own is None else own
    if base is None or not all(map(math.isfinite, (base.mean, base.std, own.mean, own.std))):
        raise BadInput(f"{name} has no usable initialization (left empty, or not finite); initialize it in the builder")
    new_mean = base.mean * scale.fold
    if (base.std == 0) != (own.std == 0):
        raise BadInput(
            f"{name} is {'constant' if base.std == 0 else 'random'} at base width {plan.base_width} and not at"
            f" {plan.width}; initialize both alike"
        )
    ratio = base.std * scale.init_std / own.std if own.std else 1.0
    # A hidden weight drawn with fan_in^-1/2 follows the rule already, up to rounding: keep its bits.
    return own.mean, 1.0 if abs(ratio - 1) < 1e-12 else ratio, new_mean


def _rescale(parameter: nn.Parameter, mean: float, ratio: float, new_mean: float) -> None:
    if ratio == 1 and mean == new_mean:
        return
    if mean == 0 and new_mean == 0:
        parameter.mul_(ratio)
    else:
        parameter.sub_(mean).mul_(ratio).add_(new_mean)


def _validate_initialization(name: str, parameter: nn.Parameter, own: Initialization) -> None:
    """Refuse values that are no fresh draw, by more than six standard errors and one percent, such as scaled ones."""
    if not own.recorded:
        return
    rms = (parameter.detach().float() - own.mean).square().mean().sqrt().item()
    slack = 0.01 + 6 / math.sqrt(2 * parameter.numel())
    tolerance = slack * own.std if own.std else 0.01 * abs(own.mean)
    if not abs(rms - own.std) <= tolerance:
        raise BadInput(
            f"{name} deviates by {rms:.4g} from {own.mean:.4g}, its initialization by {own.std:.4g}: it is not freshly"
            " initialized (trained, loaded or scaled before) or the builder is another one; build a new model"
        )
