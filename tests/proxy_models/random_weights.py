"""Random weights for a model: zero gates and a zero readout would hide faults of what they multiply."""

import torch


def randomize(model: torch.nn.Module, *, seed: int = 0) -> None:
    """Fill every parameter with noise of deviation 0.2."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
