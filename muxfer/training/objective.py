"""The training target of a model and its loss: one function for training and validation.

A time is drawn as a number u in (0, 1). The quantile function of the objective's time distribution maps u to the time.
Training draws u at random, validation takes u on an even grid, and everything after that is shared. The model is called
with timesteps in 0..1000, as diffusers' schedulers do: t * 1000 for rectified flow, the index of the step for DDPM.
A model is refused when its output has neither the image's channels nor, under DDPM, twice as many (a learned variance).

Axes: B batch, C channels, H and W pixels; T is the number of DDPM steps.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch.nn import functional

from muxfer.config.task import DDPM, RectifiedFlow

FLOW_TIMESTEPS = 1000
"""The model sees t in [0, 1] as t * 1000, the convention of diffusers' FlowMatchEulerDiscreteScheduler."""
PIXEL_STEP = 2 / 255  # width of a pixel's bin in [-1, 1], for the likelihood of the last denoising step

Model = Callable[..., torch.Tensor]  # `model(x_BCHW, t_B, y_B)`: the prediction, [B, C or 2C, H, W]


def timesteps(objective: RectifiedFlow | DDPM, u_B: torch.Tensor) -> torch.Tensor:
    """Map the quantile u in (0, 1), float64, to a time of the objective: t in [0, 1], or a step 0..T-1 (int64)."""
    if isinstance(objective, RectifiedFlow):
        return torch.sigmoid(objective.logit_mean + objective.logit_std * torch.special.ndtri(u_B))
    return (u_B * objective.num_timesteps).long().clamp_(max=objective.num_timesteps - 1)


