"""Two fitted scaling laws against each other: which model, or which data, gains more from compute?

There are three readings, after "Scaling Laws for Diffusion Transformers" (Liang et al. 2024):

- The better one has the lower loss at the same budget. Its lead grows with compute if its loss exponent is lower.
- Two models on the same data: the better one asks for more data and fewer parameters as the budget grows.
- One model on two data sets: the better data asks for more parameters and fewer tokens.

Losses of different data are not on one scale, so there only the exponents are read. A reading that its interval does
not decide is called open.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from muxfer.analysis.laws.power_law import Interval
from muxfer.analysis.laws.scaling_law import IsoflopFit
from muxfer.errors import BadInput

Differ = Literal["model", "data", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The first fit less the second: log of the loss ratio at `flops`, and each exponent, with 95 % intervals."""

    names: tuple[str, str]
    differ: Differ
    flops: float
    shared: bool
    """Whether both studies reach `flops`. If not, both are extrapolated to it."""
    loss_ratio: Interval
    exponents: dict[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "differ": self.differ,
            "flops": self.flops,
            "shared": self.shared,
            "loss_ratio": self.loss_ratio.to_dict(),
            "exponents": {name: part.to_dict() for name, part in self.exponents.items()},
            "readings": self.readings(),
        }

    def readings(self) -> list[str]:
        """The readings that apply, in one sentence each."""
        first, second = self.names
        at = f"at {self.flops:.3g} FLOPs{'' if self.shared else ' (extrapolated: the studies share no budget)'}"
        percent = Interval(**{k: 100 * (v - 1) for k, v in self.loss_ratio.to_dict().items()})
        readings = []
        if self.differ != "data":
            lower = _sign(
                percent, f"{first} has the lower loss", f"{second} has the lower loss", "the losses are level"
            )
            readings.append(f"{at} {lower}: {percent.value:+.3g} % [{percent.low:+.3g}, {percent.high:+.3g}]")
        loss, params = self.exponents["loss"], self.exponents["params"]
        faster = _sign(
            loss, f"{first} gains more from compute", f"{second} gains more from compute", "neither gains more"
        )
        readings.append(f"{faster}: loss exponents differ by {_ends(loss)}")
        as_models = _sign(params, f"{first} is the better model", f"{second} is the better model", "open as models")
        as_data = _sign(params, f"{second} is the better data", f"{first} is the better data", "open as data")
        sizes = f"exponents of the size differ by {_ends(params)}"
        if self.differ != "data":
            readings.append(f"{as_models} (a better one asks for more data, fewer parameters): {sizes}")
        if self.differ != "model":
            readings.append(f"{as_data} (a better one asks for more parameters, less data): {sizes}")
        return readings


def compare(first: IsoflopFit, second: IsoflopFit, *, names: tuple[str, str], differ: Differ = "unknown") -> Comparison:
    """The fits at the largest budget that both reach. BadInput where one has no laws."""
    for name, fit in zip(names, (first, second), strict=True):
        if fit.why:
            raise BadInput(f"{name} has no laws to compare: {fit.why}")
    reach = [(min(b.flops for b in fit.kept), max(b.flops for b in fit.kept)) for fit in (first, second)]
    lowest, highest = max(low for low, _ in reach), min(high for _, high in reach)
    shared = lowest <= highest
    flops = highest if shared else math.sqrt(lowest * highest)
    ours, theirs = (_log(fit.laws["loss"].at(flops)) for fit in (first, second))
    ratio = _difference(ours, theirs)
    return Comparison(
        names=names,
        differ=differ,
        flops=flops,
        shared=shared,
        loss_ratio=Interval(value=math.exp(ratio.value), low=math.exp(ratio.low), high=math.exp(ratio.high)),
        exponents={
            name: _difference(first.laws[name].exponent, second.laws[name].exponent)
            for name in ("params", "tokens", "loss")
        },
    )


def _difference(first: Interval, second: Interval) -> Interval:
    """The difference of two independent estimates: half-widths add in squares."""
    value = first.value - second.value
    low = math.hypot(first.value - first.low, second.high - second.value)
    high = math.hypot(first.high - first.value, second.value - second.low)
    return Interval(value=value, low=value - low, high=value + high)


def _log(interval: Interval) -> Interval:
    return Interval(value=math.log(interval.value), low=math.log(interval.low), high=math.log(interval.high))


def _sign(difference: Interval, below: str, above: str, neither: str) -> str:
    return below if difference.high < 0 else above if difference.low > 0 else neither


def _ends(interval: Interval) -> str:
    return f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
