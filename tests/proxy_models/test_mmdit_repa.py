"""REPA's projector: what it trains, its gradient at any width, and that it changes nothing else."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from muxfer.mup import make_plan, parametrize
from proxy_models.mmdit import MMDiT, Projector
from tests.proxy_models.every_family import randomize
from tests.proxy_models.mmdit_cases import REPA, SMALL, batch, randomized


def test_a_projector_changes_no_other_weight_and_no_output() -> None:
    torch.manual_seed(0)
    plain = MMDiT(**SMALL)
    torch.manual_seed(0)
    aligned = MMDiT(**SMALL, **REPA)
    state = aligned.state_dict()
    assert {name for name in state if name not in plain.state_dict()} == {
        f"projector.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")
    }
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    randomize(aligned)
    output, projection_BTE = aligned(*batch(), repa=True)
    assert torch.equal(output, aligned(*batch()))
    assert projection_BTE.shape == (3, 16, 7)
    with pytest.raises(ValueError, match="needs a projector"):
        plain(*batch(), repa=True)


@pytest.mark.parametrize("repa_depth", [1, 2, 3])
def test_repa_trains_only_the_layers_before_the_projector(repa_depth: int) -> None:
    model = randomized(depth=3, repa_depth=repa_depth, repa_dim=7)
    _, projection_BTE = model(*batch(), repa=True)
    features_BTE = torch.randn(projection_BTE.shape, generator=torch.Generator().manual_seed(3))
    (1 - F.cosine_similarity(projection_BTE, features_BTE, dim=-1)).mean().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    blocks = [f"joint_blocks.{i}." for i in range(repa_depth)]
    before = ("x_embedder", "t_embedder", "y_embedder", "context_embedder", "projector", *blocks)
    # only later blocks use the text that leaves block repa_depth
    ends = tuple(f"joint_blocks.{repa_depth - 1}.context_block.{part}" for part in ("attn.proj", "mlp"))
    assert trained == {
        name for name, _ in model.named_parameters() if name.startswith(before) and not name.startswith(ends)
    }
    for name, parameter in model.named_parameters():
        if name in trained and name != f"joint_blocks.{repa_depth - 1}.context_block.attn.ln_q.weight":
            assert parameter.grad.abs().max() > 0, name


def test_gradient_of_the_cosine_stays_bounded_at_infinite_width() -> None:
    """At infinite width the projector's first weight adds nothing at first: a cosine of zero would have no gradient."""
    torch.manual_seed(0)
    projector: Any = Projector(64, 16)
    x_BTD = torch.randn(4, 9, 64)
    features_BTE = torch.randn(4, 9, 16)

    def gradient_norm() -> float:
        projector.zero_grad()
        (1 - F.cosine_similarity(projector(x_BTD), features_BTE, dim=-1)).mean().backward()
        return torch.stack([parameter.grad.norm() for parameter in projector.parameters()]).norm().item()

    narrow = gradient_norm()
    with torch.no_grad():
        projector[0].weight.zero_()
    assert 0.1 * narrow < gradient_norm() < 10 * narrow


def test_under_mup_the_trunks_gradient_falls_as_the_root_of_the_width() -> None:
    """As the root of the width, like the gradient of any loss; -0.48 seen, and -0.02 with the first bias at zero."""
    generator = torch.Generator().manual_seed(4)
    norms = []
    for width in (256, 4096):
        plan = make_plan(lambda w: Projector(w, 64), width=width, base_width=64, readout=None)
        assert plan.scales["0.weight"].role == "readout"
        total = 0.0
        for seed in range(5):
            torch.manual_seed(seed)
            projector = Projector(width, 64)
            parametrize(projector, plan)
            x_BTD: Any = torch.randn(8, 16, width, generator=generator, requires_grad=True)
            features_BTE = torch.randn(8, 16, 64, generator=generator)
            (1 - F.cosine_similarity(projector(x_BTD), features_BTE, dim=-1)).mean().backward()
            total += x_BTD.grad.norm().item()
        norms.append(total)
    slope = math.log2(norms[1] / norms[0]) / 4
    assert slope == pytest.approx(-0.5, abs=0.1)
