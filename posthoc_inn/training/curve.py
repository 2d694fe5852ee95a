"""What training longer would gain, from the held-out curve of a run whose learning rate falls to the end.

The end of a cosine improves every run: lower rates take away the noise of the steps. That says nothing about more
steps. So the curve is taken as a sum of two parts, progress and noise, as in "Scaling Law with Learning Rate
Annealing" (Tissue, Wang and Wang 2024, arXiv:2408.11029): loss = floor + A f(S) + C lr, where S is the sum of all
learning rates so far, and f falls. The same schedule over twice the steps ends at 2 S and at the same learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import nnls

LEAST_LOOKS = 5
"""Looks at held-out data that a curve needs: its parts have four numbers."""
POWERS = (0.25, 0.5, 1.0, 2.0, 4.0)
RATES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Shapes of progress: powers of S, and exponentials with these rates, S being 1 at the end."""

Shape = Callable[[np.ndarray], np.ndarray]


def gain_of_doubling(steps: Sequence[float], rates: Sequence[float], losses: Sequence[float]) -> float:
    """Return by how much the last loss is expected to fall if the run is made anew with twice the steps.

    Each shape of progress is fitted by least squares, late looks weighted more; what they predict is averaged by how
    well they fit (Akaike weights).

    Args:
        steps: Step of each look at held-out data, ascending.
        rates: Learning rate at each look.
        losses: Held-out loss at each look.

    Returns:
        The gain in the losses' unit, 0 or more; nan where there are fewer than `LEAST_LOOKS` looks or no learning rate.

    >>> S = np.arange(1, 11) / 10
    >>> round(gain_of_doubling(S * 1000, np.ones(10), 5 + 2 / S), 2)
    1.0
    """
    s, lr, y = (np.asarray(values, dtype=np.float64) for values in (steps, rates, losses))
    # A look before the first step tells nothing of progress, and at S = 0 powers have no value.
    s, lr, y = (values[s > 0] for values in (s, lr, y))
    if len(s) < LEAST_LOOKS or not np.isfinite(y).all() or lr.max() <= 0:
        return math.nan
    lr = lr / lr.max()
    parts = np.concatenate([[s[0] * lr[0]], np.diff(s) * (lr[1:] + lr[:-1]) / 2])
    progress = parts.cumsum() / parts.sum()
    weight = progress.copy()
    if len(s) > 7:
        weight[0] = 0.0  # rates rise at first: how far the run had come by then is not known well
    shapes: list[Shape] = [lambda x, a=a: x**-a for a in POWERS]  # type: ignore[misc]
    shapes += [lambda x, k=k: np.exp(-k * x) for k in RATES]  # type: ignore[misc]
    ends = np.array([1.0, 2.0])
    gains, errors = [], []
    for shape in shapes:
        one = np.ones_like(progress)
        # The floor may have either sign, the other parts only fall.
        terms = np.stack([one, -one, shape(progress), lr], axis=1)
        found, error = nnls(terms * weight[:, None], y * weight)
        now, then = shape(ends)
        gains.append(found[2] * (now - then))
        errors.append(error**2)
    # What is left below a ten thousandth of the curve's own spread is not worth telling shapes by.
    least = max(1e-8 * float(((y - y.mean()) ** 2).sum()), 1e-30)
    weights = (np.array(errors) + least) ** (-len(s) / 2)
    return float((weights / weights.max() * gains).sum() / (weights / weights.max()).sum())
