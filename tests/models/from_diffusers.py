"""The way back from diffusers: our weights from diffusers' state, so that tests see what is lost on the way there."""

from collections.abc import Mapping

import torch

from muxfer.config.models import Model
from muxfer.models.diffusers_weights import counterpart_of, swap

COMPUTED = {"pos_embed.pos_embed"}  # diffusers' MMDiT computes it from its arguments


def from_diffusers(model: Model, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state of the model, without the tensors that only training needs. Diffusers' copies of a tensor are equal."""
    tensors = counterpart_of(model).tensors
    assert state.keys() - COMPUTED == {name for one in tensors for names in one.theirs for name in names}
    assert all(torch.equal(state[name], state[names[0]]) for one in tensors for names in one.theirs for name in names)
    ours = {one.ours: torch.cat([state[names[0]] for names in one.theirs]) for one in tensors if len(one.theirs) > 1}
    ours |= {one.ours: state[one.theirs[0][0]] for one in tensors if len(one.theirs) == 1}
    return ours | {one.ours: swap(ours[one.ours]) for one in tensors if one.swapped}
