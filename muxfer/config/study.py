"""One study as typed data. `config.parse` makes and validates it. `config.task` has what a trial trains."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from muxfer.config.bounds import validate_at_least_0, validate_below_1, validate_positive
from muxfer.config.models import Model
from muxfer.config.settings import AXES, SETTINGS
from muxfer.config.task import DDPM, Data, Evaluation, Optimizer, RectifiedFlow, Task, Training
from muxfer.errors import BadInput, nearest

Grid = tuple[float, ...]


class StudyKind(StrEnum):
    """How a study chooses its settings; what runs, what is judged and what is drawn follow from it."""

    GRID = "grid"  # every combination of the grids
    SCATTERED = "scattered"  # points that a sampler draws from the spaces
    ISOFLOP = "isoflop"  # budgets of compute by sizes of the model


@dataclass(frozen=True, kw_only=True)
class Space:
    """The values that a sampler may draw: {uniform: [0.1, 1]}, {log_uniform: [2^-10, 2^-5]}, {choice: [1, 2]}. `bounds`
    are the two ends, or the values of a choice. With `log2` they are exponents: the setting is 2 to the power of the
    drawn value.
    """

    kind: Literal["uniform", "log_uniform", "integer", "log_integer", "choice"]
    bounds: tuple[float, ...]
    log2: bool = False


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a study varies: `hp` is tuned at every value of `axis`, each setting with `seeds` replicates.

    A setting's list is a grid, and {KIND: [LOW, HIGH]} is a space (see Space). A number may be a power of two as text:
    2^-7, 2**-7. `sampler` grid runs every combination. random, qmc, tpe, gp and cmaes draw `num_settings` points of the
    spaces at each combination of the grids, `round_size` at a time. isoflop pairs budgets (`flops`) with sizes, and
    the budget decides the steps.
    """

    axis: str
    hp: str
    sampler: Literal["grid", "random", "qmc", "tpe", "gp", "cmaes", "isoflop"] = "grid"
    seeds: int = 1
    num_settings: int | None = None
    round_size: int = 4
    finalists: int = 0
    """This many of the best settings of a finished search are trained again, for `finalist_steps`. The best of these is
    the study's."""
    finalist_steps: int | None = None
    width_per_depth: int | None = None  # isoflop over depths: a model's width is this many times its depth
    flops_by: Literal["6nd", "counted"] = "6nd"
    """isoflop: a budget is 6 x parameters x tokens, or 6 x the counted multiply-accumulates."""
    grids: Mapping[str, Grid] = field(default_factory=dict)
    spaces: Mapping[str, Space] = field(default_factory=dict)

    @property
    def kind(self) -> StudyKind:
        return StudyKind(self.sampler) if self.sampler in ("grid", "isoflop") else StudyKind.SCATTERED

    def validate(self) -> None:
        validate_positive(self, "search", "seeds", "round_size")
        if self.axis not in AXES:
            raise BadInput(f"search.axis {self.axis!r}: {nearest(self.axis, AXES)}")
        isoflop = self.kind is StudyKind.ISOFLOP
        hps = [name for name in SETTINGS if name not in AXES] if not isoflop else ["width", "depth"]
        if self.hp not in hps:
            raise BadInput(f"search.hp {self.hp!r}: {nearest(self.hp, hps)}")
        for name in (self.axis, self.hp):
            if name not in self.grids and name not in self.spaces:
                raise BadInput(f"search.{name} is missing: give the grid as a list, search.{name}=[...]")
        if self.axis in self.spaces:
            raise BadInput(f"search.{self.axis} is the axis: give a list, search.{self.axis}=[...]")
        if isoflop != (self.axis == "flops") or (not isoflop and "flops" in self.grids):
            raise BadInput("search.flops is the axis of sampler isoflop and of no other: give search.sampler=isoflop")
        self._validate_sampler()

    def _validate_sampler(self) -> None:
        drawn = self.kind is StudyKind.SCATTERED
        if self.spaces and not drawn:
            name = next(iter(self.spaces))
            remedy = "give a list, or a sampler that draws, search.sampler=tpe"
            raise BadInput(f"search.{name} is a space to draw from: {remedy}")
        if drawn and not self.spaces:
            example = f"search.{self.hp}={{log_uniform:[LOW,HIGH]}}"
            raise BadInput(f"search.sampler {self.sampler} has no space to draw from: give one, {example}")
        if drawn and self.num_settings is None:
            raise BadInput(f"search.sampler {self.sampler} needs a number of settings: give search.num_settings=20")
        if not drawn and self.num_settings is not None:
            raise BadInput(f"search.num_settings has no effect with sampler {self.sampler}: leave it out")
        validate_positive(self, "search", "num_settings")
        if (self.finalists > 0) != (self.finalist_steps is not None):
            raise BadInput("search.finalists and search.finalist_steps go together: give both, or neither")
        if self.finalists and not drawn:
            raise BadInput(f"search.finalists has no effect with sampler {self.sampler}: leave it out")
        if self.finalists and ("steps" in self.grids or "steps" in self.spaces):
            raise BadInput("search.finalists has no effect where search.steps varies: leave one of them out")
        if self.sampler == "cmaes":
            choice = next((name for name, space in self.spaces.items() if space.kind == "choice"), None)
            if choice is not None or len(self.spaces) < 2:
                why = f"search.{choice} is a choice" if choice else f"search.{self.hp} is the only space"
                remedy = "use search.sampler=tpe or gp"
                raise BadInput(f"{why}, and sampler cmaes draws two or more numbers together: {remedy}")
        if self.width_per_depth is not None and (self.kind, self.hp) != (StudyKind.ISOFLOP, "depth"):
            raise BadInput("search.width_per_depth has an effect with sampler isoflop over depths alone: leave it out")


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where trials run. A slot runs one trial at a time, on a CPU thread or a GPU."""

    address: str | None = None  # a running Ray cluster to join; None: a private one on this machine
    device: Literal["auto", "cpu", "cuda"] = "auto"
    slots: int | None = None  # None: every core, or every GPU
    max_failures: int = 2  # how often a trial is started again after its process died
    orphan_seconds: float = 60.0
    """A trial's process ends itself when its driver is silent for this long. The trial resumes from its checkpoint."""

    def validate(self) -> None:
        validate_positive(self, "compute", "slots")
        if self.max_failures < 0:
            raise BadInput(f"compute.max_failures {self.max_failures}: expected at least 0")
        validate_positive(self, "compute", "orphan_seconds")


