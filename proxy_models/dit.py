"""DiT with adaLN-Zero blocks (Peebles and Xie 2023), at any width, depth, head dim, patch and number of channels.

Parameter names are the reference's, and so is the initialization, but for the patch embedding (see embed.py). The
module has no randomness of its own. Refuses a width that is not whole heads and an image that is not whole patches.

Axes: B batch, C channels, H and W pixels, T patches, D width.
"""

import torch
from torch import nn

from proxy_models.attention import SelfAttention
from proxy_models.embed import LabelEmbed, PatchEmbed, TimestepEmbed, patches_to_image, sincos_positions


def modulate(x_BTD: torch.Tensor, shift_BD: torch.Tensor, scale_BD: torch.Tensor) -> torch.Tensor:
    return x_BTD * (1 + scale_BD[:, None]) + shift_BD[:, None]


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x_BTD)))


class AdaLNZeroBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition; zero gates make it the identity at first."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = _norm(width)
        self.attn = SelfAttention(width, head_dim)
        self.norm2 = _norm(width)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x_BTD: torch.Tensor, c_BD: torch.Tensor) -> torch.Tensor:
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c_BD).chunk(6, dim=1)
        x_BTD = x_BTD + gate_attn[:, None] * self.attn(modulate(self.norm1(x_BTD), shift_attn, scale_attn))
        return x_BTD + gate_mlp[:, None] * self.mlp(modulate(self.norm2(x_BTD), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """The readout: one shifted and scaled norm, one linear to the pixels of a patch."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = _norm(width)
        self.linear = nn.Linear(width, out_features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BTD: torch.Tensor, c_BD: torch.Tensor) -> torch.Tensor:
        shift_BD, scale_BD = self.adaLN_modulation(c_BD).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x_BTD), shift_BD, scale_BD))


class DiT(nn.Module):
    """Predicts noise or velocity from a noised image, its timestep and its class.

    `learn_sigma` doubles the output channels (prediction first, variance second). Class `num_classes` is the null one.
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
        num_classes: int,
        block: str = "adaln_zero",
        learn_sigma: bool = False,
        mlp_ratio: float = 4.0,
        frequency_shift: float = 0.0,
    ) -> None:
        super().__init__()
        if width % head_dim:
            raise ValueError(f"width {width} is not divisible by head_dim {head_dim}")
        if image_size % patch:
            raise ValueError(f"image_size {image_size} is not divisible by patch {patch}")
        self.patch = patch
        out_channels = 2 * channels if learn_sigma else channels
        self.x_embedder = PatchEmbed(patch, channels, width)
        self.t_embedder = TimestepEmbed(width, frequency_shift=frequency_shift)
        self.y_embedder = LabelEmbed(num_classes, width)
        self.register_buffer("pos_embed", sincos_positions(width, image_size // patch), persistent=False)
        self.blocks = nn.ModuleList(AdaLNZeroBlock(width, head_dim, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * out_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.x_embedder.reset_parameters()
        self.t_embedder.reset_parameters()
        self.y_embedder.reset_parameters()
        for name, parameter in self.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.linear."):
                nn.init.zeros_(parameter)

    def forward(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        """Image [B, C, H, W], timesteps [B] in 0..1000, labels [B] of int64; returns [B, C or 2C, H, W]."""
        x_BTD = self.x_embedder(x_BCHW) + self.pos_embed
        c_BD = self.t_embedder(t_B) + self.y_embedder(y_B)
        for block in self.blocks:
            x_BTD = block(x_BTD, c_BD)
        return patches_to_image(self.final_layer(x_BTD, c_BD), self.patch)
