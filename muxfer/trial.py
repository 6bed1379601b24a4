"""The five data types that everything shares: Setting, Trial, Outcome, Record, Verdict.

A study is a set of trials. A trial is a task (plain data) at one setting and one replicate. A record holds the trial's
outcome. A verdict is what a set of records says about transfer. Everything here is plain data that survives JSON.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, TypedDict

from muxfer.validate import expect

NUMERICS_VERSION = 1
"""Part of every trial key. It is raised whenever the same task would train to other numbers than before."""
Setting = Mapping[str, float | int | str]  # What a study varies, by name: {"base_lr": 0.0078125, "width": 64}


class Outcome(StrEnum):
    """How a trial ended."""

    FINISHED = "finished"
    DIVERGED = "diverged"
    FAILED = "failed"

    @property
    def settled(self) -> bool:
        """Whether the trial's result is known. A settled trial is not run again."""
        return self is not Outcome.FAILED


def content_hash(content: Any, *, length: int = 16) -> str:
    """Hexadecimal SHA-256 of plain data in canonical JSON. It is the same in every folder and on every host."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A sweep's name and its identity: the configuration without grids, seeds, budget and compute. `key` is the content
    hash of name and identity. Extending a grid keeps the key; another parametrization changes it.
    """

    name: str
    key: str
    identity: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Name of the study's folder and of its parent run: unique, and readable by a person."""
        return f"{self.name}-{self.key[:8]}"


class _Family(TypedDict):
    family: str


class _Named(TypedDict):
    name: str


class Identity(TypedDict):
    """The keys that are read from a recorded study's identity. Every version writes them; more are allowed."""

    model: _Family
    data: _Named
    objective: _Named
    optimizer: Mapping[str, Any]
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    data_fingerprint: str
    numerics: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run that a study needs.

    `task` is the resolved configuration (see `muxfer.config.task.Task`) as plain data, `key` its content hash
    together with the replicate, the data's fingerprint and NUMERICS_VERSION. `cost_flops` orders the queue, longest
    first. `fingerprint` is the data's; it is compared again where the trial is trained. `lineage` is the origin of a
    target.
    """

    key: str
    setting: Setting
    replicate: int
    task: Mapping[str, Any]
    kind: str = "proxy"
    cost_flops: float = 0.0
    fingerprint: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of one curve, for example `train_loss` at step 40. Always finite: divergence is an outcome."""

    name: str
    step: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of a trial.

    `metric` is the validation loss of the averaged weights on the fixed grid, None unless finished. `step` is the last
    step trained; a diverged trial diverged there. `resumed_at` is the step of the checkpoint that the trial continued
    from (0: none). `train_seconds` is the time inside training steps and validation, summed over attempts. `epoch` is
    the lease's.
    """

    key: str
    setting: Setting
    replicate: int
    outcome: Outcome
    metric: float | None
    step: int
    resumed_at: int = 0
    train_seconds: float = 0.0
    epoch: int = 0
    kind: str = "proxy"
    num_parameters: int = 0
    error: str | None = None
    run_id: str | None = None
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        if (self.metric is not None) != (self.outcome is Outcome.FINISHED):
            raise ValueError(f"a {self.outcome} record cannot have metric {self.metric}")
        if self.metric is not None and not math.isfinite(self.metric):
            raise ValueError(f"metric {self.metric} is not finite: the outcome is diverged")

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "outcome": str(self.outcome), "setting": dict(self.setting)}

    @classmethod
    def from_dict(cls, data: Any) -> "Record":
        """The record that `to_dict` gave. ValueError where the data is no such record."""
        expect(cls, data)
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        return cls(**{**known, "outcome": Outcome(data["outcome"])})


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Where the setting is best for one axis value. All values are in the setting's own units.

    `grid` is the value with the lowest mean. `choice` is the value that is lowest on the smoothed curve; muxfer takes
    it, so that the luckiest run does not decide. `fitted` is the minimum of the curve with its 95 % interval `low` to
    `high`, None where the curve has no minimum among the cells. One end alone is None where the interval reaches beyond
    the values tried. `diverges` is the smallest value above the optimum at which a replicate diverged, None if none
    did. `stable` is the largest value below `diverges` that finished, None if none did.
    """

    grid: float | None
    choice: float | None = None
    fitted: float | None = None
    low: float | None = None
    high: float | None = None
    stable: float | None = None
    diverges: float | None = None


@dataclass(frozen=True, kw_only=True)
class Regret:
    """The relative loss of axis value `to` by using the optimum of axis value `from_`. `relative` is measured at the
    grid optimum `setting`; None: the trial diverged there. `estimate` is read from the smoothed curve at the smoothed
    `choice`, with its 95 % interval `low` to `high`; the verdict uses it. It is None where there is no curve.
    """

    from_: float
    to: float
    setting: float
    relative: float | None
    choice: float | None = None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        own = asdict(self)
        return {"from": own.pop("from_"), **own}


class VerdictKind(StrEnum):
    """The three verdicts; `muxfer.analysis.transferability` defines them."""

    TRANSFERS = "transfers"
    DRIFTS = "drifts"
    ABSTAINS = "abstains"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Does the optimum transfer along the axis? `why` is one sentence. `from_` is the smallest axis value from which on
    the optimum transfers to the largest, None if there is none. `noise` is the relative standard deviation of one
    trial's metric about the curves, None where it is unknown. `log2_hp`: the drift is in log2 of the setting.
    """

    verdict: VerdictKind
    why: str
    axis: str
    hp: str
    log2_hp: bool = True
    optimum: Mapping[float, Optimum] = field(default_factory=dict)
    drift_per_doubling: Mapping[str, float | None] = field(default_factory=dict)
    regret: tuple[Regret, ...] = ()
    from_: float | None = None
    noise: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `muxfer verdict`, as the command line's contract has it."""
        return {
            "verdict": str(self.verdict),
            "why": self.why,
            "axis": self.axis,
            "hp": self.hp,
            "from": self.from_,
            "optimum": {f"{axis:.12g}": asdict(optimum) for axis, optimum in self.optimum.items()},
            "drift_per_doubling": dict(self.drift_per_doubling),
            "regret": [regret.to_dict() for regret in self.regret],
            "noise": self.noise,
        }