LONGEST_LEASE_SECONDS = 86_400.0


@dataclass(frozen=True, kw_only=True)
class LedgerConfig:
    """Where records are kept. `tracking_uri` None: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in this folder."""

    tracking_uri: str | None = None
    experiment: str = "muxfer"
    patience_seconds: float = 60.0  # how long a command waits at its end for a ledger that does not respond
    lease_seconds: float = 30.0  # time-to-live of a driver's hold on a study, for drivers on other hosts

    def validate(self) -> None:
        validate_positive(self, "ledger", "lease_seconds")
        if self.lease_seconds > LONGEST_LEASE_SECONDS:
            raise BadInput(f"ledger.lease_seconds {self.lease_seconds:g}: expected at most {LONGEST_LEASE_SECONDS:g}")
        validate_at_least_0(self, "ledger", "patience_seconds")
        if not self.experiment.strip() or len(self.experiment) > 200 or not self.experiment.isprintable():
            raise BadInput(f"ledger.experiment {self.experiment[:40]!r}: expected 1 to 200 printable characters")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The large run that the study is for. None: the proxies' value, or the value that `muxfer transfer` derives."""

    width: int
    steps: int
    depth: int | None = None
    batch_size: int | None = None
    base_width: int | None = None  # any value but the proxies' is refused: a target has their base width
    base_lr: float | None = None  # Replaces the study's. The record says that it was forced.
    warmup_steps: int | None = None
    weight_decay: float | None = None
    label_dropout: float | None = None
    guard: Literal["on", "off", True, False] = "on"
    """on: halt the target when its loss leaves the proxies' prediction. YAML reads on and off as true and false."""

    @property
    def guarded(self) -> bool:
        return self.guard in ("on", True)

    def validate(self) -> None:
        validate_positive(self, "target", "width", "steps", "depth", "batch_size", "base_width", "base_lr")
        validate_at_least_0(self, "target", "weight_decay")
        if self.warmup_steps is not None and not 0 <= self.warmup_steps <= self.steps:
            raise BadInput(f"target.warmup_steps {self.warmup_steps}: expected 0 to target.steps {self.steps}")
        validate_below_1(self, "target", "label_dropout")


@dataclass(frozen=True, kw_only=True)
class Check:
    """A coordinate check: its widths or depths, its steps and its learning rate. No part of a study or a trial. The
    rate is much smaller than in training. Slopes have a meaning only while the weights move little.
    """

    axis: Literal["width", "depth"] = "width"
    sizes: tuple[int, ...] = (32, 64, 128, 256)
    steps: int = 10
    seeds: int = 3
    base_lr: float = 2**-16
    batch_size: int = 16

    def validate(self) -> None:
        if min(self.sizes, default=1) <= 0:
            raise BadInput(f"check.sizes {min(self.sizes)}: expected a number above 0")
        if len(set(self.sizes)) < max(4, len(self.sizes)) or max(self.sizes) < 8 * min(self.sizes):
            example = "[32,64,128,256]" if self.axis == "width" else "[2,4,8,16] (a U-ViT's are odd: [3,5,9,25])"
            raise BadInput(
                f"check.sizes {list(self.sizes)}: a slope needs at least 4 different {self.axis}s over a range of 8x,"
                f" for example {example}"
            )
        if (n := self.steps) < 10:
            raise BadInput(f"check.steps {n}: expected at least 10; blocks behind zero gates get no gradient before")
        validate_positive(self, "check", "seeds", "base_lr", "batch_size")


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The disk space that checkpoints may take. No part of a study or a trial."""

    budget_gb: float | None = None  # None: the free space where they are written, minus 1 GB

    def validate(self) -> None:
        validate_positive(self, "checkpoints", "budget_gb")


@dataclass(frozen=True, kw_only=True)
class Published:
    """How a paper counts its models, where muxfer counts otherwise. For `muxfer plan`; no part of a study."""

    proxy_params: float
    target_params: float
    pretrainings: int | None = None  # tuning the target by hand took this many full pretrainings

    def validate(self) -> None:
        validate_positive(self, "published", "proxy_params", "target_params", "pretrainings")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One study: the proxy task, the search, the target, where it runs and where it is recorded."""

    model: Model
    data: Data
    objective: RectifiedFlow | DDPM
    optimizer: Optimizer
    training: Training
    evaluation: Evaluation
    search: Search
    target: Target
    compute: Compute
    ledger: LedgerConfig
    check: Check = field(default_factory=Check)
    """This and the next have defaults because configurations in earlier ledgers lack them."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    published: Published | None = None
    output_dir: str | None = None
    description: str = ""

    @property
    def task(self) -> Task:
        return Task(**{key.name: getattr(self, key.name) for key in dataclasses.fields(Task)})
