"""Roles follow from shapes, on our models and on others' as they are; what shapes cannot tell is refused."""

from collections import Counter
from collections.abc import Callable

import diffusers
import numpy
import pytest
import torch
from torch import nn

from muxfer.errors import BadInput
from muxfer.mup import ScalePlan, make_plan
from muxfer.mup.shapes import outline
from proxy_models import FAMILIES


class Stack(nn.Module):
    """Names to modules or raw parameters; nothing here is ever run."""

    def __init__(self, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def plan_of(build: Callable[[int], nn.Module], *, width: int = 256, base_width: int = 64, **kwargs) -> ScalePlan:
    return make_plan(build, width=width, base_width=base_width, **{"readout": None, **kwargs})


def roles_of(build: Callable[[int], nn.Module], **kwargs) -> dict[str, str]:
    return {name: scale.role for name, scale in plan_of(build, **kwargs).scales.items()}


LAYERS = {
    "linear in": (lambda w: nn.Linear(3, w), {"weight": "input", "bias": "input"}),
    "linear": (lambda w: nn.Linear(w, 4 * w), {"weight": "hidden", "bias": "input"}),
    "linear out": (lambda w: nn.Linear(w, 3), {"weight": "readout", "bias": "finite"}),
    "conv in": (lambda w: nn.Conv2d(3, w, 2), {"weight": "input", "bias": "input"}),
    "conv": (lambda w: nn.Conv2d(w, w, 3), {"weight": "hidden", "bias": "input"}),
    "conv out": (lambda w: nn.Conv2d(w, 3, 3), {"weight": "readout", "bias": "finite"}),
    "conv depthwise": (lambda w: nn.Conv2d(w, w, 3, groups=w), {"weight": "input", "bias": "input"}),
    "conv in groups of eight": (lambda w: nn.Conv2d(w, w, 3, groups=w // 8), {"weight": "input", "bias": "input"}),
    "conv in four groups": (lambda w: nn.Conv2d(w, w, 3, groups=4), {"weight": "hidden", "bias": "input"}),
    "transposed in": (lambda w: nn.ConvTranspose2d(3, w, 2), {"weight": "input", "bias": "input"}),
    "transposed": (lambda w: nn.ConvTranspose2d(w, 2 * w, 2), {"weight": "hidden", "bias": "input"}),
    "transposed out": (lambda w: nn.ConvTranspose2d(w, 3, 2), {"weight": "readout", "bias": "finite"}),
    "transposed depthwise": (lambda w: nn.ConvTranspose2d(w, w, 2, groups=w), {"weight": "input", "bias": "input"}),
    "embedding": (lambda w: nn.Embedding(11, w), {"weight": "input"}),
    "norm": (lambda w: nn.LayerNorm(w), {"weight": "input", "bias": "input"}),
    "attention": (
        lambda w: nn.MultiheadAttention(w, w // 16, add_bias_kv=True),
        {
            "in_proj_weight": "hidden",
            "in_proj_bias": "input",
            "bias_k": "input",
            "bias_v": "input",
            "out_proj.weight": "hidden",
            "out_proj.bias": "input",
        },
    ),
}


@pytest.mark.parametrize(("build", "expected"), LAYERS.values(), ids=LAYERS.keys())
def test_role_of_every_layer(build: Callable[[int], nn.Module], expected: dict[str, str]) -> None:
    assert roles_of(build) == expected


def test_finite_layers_and_listed_tables() -> None:
    def build(width: int) -> nn.Module:
        return Stack(
            qk_norm=nn.LayerNorm(16),
            embed=nn.Linear(3, width),
            pos_embed=nn.Parameter(torch.zeros(1, 9, width)),
            cls_token=nn.Parameter(torch.zeros(1, 1, width)),
            scale_shift_table=nn.Parameter(torch.randn(6, width)),
        )

    roles = roles_of(build)
    assert roles["qk_norm.weight"] == "finite"
    assert {roles[name] for name in ("pos_embed", "cls_token", "scale_shift_table")} == {"input"}


def test_dit_roles_by_name() -> None:
    def build(width: int) -> nn.Module:
        return FAMILIES["dit"].build(
            width=width, depth=1, head_dim=16, patch=2, image_size=8, channels=1, num_classes=10
        )

    roles = roles_of(build, readout=FAMILIES["dit"].readout)
    assert {name for name, role in roles.items() if role == "hidden"} == {
        "t_embedder.mlp.2.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "blocks.0.adaLN_modulation.1.weight",
        "final_layer.adaLN_modulation.1.weight",
    }
    assert [name for name, role in roles.items() if role == "readout"] == ["final_layer.linear.weight"]
    assert [name for name, role in roles.items() if role == "finite"] == ["final_layer.linear.bias"]


def dit(width: int) -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=width // 16, attention_head_dim=16, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    )


def pixart(width: int) -> nn.Module:
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=width // 16,
        attention_head_dim=16,
        num_layers=2,
        cross_attention_dim=width,
        caption_channels=24,
        sample_size=8,
        use_additional_conditions=False,
    )


def sd3(width: int) -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=width // 16,
        joint_attention_dim=24,
        caption_projection_dim=width,
        pooled_projection_dim=24,
        qk_norm="rms_norm",
        pos_embed_max_size=8,
    )


@pytest.mark.parametrize(
    ("build", "counts"),
    [
        (dit, {"hidden": 17, "input": 25, "readout": 1, "finite": 1}),
        (pixart, {"hidden": 23, "input": 32, "readout": 1, "finite": 1}),
        (sd3, {"hidden": 28, "input": 36, "readout": 1, "finite": 9}),
    ],
    ids=["DiT", "PixArt", "SD3"],
)
def test_roles_in_diffusers_classes_as_they_are(build: Callable[[int], nn.Module], counts: dict[str, int]) -> None:
    plan = plan_of(build)
    assert Counter(scale.role for scale in plan.scales.values()) == counts
    assert all(law is not None for law in plan.base_initializations.values())


def test_what_agrees_at_base_and_target_still_grows() -> None:
    plan = plan_of(lambda w: nn.Linear(w, w), width=64)
    assert plan.scales["weight"].role == "hidden"


def test_a_declared_role_counts() -> None:
    build = lambda w: Stack(embed=nn.Linear(3, w), probe=nn.Parameter(torch.zeros(3, w)))  # noqa: E731
    assert roles_of(build, declared={"probe": "readout"})["probe"] == "readout"


def test_frozen_parameters_have_no_scale() -> None:
    plan = plan_of(lambda w: Stack(embed=nn.Linear(3, w), teacher=nn.Linear(5, 7).requires_grad_(False)))
    assert set(plan.scales) == {"embed.weight", "embed.bias"}


def tied(width: int) -> nn.Module:
    model = Stack(table=nn.Embedding(11, width), out=nn.Linear(width, 11))
    model.out.weight = model.table.weight
    return model


def tied_alike(width: int) -> nn.Module:
    model = Stack(first=nn.Linear(width, width), second=nn.Linear(width, width))
    model.second.weight = model.first.weight
    return model


def depth_by_width(width: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(width // 32)))


def swiglu(width: int) -> nn.Module:
    return nn.Linear(width, 256 * ((8 * width // 3 + 255) // 256))


def heads_fixed(width: int) -> nn.Module:
    return nn.MultiheadAttention(width, 4)


def diffusers_heads_fixed(width: int) -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=width // 4, num_layers=1, sample_size=8, num_embeds_ada_norm=10
    )


def old_weight_norm(width: int) -> nn.Module:
    linear = nn.Linear(width, width)
    linear.weight_v = nn.Parameter(linear.weight.detach().clone())
    linear.weight_g = nn.Parameter(torch.ones(width, 1))
    return linear


REFUSED = {
    "no growth": (lambda w: nn.Linear(3, 4), "nothing grows"),
    "three growing": (lambda w: nn.Bilinear(w, w, w), "grows in 3 dimensions"),
    "bilinear": (lambda w: nn.Bilinear(w, w, 3), "declare its role"),
    "raw matrix": (lambda w: Stack(a=nn.Parameter(torch.zeros(3, w))), "a .* declare its role"),
    "listed name, layout turned": (lambda w: Stack(pos_embed=nn.Parameter(torch.zeros(w, 3))), "declare its role"),
    "growing rows": (lambda w: nn.Embedding(w, 3), "declare its role"),
    "tied table and readout": (tied, "two roles: table.weight .input., out.weight .readout."),
    "weight norm": (lambda w: nn.utils.parametrizations.weight_norm(nn.Linear(w, w)), "reparametrized"),
    "old weight norm": (old_weight_norm, "reparametrized"),
    "old spectral norm": (lambda w: nn.utils.spectral_norm(nn.Linear(w, w)), "reparametrized"),
    "offset": (lambda w: nn.Linear(w + 3, w), "dimension 1 is 67 at width 64 and 131 at 128.* 134"),
    "rounded": (swiglu, "out of proportion"),
    "finite at two, other at the third": (lambda w: nn.Linear(3 if w < 256 else 5, w), "does not grow"),
    "depth by width": (depth_by_width, "only one of the widths"),
    "rank by width": (lambda w: Stack(a=nn.Parameter(torch.zeros([1] * (w // 64) + [w]))), "dimensions at width"),
    "growing heads": (heads_fixed, "head dim 16 at width 64 and 32 at 128"),
    "growing heads in diffusers": (diffusers_heads_fixed, "head dim 16 at width 64"),
    "reads its values": (lambda w: nn.Linear(int(torch.zeros(1).item()) + 3, w), "cannot be built at width 64"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_the_reason(build: Callable[[int], nn.Module], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        plan_of(build)
    assert "\n" not in str(caught.value)


def test_tied_tensors_of_one_role_have_one_scale() -> None:
    assert roles_of(tied_alike) == {"first.weight": "hidden", "first.bias": "input", "second.bias": "input"}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"readout": "wieght"}, "readout 'wieght' is no parameter.*did you mean 'weight'"),
        ({"readout": "weight"}, "its shapes make it hidden; readouts: none"),
        ({"output_multiplier": 2.0}, "no readout is declared"),
        ({"declared": {"wieght": "hidden"}}, "no parameter of the model; did you mean 'weight'"),
        ({"declared": {"weight": "hiden"}}, "did you mean 'hidden'"),
        ({"other_width": 64}, "other width 64 is the base width"),
        ({"width": 0}, "width 0: expected at least 1"),
        ({"parametrization": "completep"}, "declares no branch ends"),
    ],
)
def test_impossible_plans_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        plan_of(lambda w: nn.Linear(w, w), **kwargs)


def flux(width: int) -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=width // 16,
        joint_attention_dim=24,
        pooled_projection_dim=24,
        axes_dims_rope=(4, 6, 6),
    )


def encoder(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(width, width // 16, 4 * width)


def family(name: str) -> Callable[[int], nn.Module]:
    sizes = {"labels": {"num_classes": 10}, "text": {"text_dim": 24}, "pooled": {"pooled_dim": 24}}
    given = {key: size for source in FAMILIES[name].inputs.values() for key, size in sizes.get(source, {}).items()}
    return lambda width: FAMILIES[name].build(
        width=width, depth=3, head_dim=16, patch=2, image_size=8, channels=1, **given
    )


AS_THEY_ARE = {"DiT": dit, "PixArt": pixart, "SD3": sd3, "FLUX": flux, "encoder layer": encoder}
AS_THEY_ARE |= {name: family(name) for name in FAMILIES}


@pytest.mark.parametrize("build", AS_THEY_ARE.values(), ids=AS_THEY_ARE.keys())
def test_no_number_of_the_usual_models_depends_on_the_width(build: Callable[[int], nn.Module]) -> None:
    numbers = [outline(build, width).numbers for width in (64, 128, 256)]
    assert numbers[0] == numbers[1] == numbers[2]
    assert numbers[0]
    plan_of(build)


class Scaled(nn.Module):
    """A forward with a number in it, kept as an attribute or as a buffer."""

    def __init__(self, width: int, number: Callable[[int], float | torch.Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        value = number(width)
        if isinstance(value, torch.Tensor):
            self.register_buffer("scale", value)
        else:
            self.scale = value


SEES_THE_WIDTH = {
    "attribute": lambda w: w**-0.5,
    "one attribute, at the target alone": lambda w: 0.25 if w < 256 else 0.5,
    "to nan": lambda w: 1.0 if w < 256 else float("nan"),
    "numpy": lambda w: numpy.float64(w) ** -0.5,
    "buffer of torch.tensor": lambda w: torch.tensor(w**-0.5),
    "buffer of a list of one": lambda w: torch.full((1,), w**-0.5),
    "buffer, filled and multiplied": lambda w: torch.ones(1, 1) * w**-0.5,
}


@pytest.mark.parametrize("number", SEES_THE_WIDTH.values(), ids=SEES_THE_WIDTH.keys())
def test_a_number_that_depends_on_the_width_is_refused(number: Callable[[int], float | torch.Tensor]) -> None:
    with pytest.raises(
        BadInput, match=r"deep.0: its .*scale is .* at width .*in a way that the plan cannot see"
    ) as caught:
        plan_of(lambda w: Stack(deep=nn.Sequential(Scaled(w, number))))
    assert "\n" not in str(caught.value)


def test_the_refusal_of_a_number_says_both_values_and_what_to_do() -> None:
    with pytest.raises(BadInput) as caught:
        plan_of(lambda w: Scaled(w, lambda w: w**-0.5))
    assert str(caught.value) == (
        "the model: its attribute scale is 0.125 at width 64 and 0.0884 at 128: the forward depends on the width in a"
        " way that the plan cannot see; keep it fixed (attention logits: 1/sqrt(head_dim))"
    )


SAME_AT_EVERY_WIDTH = {
    "fixed": lambda w: 16**-0.5,
    "nan": lambda w: float("nan"),
    "but for a rounding": lambda w: 0.1 * w / w,
    "a count": lambda w: w,
    "a switch": lambda w: w > 100,
    "positions": lambda w: torch.ones(w) * w,
    "a count in a buffer": lambda w: torch.tensor(w),
    "buffer": lambda w: torch.tensor(0.25),
}


@pytest.mark.parametrize("number", SAME_AT_EVERY_WIDTH.values(), ids=SAME_AT_EVERY_WIDTH.keys())
def test_sizes_positions_and_fixed_numbers_are_fine(number: Callable[[int], float | torch.Tensor]) -> None:
    assert roles_of(lambda w: Scaled(w, number)) == {"linear.weight": "hidden", "linear.bias": "input"}


def test_planning_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    plan_of(lambda w: nn.init.orthogonal_(nn.Linear(w, w, bias=False).weight) is not None and nn.Linear(w, w))
    assert torch.equal(state, torch.get_rng_state())
