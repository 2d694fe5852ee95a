"""Fits the linear Gaussian t in closed form: ridge regression with a full residual covariance, from moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posthoc_inn.errors import DataError
from posthoc_inn.objectives import LOG_2PI

FOLDS = 4
"""Parts of the rows of which each is predicted from the others, to choose what is not estimated."""
MOST_COMPONENTS = 1024
"""Features that enter the regression; of more, the first principal components."""
BASIS_ROWS = 2048
"""Rows that the components are found from, at the most."""
BASIS_VALUES = 1 << 26
"""Values that those rows, and the components, may have in all."""
RIDGES = tuple(10.0 ** (k / 2) for k in range(-10, 7))
"""Strengths of the ridge tried, as multiples of the number of rows: features have a variance of about one."""
SHRINKAGES = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Shares of its diagonal that the residual covariance is tried with."""
FLAT = 1e-12
"""A latent that varies by less than this is only shifted, as in actnorm."""


@dataclass
class Moments:
    """Sums over rows, from which everything else follows, in float64.

    Attributes:
        count: Rows.
        x: Sum of the features, (P,).
        y: Sum of the latents, (D,).
        xx: Their products, (P, P).
        xy: (P, D).
        yy: (D, D), the encoder's own variance on its diagonal.
    """

    count: float
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def zeros(cls, features: int, dim: int) -> Moments:
        """Return the moments of no rows."""
        sizes = ((features,), (dim,), (features, features), (features, dim), (dim, dim))
        return cls(0.0, *(torch.zeros(*size, dtype=torch.float64) for size in sizes))

    def add(self, x: Tensor, y: Tensor, std: Tensor) -> None:
        """Add rows: features (B, P), the encoder's mean (B, D) and deviation (B, D)."""
        self.count += len(x)
        self.x += x.sum(dim=0)
        self.y += y.sum(dim=0)
        self.xx.addmm_(x.T, x)
        self.xy.addmm_(x.T, y)
        self.yy.addmm_(y.T, y)
        # z_bar = mean + std · noise, and the noise has nothing to do with z: its variance is known.
        self.yy.diagonal().add_(std.square().sum(dim=0))

    def _joined(self, other: Moments, sign: float) -> Moments:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Moments(*(a + sign * b for a, b in pairs))

    def __add__(self, other: Moments) -> Moments:
        return self._joined(other, 1.0)

    def __sub__(self, other: Moments) -> Moments:
        return self._joined(other, -1.0)

    def about(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums of products of what is left after `x` (P,) and `y` (D,) are subtracted."""
        n, sx, sy = self.count, self.x, self.y
        return (
            self.xx - torch.outer(sx, x) - torch.outer(x, sx) + n * torch.outer(x, x),
            self.xy - torch.outer(sx, y) - torch.outer(x, sy) + n * torch.outer(x, y),
            self.yy - torch.outer(sy, y) - torch.outer(y, sy) + n * torch.outer(y, y),
        )


class Regression:
    """Ridge regression on some rows for any strength, from one eigendecomposition.

    Args:
        rows: Their moments.
        others: Moments of rows that residuals are wanted for.
    """

    def __init__(self, rows: Moments, others: Moments | None = None) -> None:
        self.count = rows.count
        self.x, self.y = rows.x / rows.count, rows.y / rows.count
        xx, xy, _ = rows.about(self.x, self.y)
        self.values, self.vectors = torch.linalg.eigh(xx)
        self.values.clamp_(min=0)
        self.turned = self.vectors.T @ xy
        if others is not None:
            xx, xy, self.other_yy = others.about(self.x, self.y)
            self.other_xx, self.other_xy = self.vectors.T @ xx @ self.vectors, self.vectors.T @ xy
        self._residuals: tuple[float, Tensor] | None = None

    def _weights(self, ridge: float) -> Tensor:
        weights: Tensor = self.turned / (self.values + ridge * self.count).unsqueeze(1)
        return weights

    def line(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return what is expected where the features are 0, (D,), and the coefficients, (D, P)."""
        weight = (self.vectors @ self._weights(ridge)).T
        return self.y - weight @ self.x, weight

    def residuals(self, ridge: float) -> Tensor:
        """Return the sum of products of the other rows' residuals, (D, D); those of the last ridge are kept."""
        if self._residuals is None or self._residuals[0] != ridge:
            b = self._weights(ridge)
            cross = b.T @ self.other_xy
            self._residuals = ridge, self.other_yy - cross - cross.T + b.T @ (self.other_xx @ b)
        return self._residuals[1]


def nats(covariance: Tensor, products: Tensor, count: float) -> float:
    """Return the mean negative log-likelihood of residuals with these sums of products under a covariance (D, D)."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed):
        return math.inf
    spread = torch.cholesky_solve(products, factor).diagonal().sum() / count
    log_det = 2 * factor.diagonal().log().sum()
    return float(0.5 * (len(covariance) * LOG_2PI + log_det + spread))


def shrunk(covariance: Tensor, share: float) -> Tensor:
    """Return a covariance (D, D) moved by `share` towards its diagonal; what does not vary gets a variance of 1."""
    diagonal = covariance.diagonal()
    flat = diagonal <= FLAT
    out = (1 - share) * covariance
    out.diagonal().copy_(diagonal)
    out[flat] = 0
    out[:, flat] = 0
    out.diagonal()[flat] = 1
    return out


def _held_out_nats(parts: list[Tensor], counts: list[float], share: float) -> float:
    """Return nats of each fold's residuals under the covariance of those of all others, averaged over rows."""
    total, rows = sum(parts), sum(counts)
    each = [
        nats(shrunk((total - part) / (rows - count), share), part, count) * count
        for part, count in zip(parts, counts, strict=True)
    ]
    return sum(each) / rows


def _least(values: tuple[float, ...], score: Callable[[float], float]) -> float:
    """Return the value with the least score: every third is tried, then those around the best."""
    known = {k: score(values[k]) for k in range(1, len(values), 3)}
    best = min(known, key=known.__getitem__)
    for k in range(max(0, best - 2), min(len(values), best + 3)):
        if k not in known:
            known[k] = score(values[k])
    return values[min(known, key=known.__getitem__)]


@dataclass(frozen=True)
class LinearFit:
    """A fitted linear Gaussian model.

    Attributes:
        mean: Of the latents where the features are 0, (D,).
        weight: (D, P), on the features as they were given.
        scale: Cholesky factor of the residual covariance, (D, D).
        ridge: Strength of the ridge, as a multiple of the rows.
        shrinkage: Share of its diagonal in the residual covariance.
        nats: Negative log-likelihood of rows that each fold left out, or of rows apart.
        left_out: For each fold, mean and weight of the regression on all others; row i is in fold i % FOLDS.
    """

    mean: Tensor
    weight: Tensor
    scale: Tensor
    ridge: float
    shrinkage: float
    nats: float
    left_out: tuple[tuple[Tensor, Tensor], ...] = ()


def basis_sizes(features: int) -> tuple[int, int]:
    """Return how many of so many features enter the regression, and from how many rows they are found.

    >>> basis_sizes(512), basis_sizes(25_088), basis_sizes(1_000_000)
    ((512, 2048), (1024, 2048), (33, 67))
    """
    rows = max(4, min(BASIS_ROWS, BASIS_VALUES // features))
    return (features if features <= MOST_COMPONENTS else min(MOST_COMPONENTS, rows // 2)), rows


def components(features: Tensor, most: int) -> Tensor | None:
    """Return the first principal directions (K, P) of features (B, P), orthonormal; None where P is no more than K."""
    if features.shape[1] <= most:
        return None
    x = (features - features.mean(dim=0)).float()
    values, vectors = torch.linalg.eigh((x @ x.T).double())
    kept = min(most, len(x) // 2, int((values > 1e-6 * values[-1]).sum()))
    # Of rows that are all alike one direction is left, whatever it is.
    kept = max(1, kept)
    directions = vectors[:, -kept:].T.to(x.dtype) @ x
    basis: Tensor = torch.linalg.qr(directions.double().T)[0].T.float()
    return basis


@dataclass(frozen=True)
class _Judge:
    """Scores choices on rows apart: nats of their residuals under a covariance that is scaled to suit them best.

    Augmented or painted copies of one image lie in all folds, so that the folds take far too little for what is left;
    rows apart have no copies among them.

    Attributes:
        regression: On all rows, with residuals of those apart.
        count: How many those are.
    """

    regression: Regression
    count: float

    def scale(self, covariance: Tensor, ridge: float) -> float:
        """Return the factor that makes the rows apart likeliest under a multiple of `covariance`."""
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if bool(failed):
            return 1.0
        spread = torch.cholesky_solve(self.regression.residuals(ridge), factor).diagonal().sum() / self.count
        return max(float(spread) / len(covariance), 1e-6)

    def nats(self, covariance: Tensor, ridge: float) -> float:
        """Return the nats under the best multiple."""
        scaled = covariance * self.scale(covariance, ridge)
        return nats(scaled, self.regression.residuals(ridge), self.count)


def fit_moments(folds: list[Moments], judge: Moments | None = None) -> LinearFit:
    """Fit to the moments of some folds of the rows; strength of ridge and shrinkage are what the folds say.

    The residual covariance is that of rows which the regression has not seen: with few rows and many features, that of
    the rows it was fitted to would be far too small.

    Args:
        folds: Moments of the parts.
        judge: Of rows apart, which choose instead of the folds, and say how large the residual covariance is in all.

    Raises:
        DataError: There are fewer than two folds with rows.
    """
    folds = [fold for fold in folds if fold.count]
    if len(folds) < 2:
        raise DataError(f"The linear t needs at least 2 rows, got {int(sum(f.count for f in folds))}.")
    rows = folds[0]
    for fold in folds[1:]:
        rows = rows + fold
    counts = [fold.count for fold in folds]
    regressions = [Regression(rows - fold, fold) for fold in folds]

    def residuals(ridge: float) -> list[Tensor]:
        return [regression.residuals(ridge) for regression in regressions]

    def covariance_of(parts: list[Tensor], share: float) -> Tensor:
        return shrunk(sum(parts, torch.zeros_like(rows.yy)) / rows.count, share)

    apart = None if judge is None or not judge.count else _Judge(Regression(rows, judge), judge.count)

    def score(parts: list[Tensor], ridge: float, share: float) -> float:
        if apart is not None:
            return apart.nats(covariance_of(parts, share), ridge)
        return _held_out_nats(parts, counts, share)

    def best_share(parts: list[Tensor], ridge: float) -> float:
        return _least(SHRINKAGES, lambda value: score(parts, ridge, value))

    def least_nats(ridge: float) -> float:
        # With a share of its own: latents that all but determine each other bear no shrinkage, whatever the ridge.
        parts = residuals(ridge)
        return score(parts, ridge, best_share(parts, ridge))

    ridge = _least(RIDGES, least_nats)
    parts = residuals(ridge)
    share = best_share(parts, ridge)
    covariance = covariance_of(parts, share)
    if apart is not None:
        covariance = covariance * apart.scale(covariance, ridge)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed):  # rounding, where latents are all but functions of each other
        share = max(share, 0.01)
        factor = torch.linalg.cholesky(shrunk(covariance, share))
    mean, weight = Regression(rows).line(ridge)
    left_out = tuple(regression.line(ridge) for regression in regressions)
    return LinearFit(mean, weight, factor, ridge, share, score(parts, ridge, share), left_out)


Batches = Iterable[tuple[Tensor, Tensor, Tensor]]
"""Features (B, P), mean (B, D) and deviation (B, D) of the latents."""


def fit_rows(batches: Batches, some: Tensor, apart: Batches = ()) -> LinearFit:
    """Fit to rows in one pass: memory does not grow with their number.

    Args:
        batches: Features (B, P), mean (B, D) and deviation (B, D) of the latents.
        some: Features of some rows, (B, P), to find the principal components from where there are many.
        apart: Rows that choose what is not estimated, instead of folds of the others.

    Raises:
        DataError: There are fewer than 2 rows, or values that are not finite.
    """
    basis = components(some, basis_sizes(some.shape[1])[0])
    folds: list[Moments] = []
    seen = 0
    for x, mean, std in _checked(batches, basis):
        if not folds:
            folds = [Moments.zeros(x.shape[1], mean.shape[1]) for _ in range(FOLDS)]
        place = (torch.arange(len(x)) + seen) % FOLDS
        for k, fold in enumerate(folds):
            here = place == k
            fold.add(x[here], mean[here], std[here])
        seen += len(x)
    judge = None
    for x, mean, std in _checked(apart, basis):
        judge = judge or Moments.zeros(x.shape[1], mean.shape[1])
        judge.add(x, mean, std)
    found = fit_moments(folds, judge)
    if basis is None:
        return found
    wide = basis.double()
    left_out = tuple((mean, weight @ wide) for mean, weight in found.left_out)
    return replace(found, weight=found.weight @ wide, left_out=left_out)


def _checked(batches: Batches, basis: Tensor | None) -> Batches:
    """Yield the rows in float64, their features in the basis."""
    for x, mean, std in batches:
        if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise DataError("Latents hold NaN or infinity; look at the autoencoder.")
        x = x.double() if basis is None else (x.float() @ basis.T).double()
        yield x, mean.double(), std.double()
