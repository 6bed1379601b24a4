"""The in-context transformer of the scaling laws for diffusion transformers (Liang et al. 2024): one sequence for all.

Time, caption and patches are tokens of one plain pre-norm transformer, and every token attends to every other. The
condition enters in no other way. Caption tokens get no positions here: the text encoder's features hold their order.

Every first layer is drawn with deviation fan_in^-1/2. So at any width a token enters the residual stream with the size
of a patch. Other linears are drawn as in DiT, and the readout is zero. Refuses a width that is not whole heads and an
image that is not whole patches.

Axes: B batch, C channels, H and W pixels, T tokens, L caption tokens, E text features, D width.
"""

import torch
from torch import nn

from proxy_models.attention import SelfAttention
from proxy_models.dit import MLP, PlainFinalLayer
from proxy_models.embed import PatchEmbed, TimestepEmbed, patches_to_image, sincos_positions


class TextEmbed(nn.Module):
    """Two layers on a text encoder's features, token by token."""

    def __init__(self, text_dim: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(text_dim, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, text_BLE: torch.Tensor) -> torch.Tensor:
        return self.mlp(text_BLE)


def reset_first_layer(mlp: nn.Sequential) -> None:
    """Draw with deviation fan_in^-1/2, which does not depend on the width. Xavier's would, by its fan-out."""
    first = mlp[0]
    assert isinstance(first, nn.Linear)
    nn.init.normal_(first.weight, std=first.in_features**-0.5)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, head_dim)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x_BTD: torch.Tensor, mask_BT: torch.Tensor | None = None) -> torch.Tensor:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD), mask_BT)
        return x_BTD + self.mlp(self.norm2(x_BTD))


class InContextTransformer(nn.Module):
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
        self.final_layer = PlainFinalLayer(width, patch * patch * out_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.x_embedder.reset_parameters()
        reset_first_layer(self.t_embedder.mlp)
        reset_first_layer(self.y_embedder.mlp)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(
        self, x_BCHW: torch.Tensor, t_B: torch.Tensor, text_BLE: torch.Tensor, mask_BL: torch.Tensor
    ) -> torch.Tensor:
        """Image [B, C, H, W], timesteps [B] in 0..1000, text [B, L, E], mask [B, L] (True: a token).

        Returns [B, C or 2C, H, W].
        """
        patches_BTD = self.x_embedder(x_BCHW) + self.pos_embed
        num_patches = patches_BTD.shape[1]
        x_BTD = torch.cat([self.t_embedder(t_B)[:, None], self.y_embedder(text_BLE), patches_BTD], dim=1)
        mask_BT = torch.cat([mask_BL.new_ones(len(t_B), 1), mask_BL, mask_BL.new_ones(len(t_B), num_patches)], dim=1)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask_BT)
        return patches_to_image(self.final_layer(x_BTD[:, -num_patches:]), self.patch)
