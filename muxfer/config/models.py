"""The typed schema of models: one dataclass per family, over the sizes that every transformer here has.

`FIXED` keys say how a model is scaled. All others are arguments of the family's builder. `Declared` describes a class
from diffusers or a plugin: how its arguments follow from the sizes, and what its forward is called with.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from muxfer.config.bounds import validate_positive
from muxfer.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Sizes of every family; `image_size` is the side of the image or latent that the model sees."""

    family: str
    width: int
    base_width: int
    depth: int
    head_dim: int
    patch: int
    image_size: int
    channels: int
    mlp_ratio: float = 4.0
    learn_sigma: bool = False
    base_depth: int | None = None  # depth at which the base settings hold, under parametrization completep

    def validate(self) -> None:
        sizes = ("width", "base_width", "depth", "head_dim", "patch", "image_size", "channels")
        validate_positive(self, "model", *sizes)
        for key in ("width", "base_width"):
            width = getattr(self, key)
            if width % self.head_dim:
                use = max(1, round(width / self.head_dim)) * self.head_dim
                raise BadInput(f"model.{key} {width} is not divisible by model.head_dim {self.head_dim}; use {use}")
        if self.width % 4 or self.base_width % 4:
            raise BadInput(f"model.width {self.width}: 2-d sine-cosine positions need a multiple of 4")
        if self.image_size % self.patch:
            raise BadInput(f"model.image_size {self.image_size} is not divisible by model.patch {self.patch}")
        optional = ("num_classes", "text_dim", "pooled_dim", "repa_depth", "repa_dim")
        validate_positive(self, "model", "mlp_ratio", "base_depth", *(key for key in optional if hasattr(self, key)))


@dataclass(frozen=True, kw_only=True)
class Dit(Transformer):
    """DiT (Peebles and Xie 2023) in its four block designs."""

    family: Literal["dit"]
    num_classes: int | None  # None: as many as the data has
    block: Literal["adaln_zero", "adaln", "cross_attention", "in_context"] = "adaln_zero"
    frequency_shift: float = 0.0
    """Shift of the timestep's frequencies: 0 in the reference, 1 in diffusers' class. An export to it needs 1."""


@dataclass(frozen=True, kw_only=True)
class Pixart(Transformer):
    """PixArt-α (Chen et al. 2023)."""

    family: Literal["pixart"]
    text_dim: int


@dataclass(frozen=True, kw_only=True)
class Uvit(Transformer):
    """U-ViT (Bao et al. 2023). It reads labels, or text where `text_dim` is given."""

    family: Literal["uvit"]
    num_classes: int | None = None  # None without `text_dim`: as many as the data has
    text_dim: int | None = None
    skip: Literal["linear", "residual"] = "linear"
    """linear: W[x; skip], the reference. residual: x + W[x; skip], which depth scaling needs."""

    def validate(self) -> None:
        super().validate()
        for key in ("depth", "base_depth"):
            depth = getattr(self, key)
            if depth is not None and depth % 2 == 0:
                why = "a U-ViT has as many in-blocks as out-blocks, and one block between"
                raise BadInput(f"model.{key} {depth} is even: {why}; use {depth + 1}")
        if self.num_classes is not None and self.text_dim is not None:
            raise BadInput("model.num_classes and model.text_dim are both given: a U-ViT takes labels or text")


@dataclass(frozen=True, kw_only=True)
class Mmdit(Transformer):
    """MMDiT (Stable Diffusion 3, Esser et al. 2024), with a REPA projector where `repa_depth` is given."""

    family: Literal["mmdit"]
    text_dim: int
    pooled_dim: int
    qk_norm: bool = True
    repa_depth: int | None = None
    """The image stream is projected to a frozen encoder's features after this many blocks (Yu et al. 2025)."""
    repa_dim: int | None = None  # size of those features

    def validate(self) -> None:
        super().validate()
        if (self.repa_depth is None) != (self.repa_dim is None):
            raise BadInput("model.repa_depth and model.repa_dim belong together: give both, or neither")
        if self.repa_depth is not None and self.repa_depth > self.depth:
            raise BadInput(f"model.repa_depth {self.repa_depth}: expected 1 to model.depth {self.depth}")


@dataclass(frozen=True, kw_only=True)
class InContext(Transformer):
    """Image, text and time tokens in one sequence (Liang et al. 2024, Scaling laws for diffusion transformers)."""

    family: Literal["in_context"]
    text_dim: int


@dataclass(frozen=True, kw_only=True)
class CrossAttention(Transformer):
    """adaLN for time, cross-attention for text (Liang et al. 2024)."""

    family: Literal["cross_attention"]
    text_dim: int


