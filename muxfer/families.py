"""From a model's configuration to the class that builds it: our families, and registered classes of others.

Nothing that a configuration names is imported unless it is registered: proxy_models, diffusers, or a plugin that the
user's own command line names (`--plugin package.module`). Refused: a class of any other module, a name that is no
torch module, sizes that are not plain arithmetic over the model's keys.
"""

import ast
import dataclasses
import importlib
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from muxfer.errors import BadInput, nearest
from muxfer.models import Declared, Model, arguments
from muxfer.plugins import allowed
from proxy_models import FAMILIES, Family


def family_of(model: Model) -> Family:
    """What builds this model and what is declared of it; `build` takes the width as its only free argument."""
    if not isinstance(model, Declared):
        family = FAMILIES[model.family]
        return dataclasses.replace(family, build=partial(_build, family, model))
    build = partial(_build_declared, _registered(model.target), model)
    return Family(
        build=build,
        inputs=model.inputs,
        output=model.output,
        readout=model.readout,
        declared=model.declared,
        branches=model.branches,
        branch_ends=model.branch_ends,
    )


def _build(family: Family, model: Model, width: int) -> nn.Module:
    return family.build(**arguments(model, width=width))


def _build_declared(kind: Callable[..., nn.Module], model: Declared, width: int) -> nn.Module:
    names = {
        part.name: value
        for part in dataclasses.fields(model)
        if type(value := getattr(model, part.name)) in (int, float)
    }
    sizes = {name: evaluate(text, {**names, "width": width}, name) for name, text in model.sizes.items()}
    try:
        return kind(**model.arguments, **sizes)
    except TypeError as error:
        raise BadInput(f"{model.target} can't be built: {error}; see model.sizes and model.arguments") from error


def _registered(target: str) -> Callable[..., nn.Module]:
    module_name, _, name = target.partition(":")
    known = {"diffusers", *allowed().names}
    if module_name not in known:
        raise BadInput(
            f"model.target {target[:80]!r}: {nearest(module_name[:60], known)}; a class of your own comes with"
            " --plugin package.module and target=package.module:Class"
        )
    module = importlib.import_module(module_name)
    kind = getattr(module, name, None) if name.isidentifier() else None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        names = [key for key in dir(module) if key.endswith(("Model", "2D", "3D", "T"))] or dir(module)
        raise BadInput(f"model.target {target[:80]!r} is no torch module; {nearest(name[:60], names)}")
    return kind


_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def evaluate(expression: str | int, names: Mapping[str, float], argument: str) -> int | float:
    """Plain arithmetic (+ - * / //) over names: a whole number where the result is one. BadInput otherwise."""
    if not isinstance(expression, str):
        return expression

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return node.value
        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Name):
            raise BadInput(f"model.sizes.{argument} names {node.id!r}: {nearest(node.id, names)}")
        raise BadInput(f"model.sizes.{argument} is {expression[:60]!r}: expected arithmetic such as width // head_dim")

    try:
        result = value(ast.parse(expression[:200], mode="eval").body)
    except (SyntaxError, ZeroDivisionError, ValueError, RecursionError):
        raise BadInput(
            f"model.sizes.{argument} is {expression[:60]!r}: expected arithmetic such as width // head_dim"
        ) from None
    return int(result) if float(result).is_integer() else float(result)
