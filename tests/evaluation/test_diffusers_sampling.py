"""Samplers recover a point or a Gaussian from models whose exact prediction is known."""

import pytest
import torch
from PIL import Image

from muxfer.config.task import DDPM, Evaluation, RectifiedFlow
from muxfer.evaluation.diffusers_sampling import sample, save_grid

FLOW = RectifiedFlow(name="rectified_flow")
NOISE = DDPM(name="ddpm")
SAMPLERS = [(FLOW, None), (FLOW, "flow_match_euler"), (NOISE, None), (NOISE, "ddim"), (NOISE, "ddpm")]


def exact_model(objective, means, deviation: float, *, learn_sigma: bool = False):
    """The exact prediction for data N(means[y], deviation^2) in each pixel. The null class has mean 0."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)

    def model(x, t, y):
        mean = torch.tensor([*means, 0.0])[y][:, None, None, None]
        if objective is FLOW:
            data, noise = 1 - t / 1000, t / 1000
        else:
            data = alpha_bar[t.long()].sqrt().float()
            noise = (1 - data**2).sqrt()
        data, noise = data[:, None, None, None], noise[:, None, None, None]
        residual = (x - data * mean) / (data**2 * deviation**2 + noise**2)
        guess_eps = noise * residual
        guess_x0 = mean + data * deviation**2 * residual
        output = guess_eps - guess_x0 if objective is FLOW else guess_eps
        return torch.cat([output, -torch.ones_like(output)], dim=1) if learn_sigma else output

    return model


def draw(objective, sampler, *, deviation, labels, guidance=1.0, steps=100, seed=0, learn_sigma=False):
    return sample(
        exact_model(objective, [-0.5, 0.25], deviation, learn_sigma=learn_sigma),
        objective=objective,
        evaluation=Evaluation(sampler=sampler, sampling_steps=steps, guidance=guidance),
        labels=labels,
        num_classes=2,
        image_shape=(1, 4, 4),
        seed=seed,
        learn_sigma=learn_sigma,
    )


@pytest.mark.parametrize(("objective", "sampler"), SAMPLERS)
def test_a_single_point_is_recovered(objective, sampler):
    images = draw(objective, sampler, deviation=0.0, labels=[0, 1, 1])
    assert images.shape == (3, 1, 4, 4)
    for image, mean in zip(images, (-0.5, 0.25, 0.25), strict=True):
        assert image.mean().item() == pytest.approx(mean, abs=0.02)
        assert image.std().item() < 0.03


@pytest.mark.parametrize(
    ("objective", "sampler", "learn_sigma"),
    [(*pair, False) for pair in SAMPLERS] + [(NOISE, "ddim", True), (NOISE, "ddpm", True)],
)
def test_a_gaussian_is_recovered(objective, sampler, learn_sigma):
    labels = [0] * 300 + [1] * 300
    steps = 1000 if sampler == "ddpm" else 100  # with fewer steps the ddpm sampler's variance is too small
    images = draw(objective, sampler, deviation=0.2, labels=labels, learn_sigma=learn_sigma, steps=steps)
    for part, mean in ((images[:300], -0.5), (images[300:], 0.25)):
        assert part.mean().item() == pytest.approx(mean, abs=0.02)
        assert part.std().item() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(("objective", "sampler"), SAMPLERS)
def test_guidance_moves_samples_away_from_the_null_class(objective, sampler):
    """For Gaussians of equal deviation, guidance g moves the mean of the last steps to about g times the class's."""
    plain = draw(objective, sampler, deviation=0.2, labels=[1] * 50)
    guided = draw(objective, sampler, deviation=0.2, labels=[1] * 50, guidance=2.0)
    assert guided.mean() > plain.mean() + 0.1


@pytest.mark.parametrize(("objective", "sampler"), SAMPLERS)
def test_samples_depend_on_the_seed_alone(objective, sampler):
    first, again, other = (
        draw(objective, sampler, deviation=0.2, labels=[0, 1], steps=10, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_grid_has_one_row_a_class_and_enlarges_small_pictures(tmp_path):
    images = torch.full((5, 1, 8, 8), -1.0)
    images[3:] = 1.0
    path = save_grid(images, [0, 0, 0, 1, 1], tmp_path / "grid.png", class_names=["zero", "one"])
    with Image.open(path) as page:
        assert page.width >= 3 * 64
        assert page.height >= 2 * 64
        right = page.convert("L").crop((page.width - 3 * 68, 0, page.width, page.height))
    assert right.getpixel((20, 30)) == 0
    assert right.getpixel((20, 100)) == 255


def test_a_grid_of_large_colour_pictures_keeps_their_size(tmp_path):
    with Image.open(save_grid(torch.zeros(2, 3, 100, 100), [0, 0], tmp_path / "grid.png")) as page:
        assert page.height < 120
