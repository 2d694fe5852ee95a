"""Does one random vector tell anything of another? Distance correlation (Székely and Rizzo 2013), with permutations."""

from __future__ import annotations

import torch
from torch import Tensor

Dependence = tuple[float, float]
"""Bias-corrected squared distance correlation, 0 (may be slightly below) for independent rows and 1 for equal ones; and
its probability under independence."""

TOGETHER = 2**21
"""Numbers of permuted distance matrices that are held at a time."""


def centred_distances(rows: Tensor) -> Tensor:
    """Return the U-centred distance matrix (N, N), float64, of rows (N, ...), N at least 4.

    Its rows sum to 0, and so does its diagonal; products of two such matrices estimate distance covariance without
    bias, however many dimensions there are.
    """
    x = rows.flatten(1).double()
    distances = torch.cdist(x, x)
    n = len(x)
    sums = distances.sum(1)
    centred = distances - (sums[:, None] + sums[None, :]) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    centred.fill_diagonal_(0)
    return centred


def distance_correlations(several: list[Tensor], other: Tensor, *, permutations: int, seed: int) -> list[Dependence]:
    """Return the distance correlation of each of `several` with `other`, and how often chance gives as much.

    Args:
        several: Rows (N, ...) each.
        other: Rows (N, ...), of the same images.
        permutations: Orders of the rows that chance is told from.
        seed: Of these.

    >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    >>> noise = torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    >>> same, none = distance_correlations([x, noise], x, permutations=199, seed=0)
    >>> round(same[0], 3), same[1], abs(none[0]) < 0.05, none[1] > 0.05
    (1.0, 0.005, True, True)
    """
    own = torch.stack([centred_distances(rows).flatten() for rows in several])
    matrix = centred_distances(other)
    n, generator = len(matrix), torch.Generator().manual_seed(seed)
    observed = own @ matrix.flatten()
    at_least = torch.zeros(len(own), dtype=torch.float64)
    done, size = 0, max(1, TOGETHER // n**2)
    while done < permutations:
        orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(min(size, permutations - done))])
        permuted = matrix[orders[:, :, None], orders[:, None, :]].flatten(1)
        # Equal ones count: rounding must not make chance look rarer.
        at_least += (own @ permuted.T >= observed[:, None] * (1 - 1e-9)).sum(1)
        done += len(orders)
    scale = (own.square().sum(1) * matrix.square().sum()).sqrt().clamp_min(1e-300)
    chance = (at_least + 1) / (permutations + 1)
    return [(float(value), float(p)) for value, p in zip(observed / scale, chance, strict=True)]
