"""PixArt-α (Chen et al. 2023): adaLN-single, self-attention, cross-attention to a caption, at any width and depth.

One linear layer on the time gives the modulation of all blocks, and each block adds its own table to it. Parameter
names are the reference's. The initialization is too, except for the patch embedding (see embed.py). The tables'
deviation is the reference's D^-1/2, which depends on the width: a parametrization keeps that of the base width. The
null caption is the empty caption. Refuses a width that is not whole heads and an image that is not whole patches.

Axes: B batch, C channels, H and W pixels, T patches, L caption tokens, E text features, D width.
"""

from collections import OrderedDict

import torch
from torch import nn

from proxy_models.attention import CrossAttention, SelfAttention
from proxy_models.dit import MLP, modulate
from proxy_models.embed import TABLE_STD, PatchEmbed, TimestepEmbed, patches_to_image, sincos_positions


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


class CaptionEmbed(nn.Module):
    """From a text encoder's features to tokens of the model's width. Only the first layer is an input weight."""

    def __init__(self, text_dim: int, width: int) -> None:
        super().__init__()
        self.y_proj = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(text_dim, width),
                act=nn.GELU(approximate="tanh"),
                fc2=nn.Linear(width, width),
            )
        )

    def forward(self, text_BLE: torch.Tensor) -> torch.Tensor:
        return self.y_proj(text_BLE)


class PixArtBlock(nn.Module):
    """Attention and MLP under the shared modulation, with cross-attention in between that has no norm and no gate."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = _norm(width)
        self.attn = SelfAttention(width, head_dim)
        self.cross_attn = CrossAttention(width, head_dim)
        self.norm2 = _norm(width)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))

    def forward(
        self, x_BTD: torch.Tensor, c_B6D: torch.Tensor, text_BLD: torch.Tensor, mask_BL: torch.Tensor
    ) -> torch.Tensor:
        modulation_B6D = self.scale_shift_table + c_B6D
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation_B6D.unbind(1)
        x_BTD = x_BTD + gate_attn[:, None] * self.attn(modulate(self.norm1(x_BTD), shift_attn, scale_attn))
        x_BTD = x_BTD + self.cross_attn(x_BTD, text_BLD, mask_BL)
        return x_BTD + gate_mlp[:, None] * self.mlp(modulate(self.norm2(x_BTD), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """The readout: a norm, shifted and scaled by the time and a table, and a linear to the pixels of a patch."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = _norm(width)
        self.linear = nn.Linear(width, out_features)
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))

    def forward(self, x_BTD: torch.Tensor, c_BD: torch.Tensor) -> torch.Tensor:
        shift_BD, scale_BD = (self.scale_shift_table + c_BD[:, None]).unbind(1)
        return self.linear(modulate(self.norm_final(x_BTD), shift_BD, scale_BD))


class PixArt(nn.Module):
    """Predicts noise or velocity from a noised image, its timestep and its caption.

    `learn_sigma` doubles the output channels (prediction first, variance second).
    """

    pos_embed: torch.Tensor

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        head_dim: int,
        patch: int,
        image_size: int,
        channels: int,
        text_dim: int,
        learn_sigma: bool = False,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if width % head_dim:
            raise ValueError(f"width {width} is not divisible by head_dim {head_dim}")
        if image_size % patch:
            raise ValueError(f"image_size {image_size} is not divisible by patch {patch}")
        self.patch = patch
        out_channels = 2 * channels if learn_sigma else channels
        self.x_embedder = PatchEmbed(patch, channels, width)
        self.t_embedder = TimestepEmbed(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = CaptionEmbed(text_dim, width)
        self.register_buffer("pos_embed", sincos_positions(width, image_size // patch), persistent=False)
        self.blocks = nn.ModuleList(PixArtBlock(width, head_dim, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * out_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.x_embedder.reset_parameters()
        self.t_embedder.reset_parameters()
        for name, parameter in self.named_parameters():
            if name in ("t_block.1.weight", "y_embedder.y_proj.fc1.weight", "y_embedder.y_proj.fc2.weight"):
                nn.init.normal_(parameter, std=TABLE_STD)
            elif name.endswith("scale_shift_table"):
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            elif "cross_attn.proj." in name or name.startswith("final_layer.linear."):
                nn.init.zeros_(parameter)

    def forward(
        self, x_BCHW: torch.Tensor, t_B: torch.Tensor, text_BLE: torch.Tensor, mask_BL: torch.Tensor
    ) -> torch.Tensor:
        """Image [B, C, H, W], timesteps [B] in 0..1000, text [B, L, E], mask [B, L] (True: a token, at least one).

        Returns [B, C or 2C, H, W].
        """
        x_BTD = self.x_embedder(x_BCHW) + self.pos_embed
        c_BD = self.t_embedder(t_B)
        c_B6D = self.t_block(c_BD).unflatten(1, (6, -1))
        text_BLD = self.y_embedder(text_BLE)
        for block in self.blocks:
            x_BTD = block(x_BTD, c_B6D, text_BLD, mask_BL)
        return patches_to_image(self.final_layer(x_BTD, c_BD), self.patch)
