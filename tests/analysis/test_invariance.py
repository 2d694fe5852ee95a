"""MSC eq. 19 against a slow NumPy rewrite and a model whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from posthoc_inn.analysis import explained_share
from posthoc_inn.errors import ShapeError


def grouped(images, draws, share, dim=6, seed=0):
    """z_bar = sqrt(share) v + sqrt(1 - share) z with v, z ~ N(0, 1): v explains `share` of the variance."""
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(images, draws, dim, generator=g, dtype=torch.float64)
    z = torch.randn(images, 1, dim, generator=g, dtype=torch.float64)
    return share**0.5 * v + (1 - share) ** 0.5 * z


def slow_eq_19(latents):
    """Equation 19 as printed: group variances over the pooled variance, dimension by dimension, then summed."""
    x = latents.numpy()
    b, n, dim = x.shape
    within = np.zeros(b)
    for i in range(b):
        for d in range(dim):
            within[i] += np.sum((x[i, :, d] - x[i, :, d].mean()) ** 2) / (n - 1)
    between = 0.0
    for d in range(dim):
        means = np.array([x[i, :, d].mean() for i in range(b)])
        between += np.sum((means - means.mean()) ** 2) / (b - 1) - np.mean(
            [np.var(x[i, :, d], ddof=1) / n for i in range(b)]
        )
    return within.mean() / (within.mean() + between)


def test_it_equals_a_slow_rewrite_of_the_equation():
    latents = grouped(30, 7, 0.3)
    assert explained_share(latents).value == pytest.approx(slow_eq_19(latents), rel=1e-12)


def test_it_is_the_pooled_variance_ratio_when_groups_are_large():
    latents = grouped(400, 200, 0.4)
    pooled = latents.reshape(-1, latents.shape[2]).var(dim=0).sum()
    ratio = float(latents.var(dim=1).sum(dim=1).mean() / pooled)
    assert explained_share(latents).value == pytest.approx(ratio, abs=2e-3)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_linear_gaussian_model_gives_its_known_share(share):
    result = explained_share(grouped(2000, 5, share))
    assert abs(result.value - share) < 4 * result.standard_error
    assert result.interval[0] < result.value < result.interval[1]


def test_the_standard_error_is_the_spread_over_repetitions():
    results = [explained_share(grouped(200, 5, 0.5, seed=k)) for k in range(60)]
    spread = np.std([r.value for r in results], ddof=1)
    claimed = np.mean([r.standard_error for r in results])
    assert 0.75 < claimed / spread < 1.33


@pytest.mark.parametrize("images", [10, 20, 60])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_95_percent_intervals_hold_the_truth_in_95_percent(images, share):
    """MSC eq. 19 of a linear-Gaussian model: 400 fits, whose coverage has a standard error of 1.1 %."""
    results = [explained_share(grouped(images, 10, share, seed=k)).interval for k in range(400)]
    covered = np.mean([low <= share <= high for low, high in results])
    assert 0.92 <= covered <= 0.985


def test_too_few_images_get_no_interval():
    result = explained_share(grouped(9, 10, 0.5))
    assert math.isnan(result.interval[0])
    assert result.standard_error > 0
    assert result.to_dict()["interval"] == [None, None]


@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 3), (5, 1, 3)])
def test_too_few_images_or_draws_are_refused(shape):
    with pytest.raises(ShapeError, match="at least 2"):
        explained_share(torch.zeros(shape))


def test_results_become_plain_data_and_a_table():
    result = explained_share(grouped(20, 4, 0.5))
    assert set(result.to_dict()) == {"value", "standard_error", "interval", "images", "samples"}
    assert "<table>" in result._repr_html_()
