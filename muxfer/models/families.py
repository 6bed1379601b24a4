"""From a model's configuration to the class that builds it: our families, and registered classes of others.

A class that a configuration names is imported only if its module is registered. Registered are proxy_models, diffusers
and the plugins that the command line names (`--plugin package.module`). Refuses a class of any other module, a name
that is no torch module, sizes that are not plain arithmetic, and arguments that the class does not take.
"""

import ast
import dataclasses
import difflib
import importlib
import inspect
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from muxfer.config.models import SOURCES, Declared, Model, Uvit, arguments
from muxfer.errors import BadInput, nearest
from muxfer.models.plugins import allowed
from proxy_models import FAMILIES, TEXT, Family

MAX_EXPRESSION_CHARACTERS = 200
MAX_SIZE = 2**31  # A size this large is a mistake: no layer has it, and building as many layers would never end


def family_of(model: Model) -> Family:
    """The family of this model, with a `build` that takes the width as its only argument."""
    if not isinstance(model, Declared):
        family = FAMILIES[model.family]
        if isinstance(model, Uvit) and model.text_dim is not None:
            family = dataclasses.replace(family, inputs=TEXT)
        if isinstance(model, Uvit) and model.skip == "linear":
            # W[x; skip] replaces the trunk at every out-block, so there is no branch end to scale by depth.
            family = dataclasses.replace(family, branch_ends=())
        return dataclasses.replace(family, build=partial(_build, family, model))
    kind = _registered(model.target)
    _validate_inputs(kind, model)
    return Family(
        build=partial(_build_declared, kind, model),
        inputs=model.inputs,
        output=model.output,
        readout=model.readout,
        declared=model.declared,
        branches=model.branches,
        branch_ends=model.branch_ends,
    )


def _build(family: Family, model: Model, width: int) -> nn.Module:
    return family.build(**arguments(model, width=width))


def _build_declared(kind: type[nn.Module], model: Declared, width: int) -> nn.Module:
    values = {part.name: getattr(model, part.name) for part in dataclasses.fields(model)} | {"width": width}
    names = {name: value for name, value in values.items() if value is None or isinstance(value, int | float)}
    sizes = {argument: evaluate(text, names, argument) for argument, text in model.sizes.items()}
    try:
        return kind(**model.arguments, **sizes)
    except Exception as error:  # the class is not ours: whatever it raises, the given arguments caused it
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise BadInput(
            f"{model.target} can't be built at width {width}: {reason}; see model.sizes and model.arguments"
        ) from error


def _registered(target: str) -> type[nn.Module]:
    module_name, _, name = target.partition(":")
    if module_name not in (registered := {"diffusers", *allowed().names}):
        raise BadInput(
            f"model.target {target[:80]!r} is of no registered module: {nearest(module_name[:60], registered)}; a class"
            " of your own is package.module:Class, with --plugin package.module on the command line"
        )
    try:
        module = importlib.import_module(module_name)
        kind = getattr(module, name, None)
    except (ImportError, RuntimeError) as error:  # diffusers imports a class on first access
        reason = str(error).strip().partition("\n")[0][:200]
        raise BadInput(f"model.target {target[:80]!r} can't be imported: {reason}") from error
    if packages := getattr(kind, "_backends", None):  # diffusers' placeholder for a class whose packages are missing
        raise BadInput(f"model.target {target[:80]!r} needs packages that are not all here: {', '.join(packages)}")
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise BadInput(f"model.target {target[:80]!r} is no torch module; {_nearest_class(module, name[:60])}")
    return kind


def _nearest_class(module: Any, name: str) -> str:
    """The hint for a name that is no torch module: the nearest class of the module, or how many there are. diffusers
    names hundreds of classes and imports each on first access. So those are judged by their names.
    """
    loaded = vars(module)
    names = {key for key, value in loaded.items() if isinstance(value, type) and issubclass(value, nn.Module)}
    names |= {key for key in dir(module) if key not in loaded and key.endswith(("Model", "1D", "2D", "3D"))}
    if len(names) > 12 and not difflib.get_close_matches(name, names, n=1, cutoff=0.5):
        return f"{module.__name__} has {len(names)}, {sorted(names)[0]} the first"
    return nearest(name, names)


def _validate_inputs(kind: type[nn.Module], model: Declared) -> None:
    """Refuse an input that forward does not take, and a missing one that it needs."""
    _, *parameters = inspect.signature(kind.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for argument in model.inputs:
        if not takes_any and argument not in {p.name for p in named}:
            hint = nearest(argument, (p.name for p in named))
            raise BadInput(f"model.inputs.{argument} is no argument of {model.target}'s forward: {hint}")
    for p in named:
        if p.default is p.empty and p.name not in model.inputs:
            raise BadInput(
                f"model.inputs lacks {p.name}, which {model.target}'s forward needs: give it one of"
                f" {', '.join(SOURCES)}"
            )


_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def evaluate(expression: str | int, names: Mapping[str, float | None], argument: str) -> int | float:
    """The value of plain arithmetic (+ - * / //) over names, as an int where it is a whole number. `names` maps the
    model's keys to numbers, where true and false count as 1 and 0; None: a key without a value. Raises BadInput for any
    other expression.
    """
    if not isinstance(expression, str):
        return expression
    refusal = BadInput(
        f"model.sizes.{argument} is {expression[:60]!r}: expected arithmetic (+ - * / //) over the model's keys, such"
        f" as width // head_dim, of at most {MAX_EXPRESSION_CHARACTERS} characters"
    )

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if not isinstance(node, ast.Name):
            raise refusal
        if node.id not in names:
            raise BadInput(f"model.sizes.{argument} names {node.id!r}: {nearest(node.id, names)}")
        if names[node.id] is None:
            raise BadInput(f"model.sizes.{argument} names {node.id}, which has no value: give model.{node.id}")
        return names[node.id]

    if len(expression) > MAX_EXPRESSION_CHARACTERS:
        raise refusal
    try:
        result = value(ast.parse(expression, mode="eval").body)
        shown = f"{result:g}"
    except (SyntaxError, ValueError, ArithmeticError):
        raise refusal from None
    if not abs(result) < MAX_SIZE:
        raise BadInput(f"model.sizes.{argument} comes to {shown}: expected a number below 2^31")
    return int(result) if float(result).is_integer() else float(result)
