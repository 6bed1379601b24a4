"""A number that a module keeps and that depends on the width is refused; sizes and fixed numbers are accepted."""

from collections.abc import Callable

import numpy
import pytest
import torch
from torch import nn

from muxfer.errors import BadInput
from muxfer.models.families import family_of
from muxfer.mup.shapes import outline
from proxy_models import FAMILIES
from tests.models.diffusers_tasks import CLASSES, task_of
from tests.mup.shape_cases import Stack, plan_of, roles_of
from tests.proxy_models.every_family import build


def encoder(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(width, width // 16, 4 * width)


AS_THEY_ARE: dict[str, Callable[[int], nn.Module]] = {"encoder layer": encoder}
AS_THEY_ARE |= {f"diffusers' {name}": family_of(task_of(name).model).build for name in CLASSES}
AS_THEY_ARE |= {name: lambda width, name=name: build(name, width=width, depth=3) for name in FAMILIES}


@pytest.mark.parametrize("build", AS_THEY_ARE.values(), ids=AS_THEY_ARE.keys())
def test_kept_numbers_of_common_models_do_not_depend_on_the_width(build: Callable[[int], nn.Module]) -> None:
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


def test_the_refusal_names_both_values_and_the_remedy() -> None:
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
def test_sizes_positions_and_fixed_numbers_are_accepted(number: Callable[[int], float | torch.Tensor]) -> None:
    assert roles_of(lambda w: Scaled(w, number)) == {"linear.weight": "hidden", "linear.bias": "input"}
