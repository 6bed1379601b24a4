"""Draw samples from a trained model by diffusers' schedulers and classifier-free guidance, and save them as a grid.

Axes: N samples, B batch, C channels, H and W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from muxfer.config.task import DDPM, Evaluation, RectifiedFlow
from muxfer.data.randomness import generator_of
from muxfer.training.objective import FLOW_TIMESTEPS, Model

SAMPLE_BATCH = 256
MIN_TILE_PIXELS = 64  # A smaller picture is enlarged by a whole factor, because an 8x8 digit is hard to see
GAP_PIXELS, FONT_PIXELS = 4, 20


@torch.no_grad()
def sample(
    model: Model,
    *,
    objective: RectifiedFlow | DDPM,
    evaluation: Evaluation,
    labels: Sequence[int],
    num_classes: int,
    image_shape: tuple[int, int, int],
    seed: int,
    learn_sigma: bool = False,
    device: str = "cpu",
) -> torch.Tensor:
    """Draw one image a label [N, C, H, W] in [-1, 1] on the CPU, with guidance. Equal seeds give equal images. `model`
    is in evaluation mode on `device`. Class `num_classes` is the null class. With `learn_sigma` the model outputs 2C
    channels, and the second half sets the variance of the ddpm sampler.
    """
    images = []
    for start in range(0, len(labels), SAMPLE_BATCH):
        y_N = torch.tensor(labels[start : start + SAMPLE_BATCH], device=device)
        generator = generator_of("sample", seed, start)
        scheduler = _scheduler(objective, evaluation, learn_sigma=learn_sigma)
        x_NCHW = torch.randn((len(y_N), *image_shape), generator=generator).to(device)
        options = {} if isinstance(objective, RectifiedFlow) else {"generator": generator}
        for t in scheduler.timesteps:
            prediction = guided_prediction(
                model,
                x_NCHW,
                t.to(device=device, dtype=torch.float32).expand(len(y_N)),
                y_N,
                null_label=num_classes,
                guidance=evaluation.guidance,
            ).float()
            if evaluation.sampler != "ddpm":
                prediction = prediction[:, : image_shape[0]]  # only the ddpm sampler uses a learned variance
            x_NCHW = scheduler.step(prediction, t, x_NCHW, **options).prev_sample
        images.append(x_NCHW.clamp(-1, 1).cpu())
    return torch.cat(images)


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


def _scheduler(objective: RectifiedFlow | DDPM, evaluation: Evaluation, *, learn_sigma: bool) -> Any:
    from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

    steps = evaluation.sampling_steps
    if isinstance(objective, RectifiedFlow):
        flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=FLOW_TIMESTEPS)
        flow.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
        return flow
    options = {
        "num_train_timesteps": objective.num_timesteps,
        "beta_start": objective.beta_start,
        "beta_end": objective.beta_end,
        "beta_schedule": "linear",
        "timestep_spacing": "trailing",  # starts from pure noise at any number of steps (Lin et al. 2024)
    }
    if evaluation.sampler == "ddpm":
        scheduler = DDPMScheduler(variance_type="learned_range" if learn_sigma else "fixed_small", **options)
    else:
        scheduler = DDIMScheduler(**options)
    scheduler.set_timesteps(min(steps, objective.num_timesteps))
    return scheduler


def save_grid(
    x_NCHW: torch.Tensor, labels: Sequence[int], path: str | Path, *, class_names: Sequence[str] | None = None
) -> Path:
    """Write samples in [-1, 1] as one PNG: a row a class with its name. Small images are enlarged."""
    from PIL import Image, ImageDraw, ImageFont

    rows: dict[int, list[torch.Tensor]] = {}
    for image, label in zip(x_NCHW, labels, strict=True):
        rows.setdefault(int(label), []).append(image)
    channels, height, width = x_NCHW.shape[1:]
    factor = -(-MIN_TILE_PIXELS // max(height, width))
    font = ImageFont.load_default(size=FONT_PIXELS)
    names = {label: class_names[label] if class_names else str(label) for label in rows}
    left = int(max(font.getlength(name) for name in names.values())) + 3 * GAP_PIXELS
    tile_width, tile_height = width * factor + GAP_PIXELS, height * factor + GAP_PIXELS
    columns = max(len(images) for images in rows.values())
    page = Image.new("RGB", (left + columns * tile_width, GAP_PIXELS + len(rows) * tile_height), "white")
    draw = ImageDraw.Draw(page)
    for row, label in enumerate(sorted(rows)):
        top = GAP_PIXELS + row * tile_height
        draw.text((GAP_PIXELS, top + (tile_height - FONT_PIXELS) // 2), names[label], fill="black", font=font)
        for column, image in enumerate(rows[label]):
            pixels = image.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
            tile = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels[:, :, :3])
            enlarged = tile.resize((width * factor, height * factor), Image.Resampling.NEAREST)
            page.paste(enlarged.convert("RGB"), (left + column * tile_width, top))
    page.save(path, format="PNG")
    return Path(path)
