"""Parameters and multiply-accumulates are those of the papers."""

import dataclasses

import pytest

from muxfer.models.count import measure
from muxfer.study.cost import estimated_macs


def test_multiply_accumulates_are_the_dit_papers(make_config):
    """DiT-S/2 on a 32x32x4 latent: 6.06 GMACs and 33M parameters (the paper says Gflops)."""
    model = dataclasses.replace(
        make_config().model,
        width=384, base_width=384, depth=12, head_dim=64, patch=2, image_size=32, channels=4, num_classes=1000,
        learn_sigma=True,
    )  # fmt: skip
    task = dataclasses.replace(make_config().task, model=model)
    cost = measure(task.model)
    assert cost.macs / 1e9 == pytest.approx(6.06, abs=0.01)
    assert cost.parameters / 1e6 == pytest.approx(33, abs=0.5)
    assert estimated_macs(model) == pytest.approx(cost.macs, rel=0.15)
