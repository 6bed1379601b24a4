"""Weights carried to diffusers' classes and back: equal outputs there, equal bits here, and nothing lost on the way."""

import dataclasses

import diffusers
import pytest
import torch

from muxfer.config.models import CrossAttention, Declared, Dit, InContext, Model, Pixart, Uvit
from muxfer.errors import BadInput
from muxfer.models.diffusers_weights import counterpart_of, save, to_diffusers
from muxfer.models.families import family_of
from tests.models.from_diffusers import from_diffusers
from tests.proxy_models.every_family import randomize

SIZES = {"width": 32, "base_width": 32, "depth": 2, "head_dim": 16, "patch": 2, "image_size": 8, "channels": 3}
DIT = Dit(family="dit", **SIZES, num_classes=5, frequency_shift=1.0)
PIXART = Pixart(family="pixart", **SIZES, text_dim=12)
CHANGES = [
    {},
    {"learn_sigma": True},
    {"depth": 1, "width": 48, "head_dim": 24},
    {"patch": 4, "image_size": 16, "channels": 1},
    {"head_dim": 8, "image_size": 128, "patch": 16, "channels": 4},  # from 128 on diffusers' own defaults are others
]
MODELS = {
    f"{model.family} {change}": dataclasses.replace(model, **change) for model in (DIT, PIXART) for change in CHANGES
}


def randomized(model: Model) -> torch.nn.Module:
    built = family_of(model).build(model.width).eval()
    randomize(built)
    return built


def inputs(model: Model) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One batch as our forward takes it, and as diffusers' does; captions are padded, but for the first."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, model.channels, model.image_size, model.image_size, generator=generator)
    t_B = torch.tensor([0.0, 500.0, 999.0])
    ours, theirs = {"x_BCHW": image, "t_B": t_B}, {"hidden_states": image, "timestep": t_B}
    if isinstance(model, Pixart):
        text_BLE = torch.randn(3, 5, model.text_dim, generator=generator)
        mask_BL = torch.arange(5)[None] < torch.tensor([5, 1, 3])[:, None]
        ours |= {"text_BLE": text_BLE, "mask_BL": mask_BL}
        theirs |= {"encoder_hidden_states": text_BLE, "encoder_attention_mask": mask_BL.long()}
    else:
        y_B = torch.tensor([0, 3, 5])
        ours, theirs = ours | {"y_B": y_B}, theirs | {"class_labels": y_B}
    return ours, theirs


