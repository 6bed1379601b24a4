"""Embed captions with a fixed random table, in place of a text encoder where none is configured.

Each word has one row that depends on the word alone. So a caption means the same in every data set, process and
version. No text is refused: even the empty one has the end token.

Axes: K captions, L tokens, E text features, P pooled features.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from muxfer.data.randomness import generator_of

END = "<end>"


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Embedded captions. The last row is the empty caption. The mask is True where there is a token."""

    text_KLE: torch.Tensor
    mask_KL: torch.Tensor
    pooled_KP: torch.Tensor

    def to(self, device: torch.device | str) -> "Captions":
        return Captions(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def tokens_of(caption: str) -> list[str]:
    """The words and the punctuation of a caption in lower case, and the end token."""
    return [*re.findall(r"\w+|[^\w\s]", caption.lower()), END]


def embed_captions(captions: Sequence[str], *, text_dim: int, pooled_dim: int) -> Captions:
    """Features of unit variance for each caption, in order, and for the empty caption after them."""
    tokens = [tokens_of(caption) for caption in (*captions, "")]
    length = max(map(len, tokens))
    text_KLE = torch.zeros(len(tokens), length, text_dim)
    mask_KL = torch.zeros(len(tokens), length, dtype=torch.bool)
    pooled_KP = torch.zeros(len(tokens), pooled_dim)
    for row, words in enumerate(tokens):
        text_KLE[row, : len(words)] = torch.stack([_row("token", word, text_dim) for word in words])
        mask_KL[row, : len(words)] = True
        # Not the mean: a pooled row has unit variance, as a token's row has. The rows of a repeated word add up.
        counts = Counter(words)
        total_P = sum(count * _row("pooled", word, pooled_dim) for word, count in counts.items())
        pooled_KP[row] = total_P / math.hypot(*counts.values())
    return Captions(text_KLE=text_KLE, mask_KL=mask_KL, pooled_KP=pooled_KP)


def _row(table: str, word: str, size: int) -> torch.Tensor:
    return torch.randn(size, generator=generator_of("captions", table, word))
