"""Shares by pairs: against a slow rewrite, worlds whose truth is known, and how often intervals hold it."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from posthoc_inn.analysis.factor_quality import probe
from posthoc_inn.analysis.pair_covariance import covariance_ratio, pair_weights, slope_of
from posthoc_inn.analysis.pair_shares import PairedRows, pair_shares, paired_rows
from posthoc_inn.analysis.relevance import variance_shares
from posthoc_inn.concepts import RANDOM, AttributeSource, ConceptModel, GivenPairs
from posthoc_inn.config import FlowConfig
from posthoc_inn.errors import ConfigError, DataError, ShapeError
from posthoc_inn.flows import FactorFlow

# ---- the estimator


def test_the_ratio_is_the_definition_with_products_of_means_over_different_images():
    rng = np.random.default_rng(0)
    n, pairs = 12, 40
    f, e = rng.normal(size=(2, n, 3))
    images = np.array([0, 0, *range(1, n - 1)])  # the first two rows are draws of one image
    a = rng.integers(0, n, pairs)
    b = (a + rng.integers(1, n, pairs)) % n
    shared = torch.zeros(pairs, 2, dtype=torch.bool)
    shared[:, 1] = True
    weights = pair_weights(torch.tensor(a), torch.tensor(b), shared, 1, torch.tensor(images))
    kept = [(i, j) for i, j in zip(a, b, strict=True) if images[i] != images[j]]
    counts = np.bincount(np.array(kept).ravel(), minlength=n) / (2 * len(kept))

    def covariance(x, y):
        x, y = x - counts @ x, y - counts @ y
        product = sum(x[i] @ y[j] + x[j] @ y[i] for i, j in kept) / (2 * len(kept))
        means = total = 0.0
        for i in range(n):
            for j in range(n):
                if images[i] != images[j]:
                    means += counts[i] * counts[j] * (x[i] @ y[j])
                    total += counts[i] * counts[j]
        return product - means / total

    found = covariance_ratio(torch.tensor(f), torch.tensor(e), weights)
    assert found.lower == pytest.approx(covariance(e, e))
    assert found.value == pytest.approx(covariance(f, e) / covariance(e, e))
    # Means do not matter.
    moved = covariance_ratio(torch.tensor(f + 7), torch.tensor(e - 3), weights)
    assert moved.value == pytest.approx(found.value)


def drawn_world(n, seed, share, *, classes=3, junk=2, common=1.0):
    """Return factor values e, what z says of them (f), and pairs that share a category; z determines `share` of it."""
    rng = np.random.default_rng(seed)
    value = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=(classes, 2))
    centres -= centres.mean(0)
    centres *= common / np.sqrt((centres**2).sum(1).mean())
    own = 0.5 * rng.normal(size=(n, 2))
    e = np.concatenate([centres[value] + own, rng.normal(size=(n, junk))], axis=1)
    # What z says beside it: of an image alone, and of junk.
    f = np.concatenate([share * centres[value] + 0.7 * own + 0.3 * rng.normal(size=(n, 2)), 0.5 * e[:, 2:]], axis=1)
    a, b, shared = AttributeSource({"c": torch.tensor(value)}).pairs(12 * n, seed=seed)
    return torch.tensor(f), torch.tensor(e), pair_weights(a, b, shared, 1, torch.arange(n))


@pytest.mark.parametrize(("images", "share"), [(40, 0.4), (150, 0.4), (150, 1.0), (150, 0.0)])
def test_95_percent_intervals_hold_the_truth_in_95_percent(images, share):
    found = [covariance_ratio(*drawn_world(images, seed, share)) for seed in range(150)]
    told = [r for r in found if r.is_told_from_zero]
    assert len(told) > 100
    assert 0.87 <= np.mean([r.interval[0] <= share <= r.interval[1] for r in told]) <= 0.995
    assert 0.87 <= np.mean([r.lower_interval[0] <= 1 <= r.lower_interval[1] for r in found]) <= 0.995
    assert np.mean([r.value for r in told]) == pytest.approx(share, abs=0.05)
    # Errors are about what estimates scatter by.
    scatter = np.std([r.value for r in told])
    assert np.median([r.error for r in told]) == pytest.approx(scatter, rel=0.3)


def test_what_pairs_do_not_share_is_not_told_from_nothing_but_by_chance():
    found = [covariance_ratio(*drawn_world(100, seed, 0.4, common=0.0)) for seed in range(150)]
    assert np.mean([r.is_told_from_zero for r in found]) <= 0.05
    assert all(math.isnan(r.interval[0]) for r in found if not r.is_told_from_zero)
    assert np.mean([r.lower for r in found]) == pytest.approx(0, abs=0.02)


def test_draws_of_an_image_are_one_image():
    f, e, _ = drawn_world(60, 0, 0.4)
    value = torch.tensor(np.random.default_rng(0).integers(0, 3, 60))
    copies = torch.arange(60).repeat(4)
    a, b, shared = AttributeSource({"c": value[copies]}).pairs(3000, seed=1)
    known = covariance_ratio(f[copies], e[copies], pair_weights(a, b, shared, 1, copies))
    taken_apart = covariance_ratio(f[copies], e[copies], pair_weights(a, b, shared, 1, torch.arange(240)))
    once = covariance_ratio(*drawn_world(60, 0, 0.4))
    assert known.error == pytest.approx(once.error, rel=0.25)
    assert taken_apart.error < 0.7 * once.error
    # Pairs of an image with itself share everything.
    assert known.lower == pytest.approx(once.lower, rel=0.25)


def test_concepts_that_come_together_are_told_apart_by_regression():
    """Two binary concepts that are the same in 80 % of images; pairs are marked with all that they agree in."""
    rng = np.random.default_rng(3)
    n = 2000
    first = rng.integers(0, 2, n)
    second = np.where(rng.random(n) < 0.8, first, 1 - first)
    signs = np.stack([2 * first - 1, 2 * second - 1], axis=1)
    # A factor that holds both, and a z that says all of the first and nothing of the second.
    e = torch.tensor(signs + 0.3 * rng.normal(size=(n, 2)))
    f = torch.tensor(np.stack([signs[:, 0], np.zeros(n)], axis=1) * 1.0)
    source = AttributeSource({"first": torch.tensor(first), "second": torch.tensor(second)}, agree="all")
    a, b, shared = source.pairs(20_000, seed=0)
    found = [covariance_ratio(f, e, pair_weights(a, b, shared, k, torch.arange(n))) for k in (1, 2)]
    assert found[0].value > 0.85
    assert found[1].value < 0.15


# ---- the whole


class Straight:
    """A t whose samples are A z + B v, around an e that leaves latents as they are."""

    latent_dim = 6
    extractor = SimpleNamespace(layer="layer")

    def __init__(self, a, b):
        self.a, self.b = a, b

    def context(self, z):
        return z

    def sample_latents(self, context, v):
        return context[:, None] @ self.a.T + v.expand(len(context), *v.shape[-2:]) @ self.b.T


def identity_e(names=("digit", "coin", RANDOM), sizes=(2, 2, 1, 1)):
    flow = FactorFlow(FlowConfig(dim=sum(sizes), blocks=1, width=4), sizes, aligned=True)
    flow.align(torch.zeros(sum(sizes)), torch.eye(sum(sizes)))
    concepts = ConceptModel(flow.eval(), names)
    concepts.set_moments(torch.tensor([0, 0, 0.5, 0.0, 0.9, 0.0]), torch.ones(6))
    return concepts


def world(n=1500, reliability=0.4, seed=0):
    """z tells a number up to noise; E[number given z] has `reliability` of its variance. The coin is nowhere."""
    g = torch.Generator().manual_seed(seed)
    number = torch.randn(n, generator=g)
    coin = torch.randint(2, (n,), generator=g)
    told = number + (1 / reliability - 1) ** 0.5 * torch.randn(n, generator=g)
    junk = torch.randn(n, generator=g)
    z = torch.stack([told * reliability**0.5, junk], dim=1)  # N(0, 1)
    noise = torch.randn(n, 6, generator=g)
    mean = noise.clone()
    # digit: a dimension of which half the variance is the number, and one of junk that z holds wholly.
    mean[:, 2] = 0.5**0.5 * number + 0.5**0.5 * noise[:, 2]
    mean[:, 3] = junk
    # t, exactly: E[number given z] = reliability**0.5 z_0, the rest from v.
    a = torch.zeros(6, 2)
    a[2, 0], a[3, 1] = (0.5 * reliability) ** 0.5, 1.0
    b = torch.eye(6)
    b[2, 2], b[3, 3] = (1 - 0.5 * reliability) ** 0.5, 0.0
    return Straight(a, b), z, mean, AttributeSource({"digit": number.double(), "coin": coin}, neighbors=4)


def measured(n=1500, reliability=0.4, seed=0, **more):
    pipeline, z, mean, source = world(n, reliability, seed)
    concepts = identity_e()
    rows = paired_rows(source, concepts.names, n, seed=seed)
    i = rows.index
    return pair_shares(pipeline, concepts, rows, z[i], mean[i], torch.full_like(mean[i], 0.01), seed=seed, **more)


@pytest.mark.parametrize("reliability", [0.4, 1.0])
def test_the_share_is_what_z_determines_of_the_concept_and_junk_drops_out(reliability):
    found = measured(reliability=reliability)
    digit = found["digit"]
    assert digit.is_learned
    assert digit.common == pytest.approx(0.5, abs=0.06)
    assert digit.value == pytest.approx(reliability, abs=max(0.05, 3 * digit.standard_error))
    assert digit.interval[0] < reliability < digit.interval[1]
    assert digit.quality.holding == 1
    assert digit.quality.correlations == pytest.approx((0.5, 0), abs=0.08)
    # MSC eq. 20 is about the whole factor: half of it is junk that z holds.
    pipeline, z, _, _ = world(1500, reliability)
    v = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    whole = variance_shares(pipeline.sample_latents(z, v[None])[..., 2:4])
    assert whole.first_order.value == pytest.approx((0.5 * reliability + 1) / 2, abs=0.08)


@pytest.mark.parametrize("factor", [1.6, 0.6])
def test_a_t_whose_samples_vary_too_much_with_z_or_too_little_is_scaled(factor):
    pipeline, z, mean, source = world()
    pipeline.a = pipeline.a * factor
    concepts = identity_e()
    rows = paired_rows(source, concepts.names, 1500)
    i = rows.index
    digit = pair_shares(pipeline, concepts, rows, z[i], mean[i], torch.full_like(mean[i], 0.01))["digit"]
    assert digit.slope == pytest.approx(1 / factor, rel=0.12)
    assert digit.value == pytest.approx(0.4, abs=max(0.05, 3 * digit.standard_error))
    assert digit.interval[0] < 0.4 < digit.interval[1]
    assert digit.unscaled == pytest.approx(0.4 * factor, abs=0.1)


def test_the_error_of_the_slope_counts():
    """A share of 0.4 from an f that is half as large as it should be, in many worlds of 60 images."""
    found = []
    for seed in range(120):
        g = torch.Generator().manual_seed(seed)
        value = torch.arange(60) % 3
        centre = torch.tensor([-1.0, 0.0, 1.0])[value] * 1.5**0.5
        told = centre + 1.5**0.5 * torch.randn(60, generator=g)  # E[centre given told] is 0.4 told, if both were normal
        own = torch.randn(60, generator=g)
        e = (centre + own)[:, None]
        halves = tuple((0.2 * told + 0.1 * torch.randn(60, generator=g))[:, None] for _ in range(2))
        a, b, shared = AttributeSource({"c": value}).pairs(800, seed=seed)
        weights = pair_weights(a, b, shared, 1, torch.arange(60))
        slope = slope_of(halves, e, torch.ones(1), torch.arange(60))
        found.append(covariance_ratio(sum(halves) / 2, e, weights, slope))
    assert 0.87 <= np.mean([r.interval[0] <= 0.4 <= r.interval[1] for r in found]) <= 0.995
    assert np.median([r.value for r in found]) == pytest.approx(0.4, abs=0.04)


def test_a_share_above_all_is_said_to_be_one():
    pipeline, z, mean, source = world()
    concepts = identity_e()
    rows = paired_rows(source, concepts.names, 1500)
    i = rows.index
    found = pair_shares(pipeline, concepts, rows, z[i], mean[i], torch.full_like(mean[i], 0.01))
    assert "Above 100 %" not in found.caption
    digit = dataclasses.replace(found["digit"], value=1.04, interval=(1.02, 1.06))
    over = dataclasses.replace(found, concepts=(digit, *found.concepts[1:]))
    assert "Above 100 % (digit): samples show e the concept more clearly" in over.caption


def test_a_coin_that_is_not_in_the_image_is_not_learned_and_neither_is_the_random_concept():
    found = measured()
    for name in ("coin", RANDOM):
        assert not found[name].is_learned
        assert math.isnan(found[name].value)
        assert found[name].note
        assert found[name].quality.holding == 0
    # e assumes a correlation of 0.9 that is not there: its likelihood suffers.
    assert found["coin"].quality.nats < -0.5
    assert found["digit"].quality.nats == pytest.approx(-0.5 * math.log(1 - 0.25), abs=0.06)
    assert "Not learned by e: coin" in found.caption
    assert "not learned by e" in [text.get_text() for text in found.figure().axes[0].texts]
    assert found.to_dict()["concepts"][1]["value"] is None


def test_probes_tell_a_concept_from_its_own_factor_and_not_from_others():
    found = measured()
    digit, coin = found["digit"].quality.probe, found["coin"].quality.probe
    assert digit.measure == "r2"
    assert digit.own == pytest.approx(0.5, abs=0.08)
    assert digit.others < 0.05
    assert coin.measure == "accuracy"
    assert coin.own == pytest.approx(0.5, abs=0.07)
    assert 0.5 <= coin.chance < 0.55
    # Rows of one image stay in one fold: nothing can be learned by heart.
    x = torch.randn(100, 80, generator=torch.Generator().manual_seed(0)).repeat(5, 1)
    labels = torch.randint(2, (100,), generator=torch.Generator().manual_seed(1)).repeat(5)
    assert probe(x, slice(0, 70), labels, torch.arange(100).repeat(5)).own < 0.7 < probe(
        x, slice(0, 70), labels, torch.randperm(500)
    ).own  # fmt: skip
    assert probe(x, slice(0, 70), torch.full((500,), -1), torch.arange(500)) is None


def test_pairs_that_only_differ_tell_nothing():
    concepts = identity_e(("digit",), (2, 4))
    source = GivenPairs({}, {"digit": torch.arange(200).reshape(-1, 2)})
    rows = paired_rows(source, concepts.names, 200)
    x = torch.randn(len(rows.index), 6)
    pipeline = Straight(torch.zeros(6, 2), torch.eye(6))
    found = pair_shares(pipeline, concepts, rows, x[:, :2], x, torch.ones_like(x), are_held_out=False)
    assert "differ in it alone" in found["digit"].note
    assert not found["digit"].is_learned
    assert "training images" in found.caption


def test_pairs_are_drawn_from_some_images_where_there_are_many():
    labels = torch.arange(3000) % 3
    rows = paired_rows(AttributeSource({"a": labels}), ("a",), 3000, limit=100)
    assert len(rows.index) <= 100
    assert torch.equal(labels[rows.index[rows.a]], labels[rows.index[rows.b]])
    assert torch.equal(labels[rows.index], rows.values["a"])
    given = GivenPairs({"a": torch.stack([torch.arange(3000), torch.arange(3000).roll(1)], dim=1)})
    some = paired_rows(given, ("a",), 3000, limit=100)
    assert 2 <= len(some.index) <= 100
    assert isinstance(some, PairedRows)


def test_what_does_not_fit_is_refused():
    pipeline, z, mean, source = world(50)
    concepts = identity_e()
    with pytest.raises(DataError, match=r"e knows the concepts digit, coin, these pairs are of coin"):
        paired_rows(AttributeSource({"coin": source.values["coin"]}), concepts.names, 50)
    rows = paired_rows(source, concepts.names, 50)
    with pytest.raises(ShapeError, match="rows with pairs, 3 z"):
        pair_shares(pipeline, concepts, rows, z[:3], mean, mean)
    over_z = ConceptModel(concepts.flow, concepts.names, space="z")
    with pytest.raises(ConfigError, match="over the autoencoder's latents"):
        pair_shares(pipeline, over_z, rows, z, mean, mean)
