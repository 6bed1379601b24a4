"""Makes a plan for a model and applies it: rescaled initial weights in place, parameter groups for an optimizer.

Nothing of the model changes but the values of its parameters: no attribute, no hook, no module. Scales are found by
name, so state dicts, compiled models, copies and wrappers keep them. Refuses a plan for another model, weights that do
not follow the law that the plan recorded (trained, loaded, or scaled before), optimizers outside the Adam family, and
depth scaling of a model that does not say where its residual branches end.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from muxfer.errors import BadInput, nearest
from muxfer.mup.initialization import measure
from muxfer.mup.rules import Initialization, Scale, ScalePlan, scale_of, validate_parametrization
from muxfer.mup.shapes import Build, Outline, infer_roles, measure_laws, outline

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
    """Roles, scales and initialization laws of the models that `build` makes, at `width` relative to `base_width`.

    `build(w)` returns the model of width w; it runs on the meta device at base_width, at other_width (default: twice
    the base) and at width. `readout` is the name of the one output weight that α belongs to. `declared` gives roles
    that shapes cannot tell. Raises BadInput for everything that `shapes` and `rules` refuse.

    Under `completep`: `build` makes models of the depth used at every width, laws too are that depth's. `branches`
    match (fnmatch) the parameters inside residual branches, gates and tables of the block included; `branch_ends` the
    last weight and bias of each, never a gate. Elsewhere these have no effect, and a `depth` other than `base_depth`
    is refused.
    """
    sizes = {"width": width, "base width": base_width, "depth": depth, "base depth": base_depth}
    other_width = 2 * base_width if other_width is None else other_width
    for name, value in (sizes | {"other width": other_width}).items():
        if value < 1:
            raise BadInput(f"{name} {value}: expected at least 1")
    validate_parametrization(parametrization, output_multiplier, depth / base_depth)
    if other_width == base_width:
        raise BadInput(f"other width {other_width} is the base width; what grows shows between two different ones")
    outlines: dict[int, Outline] = {w: outline(build, w) for w in {base_width, other_width, width}}
    base, used = outlines[base_width], outlines[width]
    roles = infer_roles(base, outlines[other_width], used, declared or {})
    _check_readout(readout, roles, output_multiplier)
    inside: set[str] = set()
    ends: set[str] = set()
    if parametrization == "completep":
        inside, ends = _find_branches({name: used.weights[name].fans for name in roles}, branches, branch_ends)
        if readout in inside:
            raise BadInput(f"the readout {readout} is declared inside a residual branch; narrow the branches")
    base_laws = {name: weight.law for name, weight in base.weights.items()}
    laws = {name: weight.law for name, weight in used.weights.items()}
    scales = {
        name: scale_of(
            role,
            width_ratio=width / base_width,
            parametrization=parametrization,
            output_multiplier=output_multiplier,
            is_declared_readout=name == readout,
            depth_ratio=depth / base_depth,
            in_branch=name in inside,
            branch_end=name in ends,
        )
        for name, role in roles.items()
    }
    if parametrization == "stock":
        scales = {name: _stock_scale(scale, base_laws[name], laws[name]) for name, scale in scales.items()}
    elif width != base_width:
        # Unless both are known, both are measured: a recorded law over a measured one would mix two conventions.
        unknown = [name for name in roles if base_laws[name] is None or laws[name] is None]
        if unknown:
            base_laws |= measure_laws(build, base_width, unknown)
            laws |= dict.fromkeys(unknown)
    return ScalePlan(
        parametrization=parametrization,
        base_width=base_width,
        width=width,
        output_multiplier=float(output_multiplier),
        readout=readout,
        scales=scales,
        shapes={name: weight.shape for name, weight in used.weights.items()},
        base_laws=base_laws,
        laws=laws,
        base_depth=base_depth if parametrization == "completep" else 1,
        depth=depth if parametrization == "completep" else 1,
    )


def parametrize(model: nn.Module, plan: ScalePlan) -> None:
    """Rescale a freshly initialized model in place, once; at the base width with α = 1 it stays bit-identical.

    Each random tensor's deviation from its mean is multiplied by (base law x factor) / (own law), so zeros, padding
    rows and orthogonality survive; a constant becomes the base's. Raises BadInput before anything is changed.
    """
    if model in _applied:
        raise BadInput(f"this model was scaled before, by plan {_applied[model]}; scales apply once: build a new model")
    parameters = _parameters(model, plan)
    if plan.parametrization != "stock":
        moves = {name: _move(name, parameter, plan) for name, parameter in parameters.items()}
        with torch.no_grad():
            for name, (mean, ratio, new_mean) in moves.items():
                _apply(parameters[name], mean, ratio, new_mean)
    _applied[model] = plan.hash


def param_groups(
    model: nn.Module, plan: ScalePlan, *, base_lr: float, weight_decay: float, eps: float, betas: tuple[float, float]
) -> list[dict[str, Any]]:
    """Groups for torch's AdamW, one for each distinct scale, with its own lr, weight decay and eps, role and names.

    AdamW multiplies the decay by the group's lr, so lr x decay is constant in width. A schedule must multiply each
    group's own rate.
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
    """The factor f of every parameter by name: in a gradient norm, g counts as f x g, the gradient of the unfolded."""
    return {name: scale.fold for name, scale in plan.scales.items()}


def validate_optimizer(optimizer_class: type[torch.optim.Optimizer], *, weight_decay: float = 0.0) -> None:
    """Refuse an optimizer that the table does not hold for: outside the Adam family, or Adam with L2 decay."""
    if issubclass(optimizer_class, torch.optim.AdamW):
        return
    if not issubclass(optimizer_class, torch.optim.Adam):
        raise BadInput(f"optimizer {optimizer_class.__name__} is not of the Adam family; use AdamW")
    if weight_decay:
        raise BadInput(
            f"Adam with weight decay {weight_decay} adds L2 to the gradient, which the table does not cover; use AdamW"
        )


