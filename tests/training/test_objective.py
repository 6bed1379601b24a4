import math

import pytest
import torch

from muxfer.config.task import DDPM, RectifiedFlow
from muxfer.evaluation.diffusers_sampling import guided_prediction
from muxfer.training.objective import _table, losses, timesteps

FLOW = RectifiedFlow(name="rectified_flow")
NOISE = DDPM(name="ddpm")


def draws(batch: int = 32):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(batch, 1, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    u = torch.rand(batch, generator=generator, dtype=torch.float64)
    return x0, torch.zeros(batch, dtype=torch.int64), u, noise


def test_times_are_logit_normal():
    u = (torch.arange(10001, dtype=torch.float64) + 0.5) / 10001
    t = timesteps(RectifiedFlow(name="rectified_flow", logit_mean=0.5, logit_std=2.0), u)
    logit = torch.logit(t)
    assert logit.mean().item() == pytest.approx(0.5, abs=1e-6)
    assert logit.std().item() == pytest.approx(2.0, rel=1e-3)
    assert timesteps(FLOW, torch.tensor([0.0], dtype=torch.float64)).isfinite().all()


def test_ddpm_steps_are_equally_likely():
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    assert torch.bincount(timesteps(NOISE, u)).tolist() == [4] * 1000
    assert timesteps(NOISE, torch.tensor([0.0, 1.0])).tolist() == [0, 999]


@pytest.mark.parametrize("objective", [FLOW, NOISE])
def test_an_exact_prediction_has_loss_zero_and_a_constant_error_its_square(objective):
    x0, y, u, noise = draws()
    target = noise - x0 if objective is FLOW else noise
    t = timesteps(objective, u)
    exact = losses(objective, lambda *_: target, x0, y, t, noise)
    off = losses(objective, lambda *_: target + 0.5, x0, y, t, noise)
    torch.testing.assert_close(exact, torch.zeros(32, dtype=torch.float64))
    torch.testing.assert_close(off, torch.full((32,), 0.25, dtype=torch.float64))


def test_the_model_sees_the_noised_image_and_its_timestep():
    x0, y, u, noise = draws()
    seen = {}

    def model(x, t, labels):
        seen.update(x=x, t=t)
        return x

    t = timesteps(FLOW, u)
    losses(FLOW, model, x0, y, t, noise)
    share = t[:, None, None, None]
    torch.testing.assert_close(seen["x"], (1 - share) * x0 + share * noise)
    torch.testing.assert_close(seen["t"], 1000 * t)

    t = timesteps(NOISE, u)
    losses(NOISE, model, x0, y, t, noise)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t][:, None, None, None]
    torch.testing.assert_close(seen["x"], alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise)
    torch.testing.assert_close(seen["t"], t.double())


def test_the_forward_process_equals_diffusers():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    ours = _table(NOISE, torch.device("cpu"), torch.float32)["sqrt_alpha_bar"]
    torch.testing.assert_close(ours, scheduler.alphas_cumprod.sqrt(), rtol=1e-4, atol=1e-6)


def bound(eps_error: float, fraction: float, t: int) -> torch.Tensor:
    x0, y, _, noise = draws()
    output = torch.cat([noise + eps_error, torch.full_like(noise, fraction)], dim=1).requires_grad_()
    whole = losses(NOISE, lambda *_: output, x0, y, torch.full((32,), t), noise)
    return whole - eps_error**2


def test_with_an_exact_mean_the_best_variance_is_the_posteriors():
    """With the mean exact, KL(q || p) is zero where log p's variance is the posterior's: fraction -1."""
    values = [bound(0.0, fraction, t=300).mean().item() for fraction in (-1.0, -0.5, 0.0, 1.0)]
    assert values[0] == pytest.approx(0, abs=1e-9)
    assert values == sorted(values)


def test_the_bound_is_the_kl_of_two_gaussians_in_bits():
    t, error, fraction = 300, 0.3, 0.5
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - beta, 0)
    posterior = beta[t] * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
    log_variance = 0.75 * beta[t].log() + 0.25 * posterior.log()
    shift = error * beta[t] / ((1 - alpha_bar[t]) * (1 - beta[t])).sqrt()
    p = torch.distributions.Normal(shift, (0.5 * log_variance).exp())
    q = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), posterior.sqrt())
    expected = torch.distributions.kl_divergence(q, p).item() / math.log(2)
    assert bound(error, fraction, t).mean().item() == pytest.approx(expected, rel=1e-9)


