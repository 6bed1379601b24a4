"""The cross-attention transformer of the scaling laws for diffusion transformers (Liang et al. 2024).

The blocks are DiT's adaLN-Zero blocks for the timestep, with cross-attention to the caption between attention and MLP.
That branch has a learned norm and no gate, so only the readout and the modulations start at zero. Caption tokens get no
positions here: the text encoder's features hold their order.

The text projection's first layer is drawn with deviation fan_in^-1/2, everything else as in DiT. Refuses a width that
is not whole heads and an image that is not whole patches.

Axes: B batch, C channels, H and W pixels, T patches, L caption tokens, E text features, D width.
"""

import torch
from torch import nn

from proxy_models.attention import CrossAttention, SelfAttention
from proxy_models.dit import MLP, FinalLayer, modulate
from proxy_models.embed import PatchEmbed, TimestepEmbed, patches_to_image, sincos_positions
from proxy_models.in_context import TextEmbed, reset_first_layer


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


class Block(nn.Module):
    """Attention and MLP, shifted, scaled and gated by the timestep, with cross-attention to the caption in between."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = _norm(width)
        self.attn = SelfAttention(width, head_dim)
        self.norm_cross = nn.LayerNorm(width, eps=1e-6)
        self.cross_attn = CrossAttention(width, head_dim)
        self.norm2 = _norm(width)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x_BTD: torch.Tensor, c_BD: torch.Tensor, text_BLD: torch.Tensor, mask_BL: torch.Tensor
    ) -> torch.Tensor:
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c_BD).chunk(6, dim=1)
        x_BTD = x_BTD + gate_attn[:, None] * self.attn(modulate(self.norm1(x_BTD), shift_attn, scale_attn))
        x_BTD = x_BTD + self.cross_attn(self.norm_cross(x_BTD), text_BLD, mask_BL)
        return x_BTD + gate_mlp[:, None] * self.mlp(modulate(self.norm2(x_BTD), shift_mlp, scale_mlp))


class CrossAttentionTransformer(nn.Module):
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
        self.y_embedder = TextEmbed(text_dim, width)
        self.register_buffer("pos_embed", sincos_positions(width, image_size // patch), persistent=False)
        self.blocks = nn.ModuleList(Block(width, head_dim, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * out_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.x_embedder.reset_parameters()
        self.t_embedder.reset_parameters()
        reset_first_layer(self.y_embedder.mlp)
        for name, parameter in self.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.linear."):
                nn.init.zeros_(parameter)

    def forward(
        self, x_BCHW: torch.Tensor, t_B: torch.Tensor, text_BLE: torch.Tensor, mask_BL: torch.Tensor
    ) -> torch.Tensor:
        """Image [B, C, H, W], timesteps [B] in 0..1000, text [B, L, E], mask [B, L] (True: a token).

        Returns [B, C or 2C, H, W].
        """
        x_BTD = self.x_embedder(x_BCHW) + self.pos_embed
        c_BD = self.t_embedder(t_B)
        text_BLD = self.y_embedder(text_BLE)
        for block in self.blocks:
            x_BTD = block(x_BTD, c_BD, text_BLD, mask_BL)
        return patches_to_image(self.final_layer(x_BTD, c_BD), self.patch)