def validate_same_base(source: ScalePlan | Mapping[str, Any], target: ScalePlan) -> None:
    """Refuse a target whose base width, base depth or parametrization is not the source's: its rates mean others."""
    data = source.to_dict() if isinstance(source, ScalePlan) else source
    wanted = {"base_width": data["base_width"], "parametrization": data["parametrization"]}
    for key, value in (wanted | {"base_depth": data.get("base_depth", 1)}).items():
        given = getattr(target, key)
        if given != value:
            raise BadInput(
                f"target has {key} {given}, its source {value}; base rates transfer only within one: use {value}"
            )


def _check_readout(readout: str | None, roles: Mapping[str, str], output_multiplier: float) -> None:
    if readout is None:
        if output_multiplier != 1:
            raise BadInput(f"output multiplier {output_multiplier} has no effect: no readout is declared; name it")
        return
    if readout not in roles:
        raise BadInput(f"readout {readout!r} is no parameter of the model; {nearest(readout, roles)}")
    if roles[readout] != "readout":
        found = ", ".join(name for name, role in roles.items() if role == "readout") or "none"
        raise BadInput(f"{readout} is declared the readout but its shapes make it {roles[readout]}; readouts: {found}")


def _find_branches(
    aliases: Mapping[str, Iterable[str]], branches: Sequence[str], branch_ends: Sequence[str]
) -> tuple[set[str], set[str]]:
    """Names of the parameters inside residual branches, and of the ends among them; `aliases` has each one's names."""
    if not branch_ends:
        raise BadInput(
            "the model declares no branch ends, so it can't be scaled in depth; declare branches and branch_ends, or"
            " use mup (stock U-ViT has none, for its skip linear mixes the trunk anew: model.skip=residual offers"
            " x + W[x; skip])"
        )
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
    return inside, ends


def _matching(aliases: Mapping[str, Iterable[str]], patterns: Sequence[str], what: str) -> set[str]:
    """Families share lists of patterns, so one that matches nothing is fine; all of them is a mistake."""
    found = set()
    for name, names in aliases.items():
        matched = {alias: any(fnmatchcase(alias, pattern) for pattern in patterns) for alias in names}
        if len(set(matched.values())) > 1:
            described = ", ".join(f"{alias} ({'yes' if hit else 'no'})" for alias, hit in matched.items())
            raise BadInput(f"one tensor matches {what} under one name and not under another: {described}; untie them")
        if matched[name]:
            found.add(name)
    if patterns and not found:
        raise BadInput(
            f"{what} match no parameter of the model: {', '.join(patterns)}; its names are like {next(iter(aliases))}"
        )
    return found


def _stock_scale(scale: Scale, base: Initialization | None, own: Initialization | None) -> Scale:
    """What the class's own initialization does with the width, for the eye; nothing is applied."""
    return replace(scale, init_std=own.std / base.std) if base and own and base.std else scale


def _parameters(model: nn.Module, plan: ScalePlan) -> dict[str, nn.Parameter]:
    """Trainable parameters by the plan's names; a compiled or data-parallel wrapper's prefixes are taken off."""
    named = {_plain(name, plan): p for name, p in model.named_parameters() if p.requires_grad}
    shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
    for name in sorted(set(shapes) | set(plan.shapes)):
        if shapes.get(name) != plan.shapes.get(name):
            raise BadInput(
                f"the plan is for another model: {name} is {_shown(shapes.get(name))} here and"
                f" {_shown(plan.shapes.get(name))} in the plan of width {plan.width}; make a plan for this model"
            )
    return named


def _plain(name: str, plan: ScalePlan) -> str:
    if name in plan.shapes:
        return name
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _move(name: str, parameter: nn.Parameter, plan: ScalePlan) -> tuple[float, float, float]:
    """(mean, ratio, new mean): values become (value - mean) x ratio + new mean. Checks the values against their law."""
    if parameter.is_meta:
        raise BadInput(f"{name} is on the meta device; initialize the model before scaling it")
    scale, own = plan.scales[name], plan.laws[name]
    if own is not None:
        _check_law(name, parameter, own)
    if plan.width == plan.base_width:
        return 0.0, scale.fold, 0.0
    base = plan.base_laws[name]
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
    # A law that is the rule already, fan_in^-1/2 of a hidden weight, differs from it by a rounding: leave it alone.
    return own.mean, 1.0 if abs(ratio - 1) < 1e-12 else ratio, new_mean


def _apply(parameter: nn.Parameter, mean: float, ratio: float, new_mean: float) -> None:
    if ratio == 1 and mean == new_mean:
        return
    if mean == 0 and new_mean == 0:
        parameter.mul_(ratio)
    else:
        parameter.sub_(mean).mul_(ratio).add_(new_mean)


def _check_law(name: str, parameter: nn.Parameter, law: Initialization) -> None:
    """Six standard errors and one percent: what a fresh draw never leaves and a second scaling of a matrix does."""
    if not law.recorded:
        return
    rms = (parameter.detach().float() - law.mean).square().mean().sqrt().item()
    slack = 0.01 + 6 / math.sqrt(2 * parameter.numel())
    tolerance = slack * law.std if law.std else 0.01 * abs(law.mean)
    if not abs(rms - law.std) <= tolerance:
        raise BadInput(
            f"{name} deviates by {rms:.4g} from {law.mean:.4g}, its initialization by {law.std:.4g}: it is not freshly"
            " initialized (trained, loaded or scaled before) or the builder is another one; build a new model"
        )
