"""Classifier-free guidance: mix the conditional and the unconditional prediction of one call.

The samplers are in muxfer/evaluation. Axes: B batch, C channels, H and W pixels.
"""

import torch

from muxfer.training.objective import Model


def guided_prediction(
    model: Model, x_BCHW: torch.Tensor, t_B: torch.Tensor, y_B: torch.Tensor, *, null_label: int, guidance: float
) -> torch.Tensor:
    """uncond + guidance (cond - uncond) in one doubled batch (Ho and Salimans 2022). Guidance 1 is the plain
    prediction. A learned variance (channels C to 2C of the output) is the conditional one, without guidance.
    """
    if guidance == 1:
        return model(x_BCHW, t_B, y_B)
    labels = torch.cat([y_B, torch.full_like(y_B, null_label)])
    conditional, unconditional = model(torch.cat([x_BCHW, x_BCHW]), torch.cat([t_B, t_B]), labels).chunk(2)
    channels = x_BCHW.shape[1]
    prediction = torch.lerp(unconditional[:, :channels], conditional[:, :channels], guidance)
    return torch.cat([prediction, conditional[:, channels:]], dim=1)
