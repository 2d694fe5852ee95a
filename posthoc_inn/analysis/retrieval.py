"""What no t at all would show: training images whose z is nearest. Samples of t have to be nearer, or more varied."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_inn.analysis.faithfulness import compare_predictions
from posthoc_inn.analysis.results import Result, share_with_error
from posthoc_inn.rows.cache import Cache

VALUES = 2**27
"""Numbers of z that are compared with: of large z fewer training images are looked through."""
LEAST = 200
"""Training images that are looked through, however large z is."""
PART = 256
"""Rows compared at a time."""


@dataclass(frozen=True)
class Retrieval(Result):
    """How near the nearest training images are to held-out ones at the layer, and how much they vary.

    Attributes:
        similarity: Cosine similarity of their z to the image's.
        similarity_error: Its standard error over images.
        agreement: Share of them for which the model predicts what it predicts for the image; nan where predictions are
            no classes or sets of labels.
        agreement_error: Its standard error over images.
        spread: Variance of their latents around their mean, as a share of the variance of all images' latents.
        sample_spread: The same for samples of t: what the two have to be compared at.
        images: Held-out images.
        neighbours: Training images for each.
        rows: Training images that were looked through.
    """

    similarity: float
    similarity_error: float
    agreement: float
    agreement_error: float
    spread: float
    sample_spread: float
    images: int
    neighbours: int
    rows: int


@torch.no_grad()
def retrieval(
    train: Cache,
    z: Tensor,
    prediction: Tensor | None,
    *,
    sample_spread: float = math.nan,
    neighbours: int = 8,
    seed: int = 0,
) -> Retrieval:
    """Find the training images whose z is nearest to that of held-out ones, by cosine similarity.

    Args:
        train: Training rows, with z, mean, and prediction where predictions are compared.
        z: Of held-out images, (B, *z_shape).
        prediction: What is compared of the model's predictions for them, or None.
        sample_spread: Of samples of t, for the result.
        neighbours: N, for each image.
        seed: Which training images are looked through, where that is not all.
    """
    wanted = F.normalize(z.flatten(1).float(), dim=1)
    limit = max(LEAST, VALUES // wanted.shape[1])
    some = train.some(limit, seed=seed)
    count = min(neighbours, len(some))
    best = torch.full((len(z), count), -math.inf)
    place = torch.zeros(len(z), count, dtype=torch.long)
    for part in some.split(PART):
        found = wanted @ F.normalize(train["z"].rows(part).flatten(1).float(), dim=1).T
        near = torch.cat([best, found], 1).topk(count, dim=1)
        place = torch.cat([place, part.expand(len(z), -1)], 1).gather(1, near.indices)
        best = near.values
    similarity, error = share_with_error(best.double().mean(1).tolist())
    compared: dict[str, float] = {}
    if prediction is not None and not prediction.is_floating_point() and "prediction" in train:
        compared = compare_predictions(prediction, train["prediction"].rows(place.flatten()), count)
    latents = train["mean"].rows(place.flatten()).double().reshape(*place.shape, -1)
    total = train["mean"].rows(some).double().var(0).sum()
    return Retrieval(
        similarity=similarity,
        similarity_error=error,
        agreement=compared.get("agreement", math.nan),
        agreement_error=compared.get("agreement_error", math.nan),
        spread=float(latents.var(1).sum(-1).mean() / total) if count > 1 else math.nan,
        sample_spread=sample_spread,
        images=len(z),
        neighbours=count,
        rows=len(some),
    )
