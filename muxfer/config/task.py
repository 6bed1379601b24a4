"""What one trial trains, as typed data. It travels to the worker as plain data, and is parsed again there."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from muxfer.config.bounds import validate_at_least_0, validate_below_1, validate_fraction, validate_positive
from muxfer.config.models import Mmdit, Model, Uvit
from muxfer.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Digits:
    """1,797 scans of handwritten digits, 8x8, from scikit-learn."""

    name: Literal["digits"]
    image_size: int = 8
    channels: int = 1

    def validate(self) -> None:
        if (self.image_size, self.channels) != (8, 1):
            given = f"data.image_size {self.image_size}, data.channels {self.channels}"
            raise BadInput(f"{given}: the digits are 8x8 grey scans, image_size 8 and channels 1")


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """The user's own images: one subfolder per class, or a flat folder as a single class."""

    name: Literal["image_folder"]
    path: str
    image_size: int
    channels: int = 3
    validation_fraction: float = 0.1

    def validate(self) -> None:
        validate_positive(self, "data", "image_size")
        if self.channels not in (1, 3):
            raise BadInput(f"data.channels {self.channels}: expected 1 (grey) or 3 (RGB)")
        validate_fraction(self, "data", "validation_fraction")


@dataclass(frozen=True, kw_only=True)
class DescribedData:
    """Data that is described only, and is not on this machine. `muxfer plan` counts its study; a sweep refuses it."""

    name: Literal["planned"]
    image_size: int
    channels: int
    num_samples: int
    num_classes: int = 1
    text_tokens: int | None = None  # length of the longest caption with its end token, for models that read text

    def validate(self) -> None:
        validate_positive(self, "data", "image_size", "channels", "num_samples", "num_classes", "text_tokens")


Data = Digits | ImageFolder | DescribedData


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow:
    """x_t = (1-t) x + t noise, v = noise - x predicted, t from a logit-normal (Stable Diffusion 3, eq. 2 and 19)."""

    name: Literal["rectified_flow"]
    logit_mean: float = 0.0
    logit_std: float = 1.0
    repa_weight: float = 0.0
    """Weight of the cosine loss of a middle block to a frozen encoder's features (REPA, Yu et al. 2025, eq. 8)."""

    def validate(self) -> None:
        validate_positive(self, "objective", "logit_std")
        validate_at_least_0(self, "objective", "repa_weight")


