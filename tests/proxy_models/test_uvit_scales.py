"""U-ViT's sizes, costs, initializations and roles."""

import dataclasses

import pytest
import torch

from muxfer.config.hydra_compose import compose
from muxfer.config.models import Uvit
from muxfer.config.parse import parse_part
from muxfer.models.count import measure
from muxfer.models.families import family_of
from muxfer.mup import make_plan
from proxy_models import FAMILIES
from proxy_models.uvit import UViT
from tests.proxy_models.every_family import sizes_of

LABELS = sizes_of("uvit", depth=5)


def config(**change) -> Uvit:
    sizes = {"width": 64, "depth": 5, "head_dim": 16, "patch": 2, "image_size": 8, "channels": 1}
    return Uvit(**{"family": "uvit", "base_width": 64, "num_classes": 10, **sizes, **change})


@pytest.mark.parametrize(("size", "millions"), [("s_2", 44), ("m_2", 131), ("l_2", 287), ("h_2", 501)])
def test_sizes_have_the_papers_parameter_counts(size: str, millions: int) -> None:
    model = parse_part("model", compose("lr-width", ["model=uvit", f"+size=uvit_{size}"]))
    assert round(measure(model).parameters / 1e6) == millions


def test_the_configuration_reads_labels_or_captions_by_one_key(make_config) -> None:
    labels = make_config("model=uvit").model
    assert measure(dataclasses.replace(labels, num_classes=10)) == measure(config(width=64))
    text = make_config("model=uvit", "model.text_dim=32", "model.skip=residual").model
    assert measure(text) == measure(config(num_classes=None, text_dim=32, skip="residual"))


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_cost_follows_the_formula(learn_sigma: bool) -> None:
    width, half, classes, channels, pixels, tokens = 64, 2, 10, 1, 8 * 8, 16
    out, depth, sequence = channels * (1 + learn_sigma), 2 * half + 1, tokens + 2
    attention, mlp = 3 * width**2 + width**2 + width, 2 * 4 * width**2 + 4 * width + width
    parameters = (
        4 * channels * width + width  # patch_embed
        + (classes + 1) * width + sequence * width  # label_emb, pos_embed
        + depth * (attention + mlp + 4 * width) + half * (2 * width**2 + width)
        + 2 * width + 4 * out * width + 4 * out + 9 * out**2 + out  # norm, decoder_pred, final_layer
    )  # fmt: skip
    macs = (
        tokens * 4 * channels * width
        + sequence * (depth * 12 * width**2 + half * 2 * width**2)
        + depth * 2 * sequence**2 * width
        + tokens * 4 * out * width
        + pixels * 9 * out**2
    )
    cost = measure(config(learn_sigma=learn_sigma))
    assert (cost.parameters, cost.macs) == (parameters, macs)


def test_text_changes_the_cost_by_its_tokens() -> None:
    """Text swaps the label's table and token for a linear, 77 positions and the caption's tokens (6 and the end)."""
    labels = measure(config())
    text = measure(config(num_classes=None, text_dim=32), captions=["one scan of the digit seven"])
    width, depth, half, short, long = 64, 5, 2, 18, 24
    assert text.parameters - labels.parameters == (32 * width + width) + 76 * width - 11 * width
    assert text.macs - labels.macs == (
        7 * 32 * width
        + (long - short) * (depth * 12 * width**2 + half * 2 * width**2)
        + depth * 2 * (long**2 - short**2) * width
    )


def test_initial_deviations_do_not_depend_on_the_width() -> None:
    plans = [
        make_plan(lambda width: UViT(**{**LABELS, "width": width}), width=width, base_width=32, readout=None)
        for width in (64, 256)
    ]
    deviations = [{name: (own.mean, own.std) for name, own in plan.initializations.items()} for plan in plans]
    assert deviations[0] == deviations[1]
    assert [name for name, own in deviations[0].items() if own == (0.0, 0.0) and "bias" not in name] == [
        "decoder_pred.weight"
    ]


def test_one_seed_gives_all_widths_the_same_last_convolution() -> None:
    layers = []
    for width in (32, 128):
        torch.manual_seed(0)
        layers.append(UViT(**{**LABELS, "width": width}).final_layer.state_dict())
    assert all(torch.equal(layers[0][name], layers[1][name]) for name in ("weight", "bias"))
    assert layers[0]["weight"].std() > 0.05


ROLES = {
    "patch_embed.proj.weight": "input",
    "label_emb.weight": "input",
    "pos_embed": "input",
    "in_blocks.0.attn.qkv.weight": "hidden",
    "in_blocks.0.norm1.weight": "input",
    "out_blocks.0.skip_linear.weight": "hidden",
    "mid_block.mlp.fc2.bias": "input",
    "decoder_pred.weight": "readout",
    "decoder_pred.bias": "finite",
    "final_layer.weight": "finite",
    "final_layer.bias": "finite",
}


@pytest.mark.parametrize("skip", ["linear", "residual"])
@pytest.mark.parametrize("condition", [{"num_classes": 10}, {"num_classes": None, "text_dim": 32}])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_the_plan_finds_one_readout(width: int, condition: dict, skip: str) -> None:
    model = config(**condition, skip=skip)
    family = family_of(model)
    plan = make_plan(family.build, width=width, base_width=64, readout=family.readout, declared=family.declared)
    roles = {name: scale.role for name, scale in plan.scales.items()}
    assert [name for name, role in roles.items() if role == "readout"] == [family.readout]
    expected = {name: role for name, role in ROLES.items() if name in roles}
    assert {name: roles[name] for name in expected} == expected
    assert len(expected) == len(ROLES) - ("text_dim" in condition)
    assert all(own is not None and own.recorded for own in plan.initializations.values())


def test_a_family_reads_labels_or_text() -> None:
    assert set(family_of(config()).inputs) == {"x_BCHW", "t_B", "y_B"}
    assert set(family_of(config(num_classes=None, text_dim=6)).inputs) == {"x_BCHW", "t_B", "text_BLE", "mask_BL"}


def test_depth_scaling_has_branch_ends_with_residual_skips_only() -> None:
    assert family_of(config()).branch_ends == ()
    assert family_of(config(skip="residual")).branch_ends == FAMILIES["uvit"].branch_ends
