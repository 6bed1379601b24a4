"""The families of models that a config may name; nothing that is not in FAMILIES is ever imported by name.

Plain modules on torch alone, free of muxfer: what a family must say beyond its class stands in its entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from proxy_models.dit import DiT

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: its builder and what parametrization must be told about it.

    `readout` names the one output weight that the output multiplier belongs to. `declared` gives the role (input,
    hidden, readout, finite) of parameters whose layout a shape cannot tell.
    """

    build: Callable[..., nn.Module]
    readout: str
    declared: Mapping[str, str] = field(default_factory=dict)


FAMILIES: Mapping[str, Family] = {
    "dit": Family(build=DiT, readout="final_layer.linear.weight"),
}
