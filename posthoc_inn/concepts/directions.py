"""Directions that the pairs of a concept have in common: the best linear e, in closed form but for a few iterations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posthoc_inn.errors import ShapeError

ITERATIONS = 30
FLOOR = 1e-6
"""Eigenvalues below this share of the mean one are raised to it: dimensions that hardly vary are not blown up."""


def shared_directions(total: Tensor, shared: Sequence[Tensor | None], widths: Sequence[int]) -> Tensor:
    """Return the linear map to factors that share as much as they can: (D, D), rows in the order of the factors.

    Its output has unit covariance, and among all such maps it seeks the one that maximises Σ_k tr(W_k C_k W_kᵀ): W_k
    are the rows of factor k, C_k the covariance that the images of its pairs have in common. Rows of a factor are
    ordered by what its pairs share of each; what they share of two rows is uncorrelated. For one concept these are the
    directions of linear discriminant analysis, and W_k C_k W_kᵀ their correlations within a pair; directions of
    several concepts that overlap (beards and men) part no more than orthogonality asks. The pair likelihood (MSC eq.
    13) cannot be trusted to find them: two values of an attribute are worth 0.7 nats among a hundred of the density.

    Args:
        total: Covariance of the latents, (D, D), positive definite.
        shared: C_k of each factor, residual first, (D, D) and symmetric; None for a factor that takes what is left.
        widths: Width of each factor, residual first; they add up to D.

    Raises:
        ShapeError: A shape does not fit.

    >>> C = torch.diag(torch.tensor([0.0, 3.6, 0.0]))  # of three dimensions, pairs share the second, of variance 4
    >>> W = shared_directions(torch.diag(torch.tensor([1.0, 4.0, 9.0])), [None, C], (2, 1))
    >>> [round(abs(x), 4) for x in W[2].tolist()]
    [0.0, 0.5, 0.0]
    """
    dim = len(total)
    shapes = {tuple(c.shape) for c in (total, *shared) if c is not None}
    if shapes != {(dim, dim)} or len(shared) != len(widths) or sum(widths) != dim:
        raise ShapeError(
            f"total and shared have shapes {sorted(shapes)} for factors of widths {tuple(widths)}; accepted are "
            f"({sum(widths)}, {sum(widths)}), one a factor."
        )
    variance, axes = torch.linalg.eigh(total.double())
    variance = variance.clamp_min(FLOOR * float(variance.mean()))
    whitening = (axes / variance.sqrt()) @ axes.T
    common = {k: whitening @ (c.double() + c.double().T) @ whitening / 2 for k, c in enumerate(shared) if c is not None}
    rows = torch.empty(dim, dim, dtype=torch.float64)
    left = torch.eye(dim, dtype=torch.float64)
    part = torch.tensor([k for k, n in enumerate(widths) for _ in range(n)])
    if common:
        found = _parted(common, {k: widths[k] for k in common})
        for k, directions in found.items():
            # Any turn within a factor shares as much in sum; this one shares most in as few dimensions as possible.
            turn = torch.linalg.eigh(directions.T @ common[k] @ directions)[1].flip(1)
            rows[part == k] = (directions @ turn).T
            left = left - directions @ directions.T
    missing = torch.tensor([k not in common for k in part.tolist()])
    # A projection has the eigenvalues 0 and 1, in this order.
    rows[missing] = torch.linalg.eigh(left)[1][:, dim - int(missing.sum()) :].T
    weight: Tensor = rows @ whitening
    return weight


def _parted(common: dict[int, Tensor], widths: dict[int, int]) -> dict[int, Tensor]:
    """Return orthonormal directions (D, widths[k]) of each factor, by alternating ascent from each one's own best."""
    found: dict[int, Tensor] = {}
    directions: dict[int, Tensor] = {}
    shift: dict[int, float] = {}
    for k, matrix in common.items():
        values, vectors = torch.linalg.eigh(matrix)
        best = slice(len(values) - widths[k], None)
        found[k] = (vectors[:, best] * values[best].clamp_min(1e-6)).flip(1)
        # Shifted to be positive semidefinite, each step raises the sum.
        shift[k] = max(0.0, -float(values[0])) + 1e-6
    for _ in range(ITERATIONS):
        # The nearest orthonormal columns, weighted by what each of them shares.
        u, _, vt = torch.linalg.svd(torch.cat(list(found.values()), dim=1), full_matrices=False)
        parts = torch.split(u @ vt, list(widths.values()), dim=1)
        directions = dict(zip(found, parts, strict=True))
        found = {k: common[k] @ d + shift[k] * d for k, d in directions.items()}
    return directions
