"""Second moments of cached pairs: what the images of a concept's pairs have in common, besides what all others do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_inn.concepts.model import CHUNK
from posthoc_inn.rows.latents import Rows
from posthoc_inn.rows.pairs import RowPairs

PAIRS = 16_384
"""Pairs drawn a concept."""


@dataclass
class PairMoments:
    """Second moments of pairs.

    Attributes:
        mean: Mean of the rows that pairs are drawn from, (D,).
        total: Their covariance, the encoder's noise included, (D, D).
        shared: For each factor, residual first, the covariance that goes with it, (D, D) symmetric: between the two
            images of pairs that share it; or of what pairs that differ in it alone do not share. None where there is
            neither.
    """

    mean: Tensor
    total: Tensor
    shared: list[Tensor | None]


def pair_moments(rows: Rows, pairs: RowPairs, *, seed: int = 0) -> PairMoments:
    """Return second moments of pairs, in float64.

    Pairs may share several factors at once: cov(x^a, x^b) = Σ_k shared_k C_k is solved for all C_k by least squares
    over the pairs, so that what comes with sharing another factor is not counted twice. A factor that comes in pairs
    which share all but it has ½ cov(x^a - x^b) instead.
    """
    a, b, shared = pairs.draw(PAIRS * len(pairs.names), seed=seed)
    differing = shared[:, 0]
    mean = torch.zeros(rows.dim, dtype=torch.float64)
    for index in torch.cat([a, b]).split(CHUNK):
        mean += rows.at(index)[0].double().sum(dim=0) / (2 * len(a))
    total = torch.zeros(rows.dim, rows.dim, dtype=torch.float64)
    noise = torch.zeros_like(mean)
    used = [k for k in range(1, shared.shape[1]) if bool((shared[:, k] & ~differing).any())]
    products = torch.zeros(len(used), rows.dim, rows.dim, dtype=torch.float64)
    apart = {k: torch.zeros_like(total) for k in range(1, shared.shape[1]) if k not in used}
    for i, j, mask in zip(a.split(CHUNK), b.split(CHUNK), shared.split(CHUNK), strict=True):
        (x, x_std), (y, y_std) = rows.at(i), rows.at(j)
        x, y = x.double() - mean, y.double() - mean
        total += x.T @ x + y.T @ y
        noise += x_std.double().square().sum(dim=0) + y_std.double().square().sum(dim=0)
        for place, k in enumerate(used):
            here = mask[:, k] & ~mask[:, 0]
            products[place] += x[here].T @ y[here]
        for k, sums in apart.items():
            difference = (x - y)[mask[:, 0] & ~mask[:, k]]
            sums += 0.5 * difference.T @ difference
    masks = shared[~differing][:, used].double()
    solved = torch.einsum("jk,kab->jab", torch.linalg.pinv(masks.T @ masks, hermitian=True), products)
    parts: list[Tensor | None] = [None] * shared.shape[1]
    for k, matrix in zip(used, solved, strict=True):
        parts[k] = (matrix + matrix.T) / 2
    for k, sums in apart.items():
        if count := int((differing & ~shared[:, k]).sum()):
            parts[k] = sums / count
    return PairMoments(mean, (total + torch.diag(noise)) / (2 * len(a)), parts)