def losses(
    objective: RectifiedFlow | DDPM,
    model: Model,
    x0_BCHW: torch.Tensor,
    y_B: torch.Tensor,
    t_B: torch.Tensor,
    noise_BCHW: torch.Tensor,
    features_BTE: torch.Tensor | None = None,
) -> torch.Tensor:
    """Loss of each sample [B], in the images' precision, at the times from `timesteps`.

    Rectified flow: |v(x_t) - (noise - x0)|^2 with x_t = (1-t) x0 + t noise (Esser et al. 2024, eq. 2 and 19). DDPM:
    |eps(x_t) - noise|^2 with x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise (Ho et al. 2020, eq. 14), plus, when the model
    outputs 2C channels, the variational bound of the variance with the mean held fixed, weighted by T/1000 (Nichol and
    Dhariwal 2021, eq. 16; DiT's weighting at its 1000 steps). With `features` of a frozen encoder the model is called
    with `repa` and returns (output, projection [B, T, E]). The loss then adds repa_weight * (1 - cosine), the mean over
    patches (REPA, Yu et al. 2025, eq. 8, shifted to start at 0).
    """
    if features_BTE is not None:
        repa_B = torch.zeros(())

        def predict(x_BCHW: torch.Tensor, t_B: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
            nonlocal repa_B
            output, projection_BTE = model(x_BCHW, t_B, y_B, repa=True)
            repa_B = 1 - functional.cosine_similarity(projection_BTE.to(x0_BCHW.dtype), features_BTE, dim=-1).mean(1)
            return output

        denoising_B = losses(objective, predict, x0_BCHW, y_B, t_B, noise_BCHW)
        return denoising_B + objective.repa_weight * repa_B
    if isinstance(objective, RectifiedFlow):
        t_B111 = t_B.to(x0_BCHW.dtype)[:, None, None, None]
        x_BCHW = torch.lerp(x0_BCHW, noise_BCHW, t_B111)
        output = model(x_BCHW, (t_B * FLOW_TIMESTEPS).to(x0_BCHW.dtype), y_B).to(x0_BCHW.dtype)
        _validate_shape(output, x0_BCHW, "rectified_flow")
        return _mean_square(output - (noise_BCHW - x0_BCHW))
    table = _table(objective, x0_BCHW.device, x0_BCHW.dtype)
    x_BCHW = _at(table["sqrt_alpha_bar"], t_B) * x0_BCHW + _at(table["sqrt_one_minus_alpha_bar"], t_B) * noise_BCHW
    output = model(x_BCHW, t_B.to(x0_BCHW.dtype), y_B).to(x0_BCHW.dtype)
    if output.shape[1] != 2 * x0_BCHW.shape[1]:
        _validate_shape(output, x0_BCHW, "ddpm")
        return _mean_square(output - noise_BCHW)
    eps_BCHW, fraction_BCHW = output.chunk(2, dim=1)
    bound_B = _variance_bound(table, x0_BCHW, x_BCHW, t_B, eps_BCHW.detach(), fraction_BCHW)
    return _mean_square(eps_BCHW - noise_BCHW) + bound_B * (objective.num_timesteps / 1000)


def _mean_square(difference_BCHW: torch.Tensor) -> torch.Tensor:
    return difference_BCHW.square().flatten(1).mean(1)


def _validate_shape(output: torch.Tensor, x0_BCHW: torch.Tensor, name: str) -> None:
    if output.shape != x0_BCHW.shape:
        shape, expected = tuple(output.shape), tuple(x0_BCHW.shape)
        raise ValueError(f"the model's output {shape} does not fit the images {expected} under {name}")


def _at(row_T: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
    return row_T[t_B][:, None, None, None]


@functools.lru_cache(maxsize=8)
def _table(objective: DDPM, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Coefficients of every DDPM step, by name, each [T]."""
    beta = torch.linspace(objective.beta_start, objective.beta_end, objective.num_timesteps, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - beta, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    posterior = beta * (1 - before) / (1 - alpha_bar)
    # The first posterior variance is zero, so its log is clipped as in the reference.
    posterior = torch.cat([posterior[1:2], posterior[1:]]) if len(posterior) > 1 else beta
    rows = {
        "sqrt_alpha_bar": alpha_bar.sqrt(),
        "sqrt_one_minus_alpha_bar": (1 - alpha_bar).sqrt(),
        "x0_from_x": alpha_bar.rsqrt(),
        "x0_from_eps": (1 / alpha_bar - 1).sqrt(),
        "mean_from_x0": beta * before.sqrt() / (1 - alpha_bar),
        "mean_from_x": (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar),
        "log_beta": beta.log(),
        "log_posterior": posterior.log(),
    }
    return {name: row.to(device=device, dtype=dtype) for name, row in rows.items()}


def _variance_bound(
    table: dict[str, torch.Tensor],
    x0_BCHW: torch.Tensor,
    x_BCHW: torch.Tensor,
    t_B: torch.Tensor,
    eps_BCHW: torch.Tensor,
    fraction_BCHW: torch.Tensor,
) -> torch.Tensor:
    """One term of the variational bound in bits per dimension [B]: KL to the posterior, likelihood of x0 at step 0.
    `fraction` in [-1, 1] interpolates the log variance between the posterior's and beta.
    """
    share = (fraction_BCHW + 1) / 2
    log_posterior = _at(table["log_posterior"], t_B)
    log_variance = share * _at(table["log_beta"], t_B) + (1 - share) * log_posterior
    guess_BCHW = _at(table["x0_from_x"], t_B) * x_BCHW - _at(table["x0_from_eps"], t_B) * eps_BCHW
    true_mean = _at(table["mean_from_x0"], t_B) * x0_BCHW + _at(table["mean_from_x"], t_B) * x_BCHW
    mean = _at(table["mean_from_x0"], t_B) * guess_BCHW + _at(table["mean_from_x"], t_B) * x_BCHW
    ratio = torch.exp(log_posterior - log_variance)
    distance = (true_mean - mean).square() * torch.exp(-log_variance)
    divergence = 0.5 * (log_variance - log_posterior - 1 + ratio + distance)
    likelihood = -_log_likelihood_of_bin(x0_BCHW, mean, log_variance)
    term = torch.where((t_B == 0)[:, None, None, None], likelihood, divergence)
    return term.flatten(1).mean(1) / math.log(2)


def _log_likelihood_of_bin(x_BCHW: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Log probability that a Gaussian falls into x's bin of 255. The outermost bins extend to infinity."""
    centred, inverse = x_BCHW - mean, torch.exp(-0.5 * log_variance)
    above = torch.special.ndtr((centred + PIXEL_STEP / 2) * inverse)
    below = torch.special.ndtr((centred - PIXEL_STEP / 2) * inverse)
    inside = torch.where(x_BCHW < -0.999, above, torch.where(x_BCHW > 0.999, 1 - below, above - below))
    return inside.clamp(min=1e-12).log()
