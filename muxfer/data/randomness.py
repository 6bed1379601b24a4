"""Random generators by content: every random stream is a function of the study's seed and a name."""

import hashlib

import torch


def generator_of(*content: int | str) -> torch.Generator:
    """A CPU generator seeded by the content of the arguments."""
    digest = hashlib.blake2b(repr(content).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
