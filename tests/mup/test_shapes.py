"""Roles follow from the shapes of layers. Unclear shapes are refused."""

from collections.abc import Callable

import diffusers
import pytest
import torch
from torch import nn

from muxfer.errors import BadInput
from tests.mup.shape_cases import Stack, plan_of, roles_of

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
def test_roles_of_layers(build: Callable[[int], nn.Module], expected: dict[str, str]) -> None:
    assert roles_of(build) == expected


def test_roles_of_finite_layers_and_listed_tables() -> None:
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


def test_a_plan_at_the_base_width_still_finds_growing_dimensions() -> None:
    plan = plan_of(lambda w: nn.Linear(w, w), width=64)
    assert plan.scales["weight"].role == "hidden"


def test_a_declared_role_wins() -> None:
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
def test_models_without_a_rule_are_refused_with_the_reason(build: Callable[[int], nn.Module], message: str) -> None:
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


def test_planning_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    plan_of(lambda w: nn.init.orthogonal_(nn.Linear(w, w, bias=False).weight) is not None and nn.Linear(w, w))
    assert torch.equal(state, torch.get_rng_state())