@dataclass(frozen=True, kw_only=True)
class DDPM:
    """Noise prediction under the linear schedule of betas (Ho et al. 2020, eq. 14)."""

    name: Literal["ddpm"]
    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    repa_weight: float = 0.0  # as for rectified_flow

    def validate(self) -> None:
        validate_positive(self, "objective", "num_timesteps")
        validate_at_least_0(self, "objective", "repa_weight")
        if not 0 < self.beta_start <= self.beta_end < 1:
            start, end = self.beta_start, self.beta_end
            raise BadInput(f"objective.beta_start {start}, beta_end {end}: expected 0 < start <= end < 1")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW under a parametrization. Every number holds at the base width, and is scaled by role for another width."""

    parametrization: Literal["mup", "standard", "stock", "completep"]
    base_lr: float
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    grad_clip: float | None = None  # global norm of the unfolded gradients; None: no clipping
    output_multiplier: float = 1.0

    def validate(self) -> None:
        validate_positive(self, "optimizer", "base_lr", "eps", "output_multiplier")
        validate_below_1(self, "optimizer", "beta1", "beta2")
        validate_at_least_0(self, "optimizer", "weight_decay")
        validate_positive(self, "optimizer", "grad_clip")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a trial trains. All settings of a study share these values, except for those that the study varies."""

    steps: int
    batch_size: int
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    label_dropout: float = 0.1
    ema_fraction: float = 0.05  # time constant of the averaged weights, as a share of the steps
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the device supports it natively, float32 elsewhere."""
    seed: int = 0
    checkpoint_every: int = 100
    report_every: int = 10

    def validate(self) -> None:
        validate_positive(self, "training", "steps", "batch_size", "checkpoint_every", "report_every")
        if not 0 <= self.warmup_steps <= self.steps:
            raise BadInput(f"training.warmup_steps {self.warmup_steps}: expected 0 to training.steps {self.steps}")
        validate_below_1(self, "training", "label_dropout")
        validate_fraction(self, "training", "ema_fraction")
        if not 0 <= self.seed < 2**31:
            raise BadInput(f"training.seed {self.seed}: expected 0 to 2^31 - 1")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a model is scored, on a fixed grid of timesteps, and how samples are drawn from it."""

    timesteps: int = 8
    sampler: Literal["flow_match_euler", "ddpm", "ddim"] | None = None
    """None: flow_match_euler for rectified flow, ddim for DDPM."""
    sampling_steps: int = 50
    guidance: float = 2.0
    samples_per_class: int = 8

    def validate(self) -> None:
        validate_positive(self, "evaluation", "timesteps", "sampling_steps", "samples_per_class")
        if not 1 <= self.guidance < math.inf:
            raise BadInput(f"evaluation.guidance {self.guidance}: expected a number of at least 1 (1: no guidance)")


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that decides one trial's numbers, and the place of its data."""

    model: Model
    data: Data
    objective: RectifiedFlow | DDPM
    optimizer: Optimizer
    training: Training
    evaluation: Evaluation

    def validate(self) -> None:
        """Validate what several parts must agree on."""
        for key in ("image_size", "channels"):
            if getattr(self.model, key) != getattr(self.data, key):
                differs = f"model.{key} {getattr(self.model, key)} differs from data.{key} {getattr(self.data, key)}"
                raise BadInput(f"{differs}; set data.{key} and leave model.{key} to follow it")
        flow = isinstance(self.objective, RectifiedFlow)
        if self.evaluation.sampler is not None and flow != (self.evaluation.sampler == "flow_match_euler"):
            expected = "flow_match_euler" if flow else "ddpm or ddim"
            given = f"evaluation.sampler {self.evaluation.sampler}"
            raise BadInput(f"{given} does not sample objective {self.objective.name}; use {expected}")
        if self.model.learn_sigma and flow:
            raise BadInput("model.learn_sigma has no effect under objective rectified_flow; set it to false")
        if self.optimizer.parametrization == "stock" and self.optimizer.output_multiplier != 1:
            raise BadInput("optimizer.output_multiplier has no effect under parametrization stock; set it to 1")
        self.validate_depth()
        self._validate_repa()

    def validate_depth(self) -> None:
        """Validate what the model and the optimizer must agree on."""
        completep = self.optimizer.parametrization == "completep"
        if completep and self.model.base_depth is None:
            remedy = "give model.base_depth=DEPTH"
            raise BadInput(
                f"optimizer.parametrization completep needs the depth at which the base settings hold: {remedy}"
            )
        if not completep and self.model.base_depth is not None:
            raise BadInput("model.base_depth has no effect without optimizer.parametrization=completep; leave it out")
        if completep and isinstance(self.model, Uvit) and self.model.skip == "linear":
            raise BadInput(
                "optimizer.parametrization completep cannot scale a U-ViT's skip linear, which mixes the trunk anew:"
                " use model.skip=residual, x + W[x; skip]"
            )

    def _validate_repa(self) -> None:
        has_projector = isinstance(self.model, Mmdit) and self.model.repa_depth is not None
        if self.objective.repa_weight and not has_projector:
            remedy = "model=mmdit with model.repa_depth and model.repa_dim"
            raise BadInput(f"objective.repa_weight needs a model with a projector: {remedy}")
        if has_projector and not self.objective.repa_weight:
            raise BadInput("model.repa_depth has no effect without objective.repa_weight; give it, or leave both out")


def to_plain(config: Any) -> dict[str, Any]:
    """A part of the configuration as plain data, which `config.parse` reads back."""
    plain = _without_tuples(dataclasses.asdict(config))
    if isinstance(search := plain.get("search"), dict):
        search |= {**search.pop("grids"), **search.pop("spaces")}
    return plain


def _without_tuples(value: Any) -> Any:
    """Replace tuples by lists, as JSON does. A study from the ledger must equal one that was just composed."""
    if isinstance(value, Mapping):
        return {key: _without_tuples(item) for key, item in value.items()}
    return [_without_tuples(item) for item in value] if isinstance(value, list | tuple) else value


def validate(config: Any) -> None:
    """Validate a part of the configuration, every part in it first."""
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        if dataclasses.is_dataclass(value):
            validate(value)
    if hasattr(config, "validate"):
        config.validate()
