"""Models and helpers for the tests of roles: layers by name, and their plan."""

from collections.abc import Callable

from torch import nn

from muxfer.mup import ScalePlan, make_plan


class Stack(nn.Module):
    """Names to modules or raw parameters; nothing here is ever run."""

    def __init__(self, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def plan_of(build: Callable[[int], nn.Module], *, width: int = 256, base_width: int = 64, **kwargs) -> ScalePlan:
    return make_plan(build, width=width, base_width=base_width, **{"readout": None, **kwargs})


def roles_of(build: Callable[[int], nn.Module], **kwargs) -> dict[str, str]:
    return {name: scale.role for name, scale in plan_of(build, **kwargs).scales.items()}
