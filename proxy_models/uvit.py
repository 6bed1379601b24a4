"""U-ViT (Bao et al. 2023): time, condition and patches are all tokens, and long skips join early blocks to late ones.

Parameter names are the reference's. The initialization is too: 0.02 for linears and positions, and torch's own for
convolutions and labels, so no deviation depends on the width. The one exception is `decoder_pred`. It is zero, as every
readout here, so that a model of any width starts as a constant. The 3x3 convolution after it stays random: with both at
zero neither would get a gradient. Every size has that convolution; the reference's huge models leave its 148 weights
out. The time token has no layer of its own, as in every configuration of the reference.

Refuses an even depth: there are as many in-blocks as out-blocks, and one in the middle. For an even depth the reference
builds depth + 1 blocks. Also refuses a width that is not whole heads, an image that is not whole patches, labels and
text together, and a caption with more tokens than learned positions.

Axes: B batch, C channels, H and W pixels, T tokens, L caption tokens, E text features, D width.
"""

import torch
from torch import nn

from proxy_models.attention import SelfAttention
from proxy_models.dit import MLP
from proxy_models.embed import TABLE_STD, PatchEmbed, patches_to_image, timestep_features

SKIPS = ("linear", "residual")


class Block(nn.Module):
    """Pre-norm attention and MLP. With `skip`, x first becomes W[x; skip] or x + W[x; skip] of an early block's tokens.

    Depth scaling needs the second form, a residual branch. The first replaces the trunk at every out-block.
    """

    def __init__(self, width: int, head_dim: int, mlp_ratio: float, *, skip: str | None = None) -> None:
        super().__init__()
        self.residual = skip == "residual"
        self.skip_linear = nn.Linear(2 * width, width) if skip else None
        self.norm1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, head_dim)
        self.attn.qkv = nn.Linear(width, 3 * width, bias=False)  # the reference's has no bias
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.mlp.act = nn.GELU()  # exact in the reference

    def forward(
        self, x_BTD: torch.Tensor, skip_BTD: torch.Tensor | None = None, mask_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self.skip_linear is not None:
            assert skip_BTD is not None
            joined_BTD = self.skip_linear(torch.cat([x_BTD, skip_BTD], dim=-1))
            x_BTD = x_BTD + joined_BTD if self.residual else joined_BTD
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD), mask_BT)
        return x_BTD + self.mlp(self.norm2(x_BTD))


class UViT(nn.Module):
    """Predicts noise or velocity from a noised image, its timestep, and its class or its caption.

    Takes either `num_classes` (class `num_classes` is the null one) or `text_dim`. `learn_sigma` doubles the output
    channels.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        head_dim: int,
        patch: int,
        image_size: int,
        channels: int,
        num_classes: int | None = None,
        text_dim: int | None = None,
        skip: str = "linear",
        learn_sigma: bool = False,
        mlp_ratio: float = 4.0,
        text_length: int = 77,
    ) -> None:
        super().__init__()
        if width % head_dim:
            raise ValueError(f"width {width} is not divisible by head_dim {head_dim}")
        if image_size % patch:
            raise ValueError(f"image_size {image_size} is not divisible by patch {patch}")
        if depth % 2 == 0:
            raise ValueError(
                f"depth {depth} is even: a U-ViT has as many in-blocks as out-blocks, and one between; use {depth + 1}"
            )
        if skip not in SKIPS:
            raise ValueError(f"skip {skip!r}: expected {' or '.join(SKIPS)}")
        if (num_classes is None) == (text_dim is None):
            raise ValueError(f"num_classes {num_classes}, text_dim {text_dim}: a U-ViT takes labels or text, give one")
        self.patch = patch
        self.width = width
        out_channels = 2 * channels if learn_sigma else channels
        # Drawn before all layers that grow, so that one seed gives all widths the same kernel. Its few numbers never
        # average out. On one-channel digits (2026-11-21, width 64, 200 steps, seeds 0 to 2) they spread the loss over
        # 0.87 to 1.01, where an identity kernel gives 0.68 to 0.70.
        final_layer = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.patch_embed = PatchEmbed(patch, channels, width)
        self.label_emb = None if num_classes is None else nn.Embedding(num_classes + 1, width)
        self.context_embed = None if text_dim is None else nn.Linear(text_dim, width)
        self.num_patches = (image_size // patch) ** 2
        self.extras = 2 if text_dim is None else 1 + text_length
        self.pos_embed = nn.Parameter(torch.empty(1, self.extras + self.num_patches, width))
        half = depth // 2
        self.in_blocks = nn.ModuleList(Block(width, head_dim, mlp_ratio) for _ in range(half))
        self.mid_block = Block(width, head_dim, mlp_ratio)
        self.out_blocks = nn.ModuleList(Block(width, head_dim, mlp_ratio, skip=skip) for _ in range(half))
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, patch * patch * out_channels)
        self.final_layer = final_layer
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=TABLE_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=TABLE_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.decoder_pred.weight)

    def forward(
        self,
        x_BCHW: torch.Tensor,
        t_B: torch.Tensor,
        y_B: torch.Tensor | None = None,
        text_BLE: torch.Tensor | None = None,
        mask_BL: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Image [B, C, H, W], timesteps [B] in 0..1000, labels [B] or text [B, L, E]; returns [B, C or 2C, H, W].

        The mask [B, L] is True for a token. Without a mask every token counts, as in the reference.
        """
        extras_BTD = self._extras(t_B, y_B, text_BLE)
        mask_BT = None
        if mask_BL is not None:
            mask_BT = torch.cat(
                [mask_BL.new_ones(len(t_B), 1), mask_BL, mask_BL.new_ones(len(t_B), self.num_patches)], 1
            )
        x_BTD = self.patch_embed(x_BCHW) + self.pos_embed[:, self.extras :]
        x_BTD = torch.cat([extras_BTD + self.pos_embed[:, : extras_BTD.shape[1]], x_BTD], dim=1)
        skips = []
        for block in self.in_blocks:
            x_BTD = block(x_BTD, mask_BT=mask_BT)
            skips.append(x_BTD)
        x_BTD = self.mid_block(x_BTD, mask_BT=mask_BT)
        for block in self.out_blocks:
            x_BTD = block(x_BTD, skips.pop(), mask_BT)
        patches_BTD = self.decoder_pred(self.norm(x_BTD[:, -self.num_patches :]))
        return self.final_layer(patches_to_image(patches_BTD, self.patch))

    def _extras(self, t_B: torch.Tensor, y_B: torch.Tensor | None, text_BLE: torch.Tensor | None) -> torch.Tensor:
        """The tokens before the patches: label and time, or time and text."""
        time_B1D = timestep_features(t_B, self.width)[:, None].to(self.pos_embed.dtype)
        if self.label_emb is not None:
            assert y_B is not None, "this U-ViT was built for labels"
            return torch.cat([self.label_emb(y_B)[:, None], time_B1D], dim=1)
        assert self.context_embed is not None
        assert text_BLE is not None, "this U-ViT was built for text"
        if text_BLE.shape[1] >= self.extras:
            raise ValueError(
                f"a caption of {text_BLE.shape[1]} tokens: positions are learned for {self.extras - 1}; shorten it, or"
                " build with a larger text_length"
            )
        return torch.cat([time_B1D, self.context_embed(text_BLE)], dim=1)
