"""The families of models that a config may name. No model outside FAMILIES can be named as a family.

The models are plain modules on torch alone, free of muxfer. What a class cannot say itself is in its entry here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from proxy_models.cross_attention import CrossAttentionTransformer
from proxy_models.dit import DiT
from proxy_models.in_context import InContextTransformer
from proxy_models.mmdit import MMDiT
from proxy_models.pixart import PixArt
from proxy_models.uvit import UViT

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: its builder, and what its shapes do not tell.

    `inputs` maps each argument of forward to its source (image, timestep, labels, text, text_mask, pooled, ...).
    `output` is an image, or the patches of one. `readout` names the one output weight that the output multiplier
    belongs to. `declared` gives the role (input, hidden, readout, finite) of parameters whose layout a shape cannot
    tell. For depth scaling, `branches` match (as in fnmatch) the parameters inside residual branches. `branch_ends`
    match the last weight and bias of each branch, never a gate.
    """

    build: Callable[..., nn.Module]
    inputs: Mapping[str, str]
    readout: str | None
    declared: Mapping[str, str] = field(default_factory=dict)
    output: str = "image"
    branches: tuple[str, ...] = ()
    branch_ends: tuple[str, ...] = ()


LABELS = {"x_BCHW": "image", "t_B": "timestep", "y_B": "labels"}
TEXT = {"x_BCHW": "image", "t_B": "timestep", "text_BLE": "text", "mask_BL": "text_mask"}

FAMILIES: Mapping[str, Family] = {
    "dit": Family(
        build=DiT,
        inputs=LABELS,
        readout="final_layer.linear.weight",
        branches=("blocks.*",),
        branch_ends=("blocks.*.attn.proj.*", "blocks.*.cross_attn.proj.*", "blocks.*.mlp.fc2.*"),
    ),
    "pixart": Family(
        build=PixArt,
        inputs=TEXT,
        readout="final_layer.linear.weight",
        branches=("blocks.*",),
        branch_ends=("blocks.*.attn.proj.*", "blocks.*.cross_attn.proj.*", "blocks.*.mlp.fc2.*"),
    ),
    "uvit": Family(
        build=UViT,
        inputs=LABELS,  # TEXT if it is built with a text_dim
        readout="decoder_pred.weight",
        branches=("in_blocks.*", "mid_block.*", "out_blocks.*"),
        branch_ends=("*_block*.attn.proj.*", "*_block*.mlp.fc2.*", "out_blocks.*.skip_linear.*"),  # skip=residual only
    ),
    "in_context": Family(
        build=InContextTransformer,
        inputs=TEXT,
        readout="final_layer.linear.weight",
        branches=("blocks.*",),
        branch_ends=("blocks.*.attn.proj.*", "blocks.*.mlp.fc2.*"),
    ),
    "cross_attention": Family(
        build=CrossAttentionTransformer,
        inputs=TEXT,
        readout="final_layer.linear.weight",
        branches=("blocks.*",),
        branch_ends=("blocks.*.attn.proj.*", "blocks.*.cross_attn.proj.*", "blocks.*.mlp.fc2.*"),
    ),
    "mmdit": Family(
        build=MMDiT,
        inputs={"x_BCHW": "image", "t_B": "timestep", "text_BLE": "text", "pooled_BP": "pooled"},
        readout="final_layer.linear.weight",
        branches=("joint_blocks.*",),
        branch_ends=("joint_blocks.*.attn.proj.*", "joint_blocks.*.mlp.fc2.*"),
    ),
}
