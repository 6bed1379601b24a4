"""DiT (Peebles and Xie 2023) in its four block designs, at any width, depth, head dim, patch and number of channels.

Parameter names are the reference's. The initialization is too, except for the patch embedding (see embed.py). The
reference published adaLN-Zero alone, so the other designs follow section 3.2 of the paper. Norms that are not adaptive
learn a gain and a bias, as a ViT's do; the paper's rounded counts fit both with and without them. The forward draws no
random numbers. Refuses a width that is not whole heads and an image that is not whole patches.

Axes: B batch, C channels, H and W pixels, T patches (or patches and condition), S tokens of the condition, D width.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from proxy_models.attention import CrossAttention, SelfAttention
from proxy_models.embed import LabelEmbed, PatchEmbed, TimestepEmbed, patches_to_image, sincos_positions


def modulate(x_BTD: torch.Tensor, shift_BD: torch.Tensor, scale_BD: torch.Tensor) -> torch.Tensor:
    return x_BTD * (1 + scale_BD[:, None]) + shift_BD[:, None]


def _norm(width: int, *, affine: bool = False) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=affine, eps=1e-6)


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x_BTD)))


class AdaLNZeroBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition. With zero gates it starts as the identity."""

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


class AdaLNBlock(nn.Module):
    """adaLN-Zero without gates: the branches are added in full, so it does not start as the identity."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = _norm(width)
        self.attn = SelfAttention(width, head_dim)
        self.norm2 = _norm(width)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width))

    def forward(self, x_BTD: torch.Tensor, c_BD: torch.Tensor) -> torch.Tensor:
        shift_attn, scale_attn, shift_mlp, scale_mlp = self.adaLN_modulation(c_BD).chunk(4, dim=1)
        x_BTD = x_BTD + self.attn(modulate(self.norm1(x_BTD), shift_attn, scale_attn))
        return x_BTD + self.mlp(modulate(self.norm2(x_BTD), shift_mlp, scale_mlp))


class CrossAttentionBlock(nn.Module):
    """Self-attention, then attention of the patches over the tokens of the condition, then the MLP."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = _norm(width, affine=True)
        self.attn = SelfAttention(width, head_dim)
        self.norm_cross = _norm(width, affine=True)
        self.cross_attn = CrossAttention(width, head_dim)
        self.norm2 = _norm(width, affine=True)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x_BTD: torch.Tensor, c_BSD: torch.Tensor) -> torch.Tensor:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        x_BTD = x_BTD + self.cross_attn(self.norm_cross(x_BTD), c_BSD)
        return x_BTD + self.mlp(self.norm2(x_BTD))


class InContextBlock(nn.Module):
    """A ViT's block. The condition is among its tokens."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = _norm(width, affine=True)
        self.attn = SelfAttention(width, head_dim)
        self.norm2 = _norm(width, affine=True)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


BLOCKS: Mapping[str, Callable[[int, int, float], nn.Module]] = {
    "adaln_zero": AdaLNZeroBlock,
    "adaln": AdaLNBlock,
    "cross_attention": CrossAttentionBlock,
    "in_context": InContextBlock,
}


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


class PlainFinalLayer(nn.Module):
    """The readout of the designs without adaLN: it has a learned norm instead."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = _norm(width, affine=True)
        self.linear = nn.Linear(width, out_features)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm_final(x_BTD))


class DiT(nn.Module):
    """Predicts noise or velocity from a noised image, its timestep and its class.

    `block` says how the condition enters. For adaLN, time and class are summed. For cross-attention they are two tokens
    that the patches attend to. In context they are two more tokens beside the patches, dropped before the readout.
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
        if block not in BLOCKS:
            raise ValueError(f"block {block!r}: expected one of {', '.join(BLOCKS)}")
        self.patch = patch
        self.block = block
        self.is_adaptive = block in ("adaln_zero", "adaln")
        out_channels = 2 * channels if learn_sigma else channels
        self.x_embedder = PatchEmbed(patch, channels, width)
        self.t_embedder = TimestepEmbed(width, frequency_shift=frequency_shift)
        self.y_embedder = LabelEmbed(num_classes, width)
        self.register_buffer("pos_embed", sincos_positions(width, image_size // patch), persistent=False)
        self.blocks = nn.ModuleList(BLOCKS[block](width, head_dim, mlp_ratio) for _ in range(depth))
        final_layer = FinalLayer if self.is_adaptive else PlainFinalLayer
        self.final_layer = final_layer(width, patch * patch * out_channels)
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
        t_BD, y_BD = self.t_embedder(t_B), self.y_embedder(y_B)
        if self.is_adaptive:
            out_BTD = self._adaptive(x_BTD, t_BD + y_BD)
        else:
            out_BTD = self._plain(x_BTD, torch.stack([t_BD, y_BD], dim=1))
        return patches_to_image(out_BTD, self.patch)

    def _adaptive(self, x_BTD: torch.Tensor, c_BD: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x_BTD = block(x_BTD, c_BD)
        return self.final_layer(x_BTD, c_BD)

    def _plain(self, x_BTD: torch.Tensor, c_BSD: torch.Tensor) -> torch.Tensor:
        num_patches = x_BTD.shape[1]
        if self.block == "in_context":
            x_BTD = torch.cat([x_BTD, c_BSD], dim=1)
        for block in self.blocks:
            x_BTD = block(x_BTD) if self.block == "in_context" else block(x_BTD, c_BSD)
        return self.final_layer(x_BTD[:, :num_patches])
