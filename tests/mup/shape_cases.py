"""Models and helpers for the tests of roles: layers by name, and diffusers' classes at any width."""

from collections.abc import Callable

import diffusers
from torch import nn

from muxfer.mup import ScalePlan, make_plan


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