SOURCES = (
    *("image", "timestep", "labels", "text", "text_mask", "pooled"),
    *("patches", "timestep_unit", "image_ids", "text_ids"),
)
"""What a forward may be given: image [B, C, H, W], timestep [B] in 0..1000 (timestep_unit: 0..1), labels [B], text
[B, L, text_dim] with its mask [B, L] (True: a token), pooled [B, pooled_dim]; for models on sequences patches
[B, T, C*patch*patch], image_ids [T, 3] and text_ids [L, 3]."""


@dataclass(frozen=True, kw_only=True)
class Declared(Transformer):
    """An unchanged class by its name: `diffusers:PixArtTransformer2DModel` or `my.plugin:MyModel`."""

    family: Literal["declared"]
    target: str
    sizes: Mapping[str, str | int]
    """Arguments that follow from the sizes: arithmetic over the keys here, such as `width // head_dim`. True counts as
    1. The keys that a study varies (width, depth) must be used here."""
    arguments: Mapping[str, Any] = field(default_factory=dict)  # arguments with fixed values
    inputs: Mapping[str, str]  # arguments of forward, each with its source (SOURCES)
    output: Literal["image", "patches"] = "image"
    readout: str | None = None  # the output weight that the output multiplier scales
    declared: Mapping[str, str] = field(default_factory=dict)
    """Roles of the parameters whose shape does not show their layout."""
    branches: tuple[str, ...] = ()
    branch_ends: tuple[str, ...] = ()
    num_classes: int | None = None
    """None: as many as the data has. The label num_classes is the null label, so a label table has one row more."""
    text_dim: int | None = None
    pooled_dim: int | None = None

    def validate(self) -> None:
        super().validate()
        for name in (*self.sizes, *self.arguments):
            if not name.isidentifier():
                raise BadInput(f"model.sizes or model.arguments has {name[:40]!r}: expected the name of an argument")
        for argument, source in self.inputs.items():
            if source not in SOURCES:
                raise BadInput(f"model.inputs.{argument} is {source!r}: expected one of {', '.join(SOURCES)}")
        needs = {"text": "text_dim", "text_mask": "text_dim", "text_ids": "text_dim", "pooled": "pooled_dim"}
        for source, key in needs.items():
            if source in self.inputs.values() and getattr(self, key) is None:
                raise BadInput(f"model.inputs uses {source}: give model.{key}")
        if "image" not in self.inputs.values() and "patches" not in self.inputs.values():
            raise BadInput("model.inputs has neither image nor patches: say which argument of forward takes the image")
        if repeated := sorted(self.sizes.keys() & self.arguments.keys()):
            raise BadInput(f"model.sizes.{repeated[0]} and model.arguments.{repeated[0]} are both given: leave one out")
        if not self._names("width"):
            raise BadInput(
                "model.sizes has no argument that follows from width: say how width maps to the class's arguments,"
                " for example num_attention_heads: width // head_dim"
            )
        for key, without in (("depth", 1), ("mlp_ratio", 4.0)):
            if getattr(self, key) != without and not self._names(key):
                raise BadInput(f"model.{key} has no effect: name it under model.sizes, or set it to {without}")

    def _names(self, key: str) -> bool:
        """Whether some size follows from this key."""
        return any(isinstance(size, str) and re.search(rf"\b{key}\b", size) for size in self.sizes.values())


Model = Dit | Pixart | Uvit | Mmdit | InContext | CrossAttention | Declared

FIXED = ("family", "base_width", "base_depth")


def with_num_classes(model: Model, num_classes: int) -> Model:
    """The model for data with this many classes, unchanged if it reads text. BadInput if it expects another number."""
    if isinstance(model, Declared):
        takes_labels = "labels" in model.inputs.values()
    else:
        takes_labels = isinstance(model, Dit | Uvit) and getattr(model, "text_dim", None) is None
    if not takes_labels:
        return model
    assert isinstance(model, Dit | Uvit | Declared)
    if model.num_classes not in (None, num_classes):
        raise BadInput(f"model.num_classes {model.num_classes}: the data has {num_classes} classes; leave it out")
    return dataclasses.replace(model, num_classes=num_classes)


def arguments(model: Model, *, width: int) -> dict[str, Any]:
    """The keyword arguments of a builder in proxy_models/ at this width."""
    assert not isinstance(model, Declared)
    values = {part.name: getattr(model, part.name) for part in dataclasses.fields(model) if part.name not in FIXED}
    return values | {"width": width}