def test_the_bound_at_step_zero_is_a_likelihood_and_trains_the_variance_alone():
    x0, y, _, noise = draws()
    output = torch.cat([noise, torch.zeros_like(noise)], dim=1).requires_grad_()
    whole = losses(NOISE, lambda *_: output, x0, y, torch.zeros(32, dtype=torch.int64), noise)
    assert (whole > 0).all()
    whole.sum().backward()
    assert output.grad[:, :1].abs().max() == 0  # the exact prediction: no pull from the bound on the mean
    assert output.grad[:, 1:].abs().max() > 0


@pytest.mark.parametrize("objective", [FLOW, NOISE])
def test_an_output_of_other_channels_is_refused(objective):
    x0, y, u, noise = draws()
    with pytest.raises(ValueError, match="does not fit"):
        losses(objective, lambda x, *_: x.expand(-1, 3, -1, -1), x0, y, timesteps(objective, u), noise)
    if objective is FLOW:
        with pytest.raises(ValueError, match="does not fit"):
            losses(objective, lambda x, *_: x.expand(-1, 2, -1, -1), x0, y, timesteps(objective, u), noise)


def aligned(objective, projection_BTE, features_BTE, *, error: float = 0.5):
    """Losses of a prediction that is off by `error`, with this projection; the model must be called once, for both."""
    x0, y, u, noise = draws(batch=len(features_BTE))
    target = noise - x0 if objective.name == "rectified_flow" else noise
    calls = []

    def model(x, t, labels, **options):
        calls.append(options)
        return target + error, projection_BTE

    result = losses(objective, model, x0, y, timesteps(objective, u), noise, features_BTE)
    assert calls == [{"repa": True}]
    return result


@pytest.mark.parametrize("kind", [RectifiedFlow, DDPM])
@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_repa_adds_one_minus_the_cosine_of_each_patch(kind, weight):
    objective = kind(name="rectified_flow" if kind is RectifiedFlow else "ddpm", repa_weight=weight)
    generator = torch.Generator().manual_seed(1)
    projection, features = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64).unbind(0)
    for loss, ours, theirs in zip(aligned(objective, projection, features), projection, features, strict=True):
        distances = []
        for p, f in zip(ours.tolist(), theirs.tolist(), strict=True):
            product = sum(a * b for a, b in zip(p, f, strict=True))
            distances.append(1 - product / math.sqrt(sum(a * a for a in p) * sum(b * b for b in f)))
        assert loss.item() == pytest.approx(0.25 + weight * sum(distances) / len(distances), rel=1e-12)
    torch.testing.assert_close(aligned(objective, 3 * features, features), torch.full_like(loss, 0.25).expand(3))
    torch.testing.assert_close(aligned(objective, -features, features), (0.25 + 2 * weight + 0 * loss).expand(3))


def test_repa_reaches_the_projection_and_leaves_the_features():
    objective = RectifiedFlow(name="rectified_flow", repa_weight=0.5)
    generator = torch.Generator().manual_seed(1)
    projection, features = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64).unbind(0)
    projection.requires_grad_()
    aligned(objective, projection, features).sum().backward()
    pulled = projection.detach() - 0.1 * projection.grad
    assert (aligned(objective, pulled, features) < aligned(objective, projection, features)).all()
    assert (projection.grad * projection).sum(-1).abs().max() < 1e-12, "a cosine has no gradient along its own length"


def test_a_bfloat16_projection_is_compared_in_the_images_precision():
    objective = RectifiedFlow(name="rectified_flow", repa_weight=0.5)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    coarse = (features + 0.01 * torch.randn(features.shape, generator=generator)).bfloat16()
    result = aligned(objective, coarse, features, error=0.0)
    assert result.dtype == torch.float64
    assert torch.equal(result, aligned(objective, coarse.double(), features, error=0.0))
    assert (result > 0).all()


def test_guidance_moves_away_from_the_unconditional_prediction():
    def model(x, t, y):
        label = y.to(x.dtype)[:, None, None, None]
        return torch.cat([x + label, x * 0 + label], dim=1)

    x, t, y = torch.zeros(2, 1, 4, 4), torch.zeros(2), torch.tensor([1, 2])
    guided = guided_prediction(model, x, t, y, null_label=10, guidance=3.0)
    assert guided[:, 0, 0, 0].tolist() == [10 + 3 * (1 - 10), 10 + 3 * (2 - 10)]
    assert guided[:, 1, 0, 0].tolist() == [1, 2]
    assert torch.equal(guided_prediction(model, x, t, y, null_label=10, guidance=1.0), model(x, t, y))
