"""Pictures found by optimising pixels until they have a given z (Mahendran & Vedaldi, CVPR 2015 and IJCV 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_inn.ambient import in_plain_torch
from posthoc_inn.errors import ConfigError, ModelError, Problems, is_count
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.progress import Reporter
from posthoc_inn.seeds import derived

ALPHA = 6
"""Power of the norm prior."""
BETA = 2
"""Power of the total variation."""
BOUND = 80 / 255
"""Length of a pixel's colour, from grey, that costs 1."""
VARIATION = BOUND / 6.5
"""Length of a pixel's gradient that costs 1."""
MISFIT = 300.0
"""Weight of the misfit of z against both priors."""
RATE = 0.05
"""First step of Adam, in units of [0, 1]; it falls to 0 by a cosine."""
NOISE = 0.1
"""Deviation of the noise that a picture starts from, around grey."""
PART = 32
"""Pictures that are optimised together."""


def norm_prior(pictures: Tensor) -> Tensor:
    """Return R_α of pictures (B, C, H, W) in [0, 1], (B,): mean over pixels of (length of the colour / bound)^α.

    >>> float(norm_prior(torch.full((1, 3, 2, 2), 0.5)))
    0.0
    """
    return ((pictures - 0.5).square().sum(1) / BOUND**2).pow(ALPHA / 2).mean((1, 2))


def total_variation(pictures: Tensor) -> Tensor:
    """Return R_TV of pictures (B, C, H, W), (B,): mean over pixels of the squared gradient, summed over channels.

    >>> float(total_variation(torch.full((1, 3, 2, 2), 0.7)))
    0.0
    """
    down = pictures[:, :, 1:, :-1] - pictures[:, :, :-1, :-1]
    across = pictures[:, :, :-1, 1:] - pictures[:, :, :-1, :-1]
    return ((down.square() + across.square()) / VARIATION**2).pow(BETA / 2).sum(1).mean((1, 2))


def misfit(found: Tensor, z: Tensor) -> Tensor:
    """Return ‖found - z‖² / ‖z‖² of each row, (B,), for two z (B, *z_shape)."""
    size = z.flatten(1).square().sum(1).clamp_min(torch.finfo(torch.float32).tiny)
    return (found - z).flatten(1).square().sum(1) / size


def check_gradients(pipeline: Pipeline, z: Tensor) -> None:
    """Check that a gradient goes from the layer back to the pixels.

    Args:
        pipeline: The fitted parts.
        z: Any one, (1, *z_shape).

    Raises:
        ConfigError: None does, or the model fails where gradients are recorded.
    """
    adapter = pipeline.adapter
    if adapter.dtype == "uint8":
        raise ConfigError(f"{_NEEDS} This model gets its images as bytes, which have no gradient. {_ADVICE}")
    grey = torch.full((1, adapter.channels, *adapter.picture_shape), 0.5)
    try:
        _gradient(pipeline, grey.to(pipeline.device), z[:1].to(pipeline.device).float(), MISFIT)
    except (RuntimeError, ModelError) as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"{_NEEDS} None comes through this model: {said} {_ADVICE}") from error


_NEEDS = "Pixels are optimised by gradients from the layer back to the image."
_ADVICE = "Leave this method out: methods=('decoder',)."


def _gradient(pipeline: Pipeline, pictures: Tensor, z: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Return the gradient of the objective, (B, C, H, W), and the misfit of each picture, (B,)."""
    pictures = pictures.detach().requires_grad_()
    with torch.enable_grad():
        found = pipeline.extractor.features(pipeline.adapter.pictures_to_model(pictures)).float()
        off = misfit(found, z)
        if not off.requires_grad:
            raise RuntimeError("its layer's output is cut off from the image.")
        total = (weight * off + norm_prior(pictures) + total_variation(pictures)).sum()
        (gradient,) = torch.autograd.grad(total, pictures)
    return gradient, off.detach()


@in_plain_torch
def preimages(
    pipeline: Pipeline,
    z: Tensor,
    *,
    steps: int = 300,
    weight: float = MISFIT,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Tensor:
    """Find pictures with given z from noise: argmin over x of C ‖Φ(x) - z‖² / ‖z‖² + R_α(x) + R_TV(x).

    Adam on the pixels, which stay in [0, 1]. The priors say that colours are not extreme and neighbours alike, and
    nothing else of what images look like. Each picture has its own noise, whatever others it is optimised with. The
    papers' jitter is left out.

    Args:
        pipeline: The fitted parts; the model's weights are left alone.
        z: Representations (B, *z_shape).
        steps: Gradient steps.
        weight: C.
        seed: Of the noise.
        reporter: Told how many steps are done, of `steps` for each part of 32 pictures.

    Returns:
        Pictures (B, C, H, W) in [0, 1], of the autoencoder's size.

    Raises:
        ConfigError: No gradient comes through the model, or an argument is wrong.
    """
    problems = Problems("preimages")
    problems.check(is_count(steps, 1), f"steps must be at least 1, got {steps!r}")
    problems.check(weight > 0, f"weight must be positive, got {weight}")
    problems.raise_if_any()
    check_gradients(pipeline, z)
    adapter, found = pipeline.adapter, []
    for start in range(0, len(z), PART):
        part = z[start : start + PART].to(pipeline.device).float()
        shape = (adapter.channels, *adapter.picture_shape)
        noise = [
            torch.randn(shape, generator=torch.Generator().manual_seed(derived(seed, "noise", start + k)))
            for k in range(len(part))
        ]
        pictures = (0.5 + NOISE * torch.stack(noise)).clamp(0, 1).to(pipeline.device).requires_grad_()
        optimizer = torch.optim.Adam([pictures], lr=RATE)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            pictures.grad, off = _gradient(pipeline, pictures, part, weight)
            optimizer.step()
            falling.step()
            with torch.no_grad():
                pictures.clamp_(0, 1)
            if reporter is not None:
                reporter.advance(start // PART * steps + step + 1, {"misfit": float(off.mean())})
        found.append(pictures.detach())
    return torch.cat(found)
