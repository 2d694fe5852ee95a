"""How many dimensions each factor of e gets (IIN eq. 11, in the form of the public code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from posthoc_inn.errors import ConfigError, ShapeError


def shared_score(a: Tensor, b: Tensor) -> float:
    """Return how much of the latents' variance the two images of a pair have in common, in [-1, 1].

    Σ_i cov(x^a_i, x^b_i) / Σ_i var(x_i). The paper (IIN eq. 11) adds up correlations of dimensions, scores in [-D, D]
    which saturate the softmax; this is the normalised form that gives its published sizes.

    Args:
        a: Latents of the first images, (n, D).
        b: Those of the second ones, (n, D).

    >>> x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    >>> other = torch.randn(4000, 1, generator=torch.Generator().manual_seed(1))
    >>> round(shared_score(x, torch.cat([x[:, :1], other], dim=1)), 1)  # one of two dimensions is shared
    0.5
    """
    if a.shape != b.shape or a.ndim != 2 or len(a) < 2:
        raise ShapeError(
            f"Pairs of latents must be two (n, D), n at least 2, got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    a, b = a.double(), b.double()
    both = torch.cat([a, b])
    mean, total = both.mean(dim=0), both.var(dim=0, unbiased=False).sum()
    covariance = ((a - mean) * (b - mean)).mean(dim=0).sum()
    return float((covariance / total.clamp_min(1e-30)).clamp(-1, 1))


def factor_sizes(scores: Mapping[str, float] | Sequence[float], dim: int) -> tuple[int, ...]:
    """Return each factor's width, residual first: softmax over (1, scores), times `dim`; the residual gets the rest.

    Args:
        scores: Score of each concept, in [-1, 1]; the residual's is 1.
        dim: D.

    Raises:
        ConfigError: There are more factors than dimensions.

    >>> factor_sizes([0.0015, 0.09, 0.18], 64)
    (28, 11, 12, 13)
    """
    values = list(scores.values()) if isinstance(scores, Mapping) else list(scores)
    if len(values) + 1 > dim:
        raise ConfigError(f"{len(values)} concepts and the residual need as many dimensions at least; there are {dim}.")
    shares = torch.tensor([1.0, *values], dtype=torch.float64).softmax(dim=0)
    sizes = [max(1, round(share)) for share in (shares * dim).tolist()]
    while sum(sizes[1:]) > dim - 1:
        sizes[sizes.index(max(sizes[1:]), 1)] -= 1
    return (dim - sum(sizes[1:]), *sizes[1:])
