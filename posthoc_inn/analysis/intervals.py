"""Intervals of shares: jackknife errors on the logit scale, with Student's t for the few images there may be."""

from __future__ import annotations

import math

from scipy import stats

LEVEL = 0.95
LEAST = 10
"""Images (or draws) below which no interval is given: the error itself is too uncertain there."""


def share_interval(value: float, error: float, freedom: float) -> tuple[float, float]:
    """Return the 95 % interval of a share that lies in (0, 1).

    On the logit scale the errors of shares are nearly normal however near to 0 or 1 they are, and the interval stays
    inside. An estimate outside (0, 1), as an unbiased one may be, gets the plain interval.

    Args:
        value: The estimate.
        error: Its standard error.
        freedom: Degrees of freedom of that error.

    >>> low, high = share_interval(0.9, 0.05, 19)
    >>> round(low, 2), round(high, 2)
    (0.74, 0.97)
    """
    if not (math.isfinite(value) and math.isfinite(error)):
        return math.nan, math.nan
    width = float(stats.t.ppf((1 + LEVEL) / 2, max(freedom, 1.0))) * error
    if not 0 < value < 1:
        return value - width, value + width
    middle, reach = math.log(value / (1 - value)), width / (value * (1 - value))
    return _logistic(middle - reach), _logistic(middle + reach)


def mean_interval(value: float, error: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `count` shares, an image each; nan for fewer than `LEAST`."""
    return share_interval(value, error, count - 1) if count >= LEAST else (math.nan, math.nan)


def joint_freedom(variances: tuple[float, float], counts: tuple[int, int]) -> float:
    """Return the degrees of freedom of the sum of two independent variances (Satterthwaite).

    Args:
        variances: Of the estimate, over images and over draws.
        counts: How many of each there are.

    >>> joint_freedom((1.0, 0.0), (11, 5))
    10.0
    """
    total = sum(variances)
    if total <= 0:
        return float(min(counts) - 1)
    return total**2 / sum(v**2 / (n - 1) for v, n in zip(variances, counts, strict=True))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