@pytest.mark.parametrize("case", MODELS)
@torch.no_grad()
def test_diffusers_outputs_equal_ours_with_carried_weights(case: str) -> None:
    model = MODELS[case]
    built = randomized(model)
    class_name, config, state = to_diffusers(model, built.state_dict())
    theirs = getattr(diffusers, class_name)(**config).eval()
    theirs.load_state_dict(state)
    own_inputs, their_inputs = inputs(model)
    expected = built(**own_inputs)
    assert expected.shape[1] == model.channels * (1 + model.learn_sigma)
    assert expected.std() > 0.1
    torch.testing.assert_close(theirs(**their_inputs).sample, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", MODELS)
def test_weights_carried_there_and_back_are_bit_exact(case: str) -> None:
    model = MODELS[case]
    ours = randomized(model).state_dict()
    class_name, config, theirs = to_diffusers(model, ours)
    back = from_diffusers(model, theirs)
    assert set(back) == set(ours)
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())
    again = to_diffusers(model, back)
    assert again[:2] == (class_name, config)
    assert all(torch.equal(again[2][name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("model", [DIT, PIXART], ids=["dit", "pixart"])
@torch.no_grad()
def test_our_outputs_equal_diffusers_with_its_own_weights(model: Model) -> None:
    """The other way round, from a model that was never ours."""
    torch.manual_seed(0)
    counterpart = counterpart_of(model)
    theirs = getattr(diffusers, counterpart.class_name)(**counterpart.config).eval()
    state = dict(theirs.state_dict())
    if isinstance(model, Dit):  # each block drew embedders of its own
        for name in state:
            if ".norm1.emb." in name:
                state[name] = state[name.replace("transformer_blocks.1.", "transformer_blocks.0.")]
    theirs.load_state_dict(state)
    built = family_of(model).build(model.width).eval()
    built.load_state_dict(from_diffusers(model, state))
    own_inputs, their_inputs = inputs(model)
    torch.testing.assert_close(built(**own_inputs), theirs(**their_inputs).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [DIT, PIXART], ids=["dit", "pixart"])
@torch.no_grad()
def test_a_saved_folder_is_loaded_by_the_class(model: Model, tmp_path) -> None:
    built = randomized(model)
    class_name, config, state = to_diffusers(model, built.state_dict())
    count = save(tmp_path / "saved", class_name, config, state)
    loaded = getattr(diffusers, class_name).from_pretrained(tmp_path / "saved")
    assert count == sum(parameter.numel() for parameter in loaded.parameters())
    assert not loaded.training
    own_inputs, their_inputs = inputs(model)
    torch.testing.assert_close(loaded(**their_inputs).sample, built(**own_inputs), rtol=1e-5, atol=1e-5)


DECLARED = Declared(
    family="declared",
    **SIZES,
    target="diffusers:SD3Transformer2DModel",
    sizes={
        "num_attention_heads": "width // head_dim",
        "attention_head_dim": "head_dim",
        "caption_projection_dim": "width",
        "num_layers": "depth",
        "patch_size": "patch",
        "sample_size": "image_size",
        "in_channels": "channels",
        "out_channels": "channels",
        "pooled_projection_dim": "pooled_dim",
        "joint_attention_dim": "text_dim",
    },
    arguments={"pos_embed_max_size": 8},
    inputs={
        "hidden_states": "image",
        "timestep": "timestep",
        "encoder_hidden_states": "text",
        "pooled_projections": "pooled",
    },
    text_dim=12,
    pooled_dim=6,
)


def test_a_declared_diffusers_class_keeps_names_and_configuration(tmp_path) -> None:
    built = randomized(DECLARED)
    class_name, config, state = to_diffusers(DECLARED, dict(built.named_parameters()))
    assert class_name == "SD3Transformer2DModel"
    assert (config["num_attention_heads"], config["pos_embed_max_size"], config["qk_norm"]) == (2, 8, None)
    assert state.keys() == dict(built.named_parameters()).keys()
    save(tmp_path / "saved", class_name, config, state)
    loaded = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "saved")
    given = {name: tensor.detach() for name, tensor in built.state_dict().items()}
    assert loaded.state_dict().keys() == given.keys(), "with the position table, which is no parameter"
    assert all(torch.equal(tensor, given[name]) for name, tensor in loaded.state_dict().items())


REFUSED = {
    "the timesteps of the reference": (dataclasses.replace(DIT, frequency_shift=0.0), "model.frequency_shift=1"),
    "another block": (dataclasses.replace(DIT, block="adaln"), "dit \\(adaln_zero\\), pixart, mmdit"),
    "another mlp": (dataclasses.replace(PIXART, mlp_ratio=2.0), "retrain with model.mlp_ratio=4"),
    "U-ViT": (Uvit(family="uvit", **SIZES, num_classes=5), "diffusers has no such model"),
    "in context": (InContext(family="in_context", **SIZES, text_dim=12), "diffusers has no such model"),
    "cross-attention": (CrossAttention(family="cross_attention", **SIZES, text_dim=12), "diffusers has no such model"),
    "a plugin's class": (dataclasses.replace(DECLARED, target="my.plugin:MyModel"), "diffusers has no such model"),
    "unknown classes": (dataclasses.replace(DIT, num_classes=None), "model.num_classes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_diffusers_lacks_are_refused(case: str) -> None:
    model, message = REFUSED[case]
    with pytest.raises(BadInput, match=message):
        to_diffusers(model, {})


def test_weights_of_another_model_are_refused() -> None:
    ours = randomized(DIT).state_dict()
    deeper = dataclasses.replace(DIT, depth=3)
    with pytest.raises(BadInput, match=r"the configuration has blocks\.2\.\S+, the weights have not"):
        to_diffusers(deeper, ours)
    with pytest.raises(BadInput, match="the weights have extra, the configuration has not"):
        to_diffusers(DIT, {**ours, "extra": torch.zeros(1)})
