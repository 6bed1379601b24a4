"""Small models of every family, with a batch for each: random weights, because zero gates would hide faults."""

from typing import Any

import torch
from torch import nn

from proxy_models import FAMILIES

SMALL: dict[str, Any] = {"width": 32, "depth": 2, "head_dim": 16, "patch": 2, "image_size": 8, "channels": 3}
CONDITIONS = {"labels": {"num_classes": 5}, "text": {"text_dim": 6}, "pooled": {"pooled_dim": 5}}
"""Sizes by the source that needs them."""


def sizes_of(family: str, **changes: Any) -> dict[str, Any]:
    conditions = [CONDITIONS.get(source, {}) for source in FAMILIES[family].inputs.values()]
    odd = {"depth": 3} if family == "uvit" else {}
    return {**SMALL, **odd, **{key: size for sizes in conditions for key, size in sizes.items()}, **changes}


def build(family: str, **changes: Any) -> Any:
    return FAMILIES[family].build(**sizes_of(family, **changes))


def randomize(model: nn.Module, *, std: float = 0.2, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def randomized(family: str, **changes: Any) -> Any:
    model = build(family, **changes)
    randomize(model)
    return model


def batch(family: str, size: int = 3, *, length: int = 4, **changes: Any) -> dict[str, torch.Tensor]:
    """The arguments of forward. The mask has all tokens of the first caption, one less of each caption after it."""
    sizes = {"num_classes": 5, "text_dim": 6, "pooled_dim": 5, **sizes_of(family, **changes)}
    generator = torch.Generator().manual_seed(1)
    sources = {
        "image": torch.randn(size, sizes["channels"], sizes["image_size"], sizes["image_size"], generator=generator),
        "timestep": torch.tensor([0.0, 500.0, 999.0])[:size],
        "labels": torch.tensor([0, (sizes["num_classes"] + 1) // 2, sizes["num_classes"]])[:size],
        "text": torch.randn(size, length, sizes["text_dim"], generator=generator),
        "text_mask": torch.arange(length) < (length - torch.arange(size))[:, None],
        "pooled": torch.randn(size, sizes["pooled_dim"], generator=generator),
    }
    return {argument: sources[source] for argument, source in FAMILIES[family].inputs.items()}
