"""How much of the latent's variance the invariances explain (MSC eq. 19), with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_inn.analysis.intervals import mean_interval
from posthoc_inn.analysis.results import Result
from posthoc_inn.errors import ShapeError
from posthoc_inn.pipeline import Pipeline


@dataclass(frozen=True)
class ExplainedByInvariances(Result):
    """MSC eq. 19 over z_bar: the total-effect Sobol index of v.

    Attributes:
        value: Share of the total variance of z_bar that v explains, in [0, 1].
        standard_error: Jackknife over images.
        interval: At 95 %, over images (`share_interval`); nan for fewer than 10.
        images: Images that gave a z.
        samples: Draws of v in all.
    """

    value: float
    standard_error: float
    interval: tuple[float, float]
    images: int
    samples: int


def explained_share(latents: Tensor) -> ExplainedByInvariances:
    """Return MSC eq. 19 from samples grouped by z.

    Within a group only v varies, so the mean of the groups' variances is the numerator; adding the variance of the
    groups' means (less the part of it that is within-group noise) gives the total. Both are unbiased.

    Args:
        latents: t⁻¹(v given z), shape (B, N, D): N draws of v for each of B images, B and N at least 2.

    Raises:
        ShapeError: There are fewer than two images or two draws.

    >>> v = torch.randn(400, 25, 3, generator=torch.Generator().manual_seed(0))
    >>> z = torch.randn(400, 1, 3, generator=torch.Generator().manual_seed(1))
    >>> abs(explained_share(v + z).value - 0.5) < 0.03
    True
    """
    if latents.ndim != 3 or latents.shape[0] < 2 or latents.shape[1] < 2:
        raise ShapeError(f"Latents must be (B, N, D) with B and N at least 2, got {tuple(latents.shape)}.")
    latents = latents.double()
    b, n = latents.shape[:2]
    within = latents.var(dim=1, unbiased=True).sum(dim=1)
    means = latents.mean(dim=1)
    # Moments of the means per group are all that resampling needs; centring first keeps the subtraction exact.
    means = means - means.mean(dim=0)
    squares = means.square().sum(dim=1)

    def share(weight: Tensor) -> Tensor:
        """Shares for weights (R, B), each row summing to B."""
        inner = (weight @ within) / b
        mean = (weight @ means) / b
        between = ((weight @ squares) / b - mean.square().sum(dim=1)) * b / (b - 1) - inner / n
        return inner / (inner + between.clamp_min(0))

    ones = torch.ones(1, b, dtype=torch.float64)
    value = float(share(ones))
    left_out = []
    for start in range(0, b, 256):
        rows = torch.arange(start, min(start + 256, b))
        weight = ones.repeat(len(rows), 1)
        weight[torch.arange(len(rows)), rows] = 0
        left_out.append(share(weight * b / (b - 1)))
    jackknife = torch.cat(left_out)
    error = float(((b - 1) / b * (jackknife - jackknife.mean()).square().sum()).sqrt())
    return ExplainedByInvariances(value, error, mean_interval(value, error, b), b, b * n)


@torch.no_grad()
def explained_by_invariances(
    pipeline: Pipeline, z: Tensor, *, samples: int = 10_000, seed: int = 0
) -> ExplainedByInvariances:
    """Return MSC eq. 19 for the representations `z` of held-out images.

    Args:
        pipeline: The fitted parts.
        z: Representations (B, *z_shape).
        samples: Draws in all (the paper's 10 000), spread evenly over the images.
        seed: Seed of v.
    """
    images = min(len(z), max(2, samples // 20))
    per_image = max(2, samples // images)
    context = pipeline.context(z[:images])
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for part in context.split(max(1, 65536 // per_image)):
        v = torch.randn(len(part), per_image, pipeline.latent_dim, generator=generator)
        parts.append(pipeline.sample_latents(part, v).cpu())
    return explained_share(torch.cat(parts))
