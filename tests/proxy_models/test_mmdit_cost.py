"""MMDiT has the sizes of Stable Diffusion 3 and of the μP paper, and its costs follow from its keys."""

import dataclasses
from typing import Any

import diffusers
import pytest
import torch

from muxfer.models.count import measure
from tests.proxy_models.mmdit_cases import REPA, composed, config


def test_stable_diffusion_3_medium_has_its_size() -> None:
    """2,028,328,000 parameters, as diffusers counts them on the meta device."""
    model = composed("+size=sd3_medium")
    with torch.device("meta"):
        reference = diffusers.SD3Transformer2DModel(
            num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=64
        )
    count = measure(model).parameters
    assert count == sum(parameter.numel() for parameter in reference.parameters()) == 2_028_328_000


@pytest.mark.parametrize(("width", "billions"), [(512, 0.152), (1920, 2.104), (5120, 14.899)])
def test_the_mup_papers_target_and_proxies_can_be_built(width: int, billions: float) -> None:
    """The paper says 18B and 0.18B. The note in conf/size/mmdit_18b.yaml explains the difference."""
    model = dataclasses.replace(composed("+size=mmdit_18b"), width=width)
    model.validate()
    assert measure(model).parameters / 1e9 == pytest.approx(billions, abs=0.001)


@pytest.mark.parametrize("changes", [{}, {"depth": 1}, {"width": 64, "depth": 3, "patch": 4, "qk_norm": False}, REPA])
def test_size_and_multiply_accumulates_follow_from_the_keys(changes: dict[str, Any]) -> None:
    model = config(**changes)
    caption = "a scan of the digit seven"
    width, depth, image, text = model.width, model.depth, (model.image_size // model.patch) ** 2, 7
    pixels = model.patch**2 * model.channels
    embedders = (model.text_dim * text + 256 + model.pooled_dim + 2 * width) * width
    stream, last = 12 * width**2, 3 * width**2
    modulations = 12 * depth - 4 + 2
    macs = (
        2 * pixels * width * image
        + embedders
        + (depth * image + (depth - 1) * text) * stream
        + last * text
        + modulations * width**2
        + depth * 2 * (image + text) ** 2 * width
    )
    biases_and_weights = (
        (pixels + 1) * width
        + (width + 1) * pixels
        + (model.text_dim + 1 + 256 + 1 + model.pooled_dim + 1 + 2 * (width + 1)) * width
        + (2 * depth - 1) * (stream + 9 * width)
        + last
        + 3 * width
        + modulations * (width + 1) * width
        + (4 * depth * model.head_dim if model.qk_norm else 0)
    )
    if model.repa_dim is not None:  # counted as parameters, but no sample needs it
        hidden = 2 * model.repa_dim
        biases_and_weights += (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * model.repa_dim
    cost = measure(model, [caption])
    assert (cost.parameters, cost.macs) == (biases_and_weights, macs)
