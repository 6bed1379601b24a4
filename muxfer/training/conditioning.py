"""Call a model with the arguments of its forward. Only this module knows how classes and captions enter a network.

Training, validation and sampling all use (image, timestep, label). For a model that reads text, a label is the row of
a table of embedded captions. The last row is the null label and the empty caption. So one stream, one loss and one
sampler serve every family, and any class whose forward takes these inputs under other names.

Axes: B batch, C channels, H and W pixels, T patches, L caption tokens, E text features, K captions.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from muxfer.data.captions import Captions
from muxfer.errors import BadInput

Source = Callable[["Conditioning", torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Conditioning:
    """`predict(model, x_BCHW, t_B, y_B)`: the model's output as an image, [B, C or 2C, H, W].

    `inputs` maps the arguments of forward to sources (`muxfer.config.models.SOURCES`). `output` says what forward
    returns: an image, or its patches [B, T, C*patch*patch]. Models of other libraries return it first in a tuple, or as
    `.sample`. With `captions` the label of a picture is the row of its caption.
    """

    def __init__(
        self, inputs: Mapping[str, str], *, patch: int, captions: Captions | None = None, output: str = "image"
    ) -> None:
        self._sources = {argument: _SOURCES[source] for argument, source in inputs.items()}
        self._patch, self._captions, self._from_patches = patch, captions, output == "patches"

    def to(self, device: torch.device | str) -> "Conditioning":
        if self._captions is not None:
            self._captions = self._captions.to(device)
        return self

    def __call__(
        self, model: nn.Module, x_BCHW: torch.Tensor, t_B: torch.Tensor, y_B: torch.Tensor, **more: Any
    ) -> torch.Tensor:
        """`more` is passed to forward unchanged. The result is then what forward returns, a tuple included."""
        given = {argument: source(self, x_BCHW, t_B, y_B) for argument, source in self._sources.items()}
        output: Any = model(**given, **more)
        output = getattr(output, "sample", output)
        if isinstance(output, tuple) and not more:
            output = output[0]
        if not isinstance(output, torch.Tensor) and not more:
            expected = "a tensor, a tuple that begins with one, or an object with .sample"
            raise BadInput(f"the model returned {type(output).__name__}: expected {expected}")
        return _to_image(output, x_BCHW, self._patch) if self._from_patches else output

    @property
    def captions(self) -> Captions:
        assert self._captions is not None, "a model that reads text needs embedded captions"
        return self._captions


def _patches(x_BCHW: torch.Tensor, patch: int) -> torch.Tensor:
    """Cut images into patches [B, T, C*patch*patch], channels slowest, as FLUX packs its latents."""
    return F.pixel_unshuffle(x_BCHW, patch).flatten(2).transpose(1, 2)


def _to_image(x_BTD: torch.Tensor, like_BCHW: torch.Tensor, patch: int) -> torch.Tensor:
    height, width = (side // patch for side in like_BCHW.shape[-2:])
    return F.pixel_shuffle(x_BTD.transpose(1, 2).unflatten(2, (height, width)), patch)


def _image_ids(x_BCHW: torch.Tensor, patch: int) -> torch.Tensor:
    """Zero, row and column of every patch [T, 3], as FLUX's rotary positions take them."""
    rows, columns = (torch.arange(side // patch, device=x_BCHW.device) for side in x_BCHW.shape[-2:])
    row_hw, column_hw = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(row_hw), row_hw, column_hw], dim=-1).flatten(0, 1).to(x_BCHW.dtype)


_SOURCES: Mapping[str, Source] = {
    "image": lambda self, x, t, y: x,
    "timestep": lambda self, x, t, y: t,
    "labels": lambda self, x, t, y: y,
    "text": lambda self, x, t, y: self.captions.text_KLE[y].to(x.dtype),
    "text_mask": lambda self, x, t, y: self.captions.mask_KL[y],
    "pooled": lambda self, x, t, y: self.captions.pooled_KP[y].to(x.dtype),
    "patches": lambda self, x, t, y: _patches(x, self._patch),
    "timestep_unit": lambda self, x, t, y: t / 1000,
    "image_ids": lambda self, x, t, y: _image_ids(x, self._patch),
    "text_ids": lambda self, x, t, y: x.new_zeros(self.captions.text_KLE.shape[1], 3),
}
