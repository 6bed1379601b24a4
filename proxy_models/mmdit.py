"""MMDiT, the two-stream transformer of Stable Diffusion 3 (Esser et al. 2024), with REPA's projector (Yu et al. 2025).

Picture and text have weights of their own and meet in one attention over all tokens. Parameter names are those of
Stability AI's reference. Its initialization was never published, so it is DiT's: adaLN-Zero, zero readout, Xavier
inside, and input weights that do not depend on the width. The forward draws no random numbers. Refuses a width that is
not whole heads and an image that is not whole patches. Also refuses a projector whose block is not given or not there.

Axes: B batch, C channels, H and W pixels or (between B and K) heads, T patches, L text tokens, S both, D width, K head
dim, E text features, P pooled text features.
"""

import torch
from torch import nn

from proxy_models.attention import attend
from proxy_models.dit import MLP, FinalLayer, modulate
from proxy_models.embed import TABLE_STD, PatchEmbed, TimestepEmbed, patches_to_image, sincos_positions

PROJECTOR_RATIO = 2
"""Hidden size of the projector over the number of features. REPA's is 2048, for 768 to 1536 features."""


class PooledEmbed(nn.Module):
    """A two-layer MLP on one vector per caption. The result is added to that of the timestep."""

    def __init__(self, pooled_dim: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(pooled_dim, width), nn.SiLU(), nn.Linear(width, width))

    def reset_parameters(self) -> None:
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=TABLE_STD)
                nn.init.zeros_(layer.bias)

    def forward(self, pooled_BP: torch.Tensor) -> torch.Tensor:
        return self.mlp(pooled_BP)


class HeadNorm(nn.RMSNorm):
    """RMS norm over the head dim, in the gain's precision. Under autocast the input's precision is another."""

    def forward(self, x_BHTK: torch.Tensor) -> torch.Tensor:
        return super().forward(x_BHTK.to(self.weight.dtype)).to(x_BHTK.dtype)


