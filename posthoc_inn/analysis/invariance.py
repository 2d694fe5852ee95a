"""How much of the latent's variance the invariances explain (MSC eq. 19), with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

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
        floor: What `value` would be for a layer that keeps all that the encoder's mean holds: E Σ σ² / Σ Var(z_bar).
            Each latent is its mean and the encoder's noise, which no layer of the model can keep. nan where the latents
            of the images are not known, as the four that follow.
        floor_error: Jackknife over images.
        above_floor: (value - floor) / (1 - floor): the same share for the encoder's mean alone, without its noise. 0
            for a layer that keeps all of it, 1 for one that keeps nothing; estimates can lie slightly outside.
        above_floor_error: Jackknife over images, of value and floor together.
        above_floor_interval: At 95 %.
    """

    value: float
    standard_error: float
    interval: tuple[float, float]
    images: int
    samples: int
    floor: float = math.nan
    floor_error: float = math.nan
    above_floor: float = math.nan
    above_floor_error: float = math.nan
    above_floor_interval: tuple[float, float] = (math.nan, math.nan)


Encoded = tuple[Tensor, Tensor]
"""The encoder's mean and deviation of z_bar for some images, each (B, D)."""


def explained_share(latents: Tensor, encoded: Encoded | None = None) -> ExplainedByInvariances:
    """Return MSC eq. 19 from samples grouped by z.

    Within a group only v varies, so the mean of the groups' variances is the numerator; adding the variance of the
    groups' means (less the part of it that is within-group noise) gives the total. Both are unbiased.

    Args:
        latents: t⁻¹(v given z), shape (B, N, D): N draws of v for each of B images, B and N at least 2.
        encoded: Of the same images, for the floor.

    Raises:
        ShapeError: There are fewer than two images or two draws, or the encoder's latents are of other images.

    >>> v = torch.randn(400, 25, 3, generator=torch.Generator().manual_seed(0))
    >>> z = torch.randn(400, 1, 3, generator=torch.Generator().manual_seed(1))
    >>> abs(explained_share(v + z).value - 0.5) < 0.03
    True
    """
    if latents.ndim != 3 or latents.shape[0] < 2 or latents.shape[1] < 2:
        raise ShapeError(f"Latents must be (B, N, D) with B and N at least 2, got {tuple(latents.shape)}.")
    if encoded is not None and any(part.shape != latents[:, 0].shape for part in encoded):
        raise ShapeError(f"The encoder's latents must be two of {tuple(latents[:, 0].shape)}, as the images are.")
    latents = latents.double()
    b, n = latents.shape[:2]
    within = latents.var(dim=1, unbiased=True).sum(dim=1)
    own = _Spread(latents.mean(dim=1))

    def share(weight: Tensor) -> Tensor:
        """Shares for weights (R, B), each row summing to B."""
        inner = (weight @ within) / b
        return inner / (inner + (own.variance(weight) - inner / n).clamp_min(0))

    value, error = _jackknife(share, b)
    found = ExplainedByInvariances(value, error, mean_interval(value, error, b), b, b * n)
    if encoded is None:
        return found
    mean, noise = encoded[0].double().cpu(), encoded[1].double().cpu().square().sum(dim=1)
    real = _Spread(mean)

    def floor(weight: Tensor) -> Tensor:
        inner = (weight @ noise) / b
        return inner / (inner + real.variance(weight)).clamp_min(1e-300)

    def above(weight: Tensor) -> Tensor:
        least = floor(weight)
        return (share(weight) - least) / (1 - least).clamp_min(1e-12)

    (least, least_error), (over, over_error) = _jackknife(floor, b), _jackknife(above, b)
    return replace(
        found,
        floor=least,
        floor_error=least_error,
        above_floor=over,
        above_floor_error=over_error,
        above_floor_interval=mean_interval(over, over_error, b),
    )


class _Spread:
    """The variance of rows (B, D), summed over D, for any weights of the rows."""

    def __init__(self, rows: Tensor) -> None:
        # Moments per row are all that resampling needs; centring first keeps the subtraction exact.
        self.rows = rows - rows.mean(dim=0)
        self.squares = self.rows.square().sum(dim=1)

    def variance(self, weight: Tensor) -> Tensor:
        """Return it (R,) for weights (R, B), each row summing to B."""
        b = len(self.rows)
        return ((weight @ self.squares) / b - ((weight @ self.rows) / b).square().sum(dim=1)) * b / (b - 1)


def _jackknife(statistic: Callable[[Tensor], Tensor], b: int) -> tuple[float, float]:
    """Return a statistic of weighted images, (R, B) to (R,), and its error from leaving out one of B in turn."""
    ones = torch.ones(1, b, dtype=torch.float64)
    left_out = []
    for rows in torch.arange(b).split(256):
        weight = ones.repeat(len(rows), 1)
        weight[torch.arange(len(rows)), rows] = 0
        left_out.append(statistic(weight * b / (b - 1)))
    jackknife = torch.cat(left_out)
    error = float(((b - 1) / b * (jackknife - jackknife.mean()).square().sum()).sqrt())
    return float(statistic(ones)), error


@torch.no_grad()
def explained_by_invariances(
    pipeline: Pipeline, z: Tensor, *, encoded: Encoded | None = None, samples: int = 10_000, seed: int = 0
) -> ExplainedByInvariances:
    """Return MSC eq. 19 for the representations `z` of held-out images.

    Args:
        pipeline: The fitted parts.
        z: Representations (B, *z_shape).
        encoded: The encoder's mean and deviation for the same images, each (B, D), for the floor.
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
    own = None if encoded is None else (encoded[0][:images].flatten(1).cpu(), encoded[1][:images].flatten(1).cpu())
    return explained_share(torch.cat(parts), own)
