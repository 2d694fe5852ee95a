"""Agreement beside chance, kappa and its interval, against scikit-learn and simulations whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from posthoc_inn.analysis.faithfulness import compare_predictions
from posthoc_inn.analysis.intervals import agreement_interval


def said(rng, own, samples, classes, kept):
    """Predictions for samples: the image's in a share `kept` that differs between images, else any class."""
    keep = rng.random((len(own), samples)) < kept[:, None]
    return torch.as_tensor(np.where(keep, own[:, None], rng.integers(0, classes, keep.shape)).flatten())


def skewed(rng, n):
    return rng.choice(4, n, p=[0.6, 0.2, 0.15, 0.05])


def test_kappa_is_that_of_scikit_learn_and_chance_what_it_subtracts():
    rng = np.random.default_rng(0)
    own = skewed(rng, 300)
    theirs = said(rng, own, 5, 4, np.full(300, 0.7))
    found = compare_predictions(torch.as_tensor(own), theirs, 5)
    assert found["kappa"] == pytest.approx(cohen_kappa_score(np.repeat(own, 5), theirs.numpy()))
    by_class = zip(np.bincount(own), np.bincount(theirs), strict=True)
    assert found["agreement_chance"] == pytest.approx(sum(a / 300 * b / 1500 for a, b in by_class))


def test_samples_that_know_nothing_of_their_image_agree_by_chance():
    rng = np.random.default_rng(1)
    found = [compare_predictions(*(torch.as_tensor(skewed(rng, k * 400)) for k in (1, 8)), 8) for _ in range(60)]
    assert np.mean([f["agreement"] for f in found]) == pytest.approx(0.6**2 + 0.2**2 + 0.15**2 + 0.05**2, abs=0.01)
    kappas = np.array([f["kappa"] for f in found])
    assert abs(kappas.mean()) < 3 * kappas.std() / math.sqrt(60)
    assert sum(abs(f["kappa"]) < 2 * f["kappa_error"] for f in found) > 50


def test_the_error_of_kappa_is_how_much_it_varies():
    rng = np.random.default_rng(2)
    found = []
    for _ in range(200):
        own = skewed(rng, 150)
        found.append(compare_predictions(torch.as_tensor(own), said(rng, own, 6, 4, rng.beta(2, 1, 150)), 6))
    spread = np.std([f["kappa"] for f in found])
    assert np.mean([f["kappa_error"] for f in found]) == pytest.approx(spread, rel=0.15)


def test_different_images_are_all_pairs_whatever_their_order():
    own = torch.tensor([0] * 50 + [1] * 50)
    for turn in (torch.arange(100), torch.randperm(100, generator=torch.Generator().manual_seed(0))):
        found = compare_predictions(own[turn], own[turn], 1)
        assert found["agreement_between"] == pytest.approx(49 / 99)
    assert (found["agreement_chance"], found["kappa"]) == (0.5, 1.0)


def test_sets_of_labels_agree_as_wholes():
    rng = np.random.default_rng(3)
    own, theirs = (torch.as_tensor(rng.random((k * 200, 3)) < 0.4) for k in (1, 2))
    theirs[::2] = own
    as_one = [(rows.int() * torch.tensor([1, 2, 4])).sum(1) for rows in (own, theirs)]
    found, expected = compare_predictions(own, theirs, 2), compare_predictions(*as_one, 2)
    assert all(found[name] == pytest.approx(value) for name, value in expected.items())
    assert found["label_overlap"] > found["agreement"]


def test_a_constant_model_has_no_kappa_and_embeddings_have_no_agreement():
    constant = compare_predictions(torch.zeros(9, dtype=torch.long), torch.zeros(18, dtype=torch.long), 2)
    assert constant["agreement_chance"] == constant["agreement_between"] == 1
    assert math.isnan(constant["kappa"])
    embedded = compare_predictions(torch.randn(9, 4), torch.randn(18, 4), 2)
    assert not any("agreement" in name or "kappa" in name for name in embedded)


@pytest.mark.parametrize("images", [20, 200])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("mean", [0.7, 0.97])
def test_the_interval_of_an_agreement_covers_it(images, correlation, mean):
    rng = np.random.default_rng(4)
    samples, runs = 8, 250
    if correlation:
        size = 1 / correlation - 1
        shares = rng.beta(mean * size, (1 - mean) * size, (runs, images))
    else:
        shares = np.full((runs, images), mean)
    found = [agreement_interval(row.tolist(), samples) for row in rng.binomial(samples, shares) / samples]
    covered = np.mean([low <= mean <= high for low, high in found])
    assert covered >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / runs)
    # Not by being wide: about as wide as a normal one over images where there are many of them.
    if images == 200 and mean == 0.7:
        normal = 3.92 * math.sqrt(mean * (1 - mean) * (1 / samples + (1 - 1 / samples) * correlation) / images)
        assert np.mean([high - low for low, high in found]) == pytest.approx(normal, rel=0.1)


def test_an_interval_has_a_width_where_all_samples_agree():
    low, high = agreement_interval([1.0] * 20, 8)
    assert 0.75 < low < 0.9
    assert high == 1
    assert agreement_interval([0.0] * 20, 8) == pytest.approx((0.0, 1 - low))
    assert all(math.isnan(end) for end in agreement_interval([1.0], 8))
