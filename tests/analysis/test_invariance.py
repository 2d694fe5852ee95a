"""MSC eq. 19 against a slow NumPy rewrite and a model whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from linear_world import ALL, LEFT_OVER, MIXING, NOISE, OWN, D, flow_of, pipeline_of, world

from posthoc_inn.analysis import ConceptRelevance, concept_ceilings, explained_by_invariances, explained_share
from posthoc_inn.analysis.relevance import variance_shares
from posthoc_inn.errors import ShapeError
from posthoc_inn.report import findings


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
    assert set(result.to_dict()) >= {"floor", "above_floor", "value", "standard_error", "interval", "images", "samples"}
    assert "<table>" in result._repr_html_()


# ---- the floor


def test_the_floor_and_the_share_above_it_are_those_of_a_closed_form():
    flow, held_out = flow_of(MIXING, LEFT_OVER), world(3000, 5)
    encoded = held_out["mean"].tensor(), held_out["std"].tensor()
    found = explained_by_invariances(pipeline_of(flow), held_out["z"].tensor(), encoded=encoded, samples=60_000)
    noise, rest, all_of = D * NOISE**2, float(OWN.trace()), float(ALL.trace())
    assert abs(found.value - (rest + noise) / all_of) < 4 * found.standard_error
    assert abs(found.floor - noise / all_of) < 4 * found.floor_error
    # The same share of the encoder's mean alone, without its noise.
    assert abs(found.above_floor - rest / (all_of - noise)) < 4 * found.above_floor_error
    assert found.above_floor_error < 0.02
    assert found.above_floor_interval[0] < found.above_floor < found.above_floor_interval[1]


def latents_of_a_layer_that_keeps(share, images, seed, unused=44, used=20):
    """Means of deviation 1 in `used` dimensions, `share` of whose variance z fixes; noise of 0.1, and 1 elsewhere."""
    g = torch.Generator().manual_seed(seed)
    std = torch.cat([torch.full((used,), 0.1), torch.ones(unused)]).expand(images, -1)
    kept = torch.randn(images, used, generator=g) * share**0.5
    mean = torch.zeros(images, used + unused)
    mean[:, :used] = kept + (1 - share) ** 0.5 * torch.randn(images, used, generator=g)
    draws = torch.zeros(images, 20, used + unused)
    draws[..., :used] = kept[:, None] + (1 - share) ** 0.5 * torch.randn(images, 20, used, generator=g)
    return draws + std[:, None] * torch.randn(draws.shape, generator=g), (mean, std)


def test_a_layer_that_keeps_everything_is_at_the_floor_though_equation_19_says_most():
    latents, encoded = latents_of_a_layer_that_keeps(1.0, 400, 0)
    found = explained_share(latents, encoded)
    assert found.value == pytest.approx(0.69, abs=0.01)
    assert found.floor == pytest.approx((44 + 0.2) / (64 + 0.2), abs=0.01)
    assert abs(found.above_floor) < 4 * found.above_floor_error < 0.1
    told = findings({"explained_by_invariances": found.to_dict()})[0]
    assert told.value.startswith(f"{100 * max(0, found.above_floor):.1f} ")
    assert "less than half" in told.meaning
    assert "its floor (68." in told.meaning
    older = findings({"explained_by_invariances": {"value": 0.69, "standard_error": 0.01}})[0]
    assert "Here it is most" in older.meaning


def test_intervals_above_the_floor_hold_the_truth():
    held = 0
    for k in range(60):
        found = explained_share(*latents_of_a_layer_that_keeps(0.6, 30, k, unused=4, used=3))
        held += found.above_floor_interval[0] < 0.4 < found.above_floor_interval[1]
    assert 53 <= held <= 60


def test_latents_of_other_images_are_refused_and_without_any_there_is_no_floor():
    latents, (mean, std) = latents_of_a_layer_that_keeps(0.5, 30, 0)
    assert math.isnan(explained_share(latents).above_floor)
    assert explained_share(latents).to_dict()["floor"] is None
    with pytest.raises(ShapeError, match=r"two of \(30, 64\)"):
        explained_share(latents, (mean[:9], std[:9]))


class LinearFactors:
    """An e that is linear: factor 0 the first dimension, "a" the second, with as much noise as signal."""

    def joined(self, x):
        return x

    def part(self, name):
        return {"residual": slice(0, 1), "a": slice(1, 2)}[name]


def test_a_concepts_ceiling_is_what_the_encoders_noise_leaves():
    g = torch.Generator().manual_seed(0)
    mean = torch.randn(2000, 2, generator=g)
    std = torch.tensor([0.0, 1.0]).expand(2000, 2)
    half = mean[:200, None] * 0.5**0.5 + torch.randn(200, 50, 2, generator=g) * torch.tensor([0.5**0.5, 1.5**0.5])
    shares = [variance_shares(half[..., k : k + 1], name) for k, name in enumerate(("residual", "a"))]
    residual, a = concept_ceilings(LinearFactors(), (mean, std), ConceptRelevance(tuple(shares), 200, 50))
    assert residual.first_order.value == pytest.approx(1, abs=1e-6)
    assert a.first_order.value == pytest.approx(0.5, abs=0.1)
    assert a.total_effect.value == pytest.approx(a.first_order.value, abs=1e-6)  # nothing is not linear here
    # z fixes half of the variance of the mean: half of what is to be had, and a quarter of all.
    for own in (residual, a):
        assert own.of_reachable.value == pytest.approx(0.5, abs=0.12)
        assert own.of_reachable.interval[0] < 0.5 < own.of_reachable.interval[1]
    relevance = ConceptRelevance(tuple(shares), 200, 50).to_dict()
    told = findings({"concepts": {"relevance": relevance, "ceilings": [a.to_dict()]}})[0]
    assert "of that this layer has" in told.meaning
    assert "of that" not in findings({"concepts": {"relevance": relevance}})[0].meaning
