"""Bounds of configured numbers. Each function refuses the first named key whose value lies outside; None is allowed."""

import math
from collections.abc import Callable
from typing import Any

from muxfer.errors import BadInput


def validate_positive(config: Any, group: str, *names: str) -> None:
    _validate(config, group, names, lambda value: 0 < value < math.inf, "above 0")


def validate_at_least_0(config: Any, group: str, *names: str) -> None:
    _validate(config, group, names, lambda value: 0 <= value < math.inf, "of at least 0")


def validate_below_1(config: Any, group: str, *names: str) -> None:
    _validate(config, group, names, lambda value: 0 <= value < 1, "in [0, 1)")


def validate_fraction(config: Any, group: str, *names: str) -> None:
    _validate(config, group, names, lambda value: 0 < value < 1, "between 0 and 1")


def _validate(config: Any, group: str, names: tuple[str, ...], allowed: Callable[[float], bool], bound: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not allowed(value):
            raise BadInput(f"{group}.{name} {value}: expected a number {bound}")
