"""A forward that depends on the width is refused, and no model of ours or of diffusers is."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from muxfer.config.hydra_compose import compose_model
from muxfer.config.models import with_num_classes
from muxfer.config.parse import parse_part
from muxfer.errors import BadInput
from muxfer.models.build import conditioning
from muxfer.models.count import validate_forward
from muxfer.models.families import family_of
from muxfer.mup.forward_check import refuse_changing_forward
from tests.typed import ROOT

MODELS = sorted(file.stem for file in (ROOT / "conf" / "model").glob("*.yaml"))


class Net(nn.Module):
    """A residual block. `kind` says how its forward uses the width. No attribute holds a float."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind = width, kind
        self.embed, self.mix, self.readout = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        x_BD = self.embed(x_BF)
        branch_BD = self.mix(x_BD)
        if self.kind == "branch":
            branch_BD = branch_BD * self.width**0.5
        elif self.kind == "divided by a whole number":
            branch_BD = branch_BD / self.width
        elif self.kind == "logits":
            heads_BHTK = branch_BD.unflatten(-1, (1, -1, 16))
            out_BHTK = F.scaled_dot_product_attention(heads_BHTK, heads_BHTK, heads_BHTK, scale=self.width**-0.5)
            branch_BD = out_BHTK.flatten(1)
        elif self.kind == "another call":
            branch_BD = branch_BD if self.width == 64 else F.relu(branch_BD)
        elif self.kind == "fixed":
            branch_BD = branch_BD.unflatten(-1, (-1, 16)).flatten(1) * 2 / 3
        return self.readout(x_BD + branch_BD)


def refuse(kind):
    def prepare(width):
        with torch.device("meta"):
            model, x_BF = Net(width, kind), torch.empty(2, 4)
        return lambda: model(x_BF)

    refuse_changing_forward(prepare, width=64, other_width=128)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("branch", r"mul\(8\) at width 64 and mul\(11.31\) at 128: it depends on the width"),
        ("divided by a whole number", r"div\(64\) at width 64 and div\(128\) at 128"),
        ("logits", r"scaled_dot_product_attention\(0.125\) at width 64"),
        ("another call", r"at width 64 and relu\("),
    ],
)
def test_a_forward_that_depends_on_the_width_is_refused(kind, message):
    with pytest.raises(BadInput, match=message):
        refuse(kind)


def test_a_forward_with_fixed_numbers_is_accepted():
    refuse("fixed")


@pytest.mark.parametrize("name", MODELS)
def test_forwards_of_all_packaged_models_do_not_depend_on_the_width(name):
    model = with_num_classes(parse_part("model", compose_model(name, [])), 10)

    def prepare(width):
        with torch.device("meta"):
            built = family_of(model).build(width)
            image = torch.empty(1, model.channels, model.image_size, model.image_size)
            given = (image, torch.empty(1), torch.zeros(1, dtype=torch.long))
        predict = conditioning(model, ("a scan",)).to("meta")
        return lambda: predict(built.eval(), *given)

    refuse_changing_forward(prepare, width=64, other_width=128)


def flux(**changes):
    model = with_num_classes(parse_part("model", compose_model("diffusers_flux", [])), 10)
    return dataclasses.replace(model, **changes)


def test_a_declared_class_whose_forward_fails_is_refused():
    validate_forward(flux())
    with pytest.raises(BadInput, match=r"FluxTransformer2DModel: its forward failed at width 64 .*see model.inputs"):
        validate_forward(flux(head_dim=32))
    with pytest.raises(BadInput, match=r"its forward returns .* expected \[1, 2, 8, 8\]"):
        validate_forward(dataclasses.replace(flux(), learn_sigma=True, sizes={**flux().sizes, "out_channels": 4}))