class StreamAttention(nn.Module):
    """One stream's part of the joint attention: its queries, keys and values, and its output unless `pre_only`."""

    def __init__(self, width: int, head_dim: int, *, qk_norm: bool, pre_only: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, 3 * width)
        self.ln_q = HeadNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.ln_k = HeadNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        if not pre_only:
            self.proj = nn.Linear(width, width)

    def heads(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, each [B, H, T, K]."""
        qkv_BT3HK = self.qkv(x_BTD).unflatten(-1, (3, -1, self.head_dim))
        q_BHTK, k_BHTK, v_BHTK = qkv_BT3HK.permute(2, 0, 3, 1, 4).unbind(0)
        return self.ln_q(q_BHTK), self.ln_k(k_BHTK), v_BHTK


class StreamBlock(nn.Module):
    """One stream's half of a joint block, before and after the attention. `pre_only` has no part after it."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: float, *, qk_norm: bool, pre_only: bool) -> None:
        super().__init__()
        self.pre_only = pre_only
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = StreamAttention(width, head_dim, qk_norm=qk_norm, pre_only=pre_only)
        if not pre_only:
            self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
            self.mlp = MLP(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, (2 if pre_only else 6) * width))

    def before(self, x_BTD: torch.Tensor, parts: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return self.attn.heads(modulate(self.norm1(x_BTD), parts[0], parts[1]))

    def after(self, x_BTD: torch.Tensor, out_BTD: torch.Tensor, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        gate_attn, shift_mlp, scale_mlp, gate_mlp = parts[2:]
        x_BTD = x_BTD + gate_attn[:, None] * self.attn.proj(out_BTD)
        return x_BTD + gate_mlp[:, None] * self.mlp(modulate(self.norm2(x_BTD), shift_mlp, scale_mlp))

    def modulation(self, c_BD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Shift and scale of the attention. Unless `pre_only`, also its gate, and shift, scale and gate of the MLP."""
        return self.adaLN_modulation(c_BD).chunk(2 if self.pre_only else 6, dim=1)


class JointBlock(nn.Module):
    """Both streams attend to both. With `context_pre_only` the text gives keys and values only, and ends here.

    Its text queries are computed and dropped, as in the reference. Their weights get a gradient of zero.
    """

    def __init__(self, width: int, head_dim: int, mlp_ratio: float, *, qk_norm: bool, context_pre_only: bool) -> None:
        super().__init__()
        self.context_block = StreamBlock(width, head_dim, mlp_ratio, qk_norm=qk_norm, pre_only=context_pre_only)
        self.x_block = StreamBlock(width, head_dim, mlp_ratio, qk_norm=qk_norm, pre_only=False)

    def forward(
        self, x_BTD: torch.Tensor, context_BLD: torch.Tensor, c_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Picture and text after the block. In the last block the text is returned unchanged."""
        text_parts, image_parts = self.context_block.modulation(c_BD), self.x_block.modulation(c_BD)
        text_heads = self.context_block.before(context_BLD, text_parts)
        image_heads = self.x_block.before(x_BTD, image_parts)
        q_BHSK, k_BHSK, v_BHSK = (torch.cat(pair, dim=2) for pair in zip(text_heads, image_heads, strict=True))
        out_BSD = attend(q_BHSK, k_BHSK, v_BHSK).transpose(1, 2).flatten(-2)
        text_BLD, image_BTD = out_BSD.split([context_BLD.shape[1], x_BTD.shape[1]], dim=1)
        if not self.context_block.pre_only:
            context_BLD = self.context_block.after(context_BLD, text_BLD, text_parts)
        return self.x_block.after(x_BTD, image_BTD, image_parts), context_BLD


class Projector(nn.Sequential):
    """From image tokens to the features of a frozen encoder. Its hidden size follows the features, never the width.

    So its first layer is a readout, whose output at initialization vanishes as the width grows. The gradient of the
    cosine loss is proportional to one over the projection's length. That layer's bias starts random, so that the length
    does not vanish too.
    """

    def __init__(self, width: int, dim: int) -> None:
        hidden = PROJECTOR_RATIO * dim
        super().__init__(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, dim)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.normal_(layer.bias) if layer is self[0] else nn.init.zeros_(layer.bias)


class MMDiT(nn.Module):
    """Predicts noise or velocity from a noised image, its timestep and its caption.

    `learn_sigma` doubles the output channels (prediction first, variance second). After `repa_depth` blocks a projector
    maps the image tokens to `repa_dim` features per patch. It runs only if forward gets `repa`.
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
        pooled_dim: int,
        qk_norm: bool = True,
        repa_depth: int | None = None,
        repa_dim: int | None = None,
        learn_sigma: bool = False,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if width % head_dim:
            raise ValueError(f"width {width} is not divisible by head_dim {head_dim}")
        if image_size % patch:
            raise ValueError(f"image_size {image_size} is not divisible by patch {patch}")
        if (repa_depth is None) != (repa_dim is None):
            raise ValueError(f"repa_depth {repa_depth} and repa_dim {repa_dim}: expected both or neither")
        if repa_depth is not None and not 1 <= repa_depth <= depth:
            raise ValueError(f"repa_depth {repa_depth}: expected 1 to depth {depth}")
        self.patch = patch
        self.repa_depth = repa_depth
        out_channels = 2 * channels if learn_sigma else channels
        self.x_embedder = PatchEmbed(patch, channels, width)
        self.t_embedder = TimestepEmbed(width)
        self.y_embedder = PooledEmbed(pooled_dim, width)
        self.context_embedder = nn.Linear(text_dim, width)
        self.register_buffer("pos_embed", sincos_positions(width, image_size // patch), persistent=False)
        self.joint_blocks = nn.ModuleList(
            JointBlock(width, head_dim, mlp_ratio, qk_norm=qk_norm, context_pre_only=i == depth - 1)
            for i in range(depth)
        )
        self.final_layer = FinalLayer(width, patch * patch * out_channels)
        self.projector: Projector | None = None
        self.reset_parameters()
        if repa_dim is not None:  # drawn last, so that all other weights start as they do without it
            self.projector = Projector(width, repa_dim)

    def reset_parameters(self) -> None:
        for module in self.joint_blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, HeadNorm):
                module.reset_parameters()
        self.x_embedder.reset_parameters()
        self.t_embedder.reset_parameters()
        self.y_embedder.reset_parameters()
        nn.init.normal_(self.context_embedder.weight, std=self.context_embedder.in_features**-0.5)
        nn.init.zeros_(self.context_embedder.bias)
        for name, parameter in self.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.linear."):
                nn.init.zeros_(parameter)
        if self.projector is not None:
            self.projector.reset_parameters()

    def forward(
        self,
        x_BCHW: torch.Tensor,
        t_B: torch.Tensor,
        text_BLE: torch.Tensor,
        pooled_BP: torch.Tensor,
        repa: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Image [B, C, H, W], timesteps [B] in 0..1000, caption [B, L, E] and [B, P]; returns [B, C or 2C, H, W].

        With `repa` it returns (output, projection [B, T, repa_dim]). As in the paper, text has no positions and no
        mask: empty tokens are attended to.
        """
        if repa and self.projector is None:
            raise ValueError("repa needs a projector: build the model with repa_depth and repa_dim")
        x_BTD = self.x_embedder(x_BCHW) + self.pos_embed
        context_BLD = self.context_embedder(text_BLE)
        c_BD = self.t_embedder(t_B) + self.y_embedder(pooled_BP)
        projection_BTE = None
        for number, block in enumerate(self.joint_blocks, start=1):
            x_BTD, context_BLD = block(x_BTD, context_BLD, c_BD)
            if repa and self.projector is not None and number == self.repa_depth:
                projection_BTE = self.projector(x_BTD)
        output = patches_to_image(self.final_layer(x_BTD, c_BD), self.patch)
        return output if projection_BTE is None else (output, projection_BTE)
