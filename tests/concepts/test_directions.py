"""Directions that pairs share: against discriminant analysis, closed forms and brute force; their second moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from posthoc_inn.concepts import AttributeSource, GivenPairs, shared_directions
from posthoc_inn.errors import ShapeError
from posthoc_inn.rows.cache import Cache
from posthoc_inn.rows.latents import Rows
from posthoc_inn.rows.pairs import RowPairs
from posthoc_inn.training.moments import pair_moments


def faces(n=20_000, dim=8, seed=0):
    """Latents in which two correlated attributes move the mean, each along a direction of its own."""
    rng = np.random.default_rng(seed)
    man = rng.integers(0, 2, n)
    beard = man * rng.integers(0, 2, n)
    mixing = np.random.default_rng(3).normal(size=(dim, dim))
    x = rng.normal(size=(n, dim))
    x[:, 0] += 3 * man
    x[:, 1] += 2 * beard
    return torch.tensor(x @ mixing, dtype=torch.float32), {"man": torch.tensor(man), "beard": torch.tensor(beard)}


def rows_of(x, noise=0.2):
    cache = Cache()
    cache.append(mean=x, std=torch.full_like(x, noise))
    return Rows(cache)


def cosine(a, b):
    return abs(float(a @ b / (a.norm() * b.norm())))


def test_one_concept_gets_the_direction_of_discriminant_analysis():
    x, values = faces()
    rows = rows_of(x, noise=0.0)
    moments = pair_moments(rows, RowPairs(AttributeSource({"man": values["man"]})))
    weight = shared_directions(moments.total, [None, moments.shared[1]], (7, 1))
    expected = LinearDiscriminantAnalysis(priors=[0.5, 0.5]).fit(x.numpy(), values["man"].numpy()).coef_[0]
    assert cosine(weight[7], torch.tensor(expected, dtype=torch.float64)) > 0.999


def test_the_output_has_unit_covariance():
    x, values = faces()
    moments = pair_moments(rows_of(x), RowPairs(AttributeSource(values)))
    weight = shared_directions(moments.total, [None, *moments.shared[1:]], (5, 2, 1))
    torch.testing.assert_close(weight @ moments.total @ weight.T, torch.eye(8, dtype=torch.float64), atol=1e-8, rtol=0)


def test_moments_are_those_of_the_pairs():
    x, values = faces(n=300)
    pairs = RowPairs(AttributeSource({"man": values["man"]}))
    a, b, _ = pairs.draw(16_384, seed=3)
    moments = pair_moments(rows_of(x, noise=0.5), pairs, seed=3)
    both = torch.cat([x[a], x[b]]).double()
    torch.testing.assert_close(moments.mean, both.mean(0), atol=1e-6, rtol=0)
    expected = both.T.cov(correction=0) + 0.25 * torch.eye(8)
    torch.testing.assert_close(moments.total, expected, atol=1e-6, rtol=1e-6)
    left, right = x[a].double() - both.mean(0), x[b].double() - both.mean(0)
    cross = (left.T @ right) / len(a)
    torch.testing.assert_close(moments.shared[1], (cross + cross.T) / 2, atol=1e-6, rtol=1e-6)
    assert moments.shared[0] is None


def test_what_comes_with_another_concept_is_not_counted_twice():
    x, values = faces()
    man = torch.tensor(np.linalg.inv(np.random.default_rng(3).normal(size=(8, 8)))[:, 0])  # reads x[:, 0] before mixing
    leak = {}
    for agree in ("drawn", "all"):
        moments = pair_moments(rows_of(x), RowPairs(AttributeSource(values, agree=agree)))
        beard = shared_directions(moments.total, [None, moments.shared[2]], (7, 1))[7]
        # How much of the beard's direction is the one that tells men.
        leak[agree] = float((beard @ moments.total @ man).abs() / (man @ moments.total @ man).sqrt())
    assert leak["all"] < 0.6 * leak["drawn"]


@pytest.mark.parametrize("names", [("man",), ("man", "beard")])
def test_pairs_that_differ_in_one_concept_give_its_direction_too(names):
    x, _ = faces()
    mixing = torch.tensor(np.random.default_rng(3).normal(size=(8, 8)), dtype=torch.float32)
    images, given = [x], {}
    for k, name in enumerate(names):
        # Each image beside one that is the same but for one direction.
        images.append(x + 3 * torch.randn(len(x), 1, generator=torch.Generator().manual_seed(k)) * mixing[k])
        given[name] = [(i, (k + 1) * len(x) + i) for i in range(len(x))]
    moments = pair_moments(rows_of(torch.cat(images)), RowPairs(GivenPairs(differing=given)))
    assert moments.shared[0] is None
    for k, name in enumerate(names):
        matrix = moments.shared[1 + k]
        top = torch.linalg.eigh(matrix)[1][:, -1]
        assert cosine(top, mixing[k].double()) > 0.999, name
        assert float(torch.linalg.eigvalsh(matrix)[-1]) == pytest.approx(
            4.5 * float(mixing[k].square().sum()), rel=0.05
        )


def test_the_sum_of_what_is_shared_is_the_best_of_many_turns():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    matrices = [a @ a.T, b @ b.T]
    weight = shared_directions(torch.eye(4), [None, *matrices], (2, 1, 1))

    def value(rows):
        return sum(float(r @ m @ r) for r, m in zip(rows, matrices, strict=True))

    best = value(weight[2:])
    for _ in range(3000):
        turned = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
        assert value(turned[:2]) <= best + 1e-9


def test_a_factor_that_shares_nothing_takes_what_is_left():
    common = torch.diag(torch.tensor([0.9, 0.0, 0.0, 0.5]))
    weight = shared_directions(torch.eye(4), [None, common, None], (1, 2, 1))
    assert weight[1:3, [0, 3]].abs().sum(1).min() > 0.99
    assert weight[[0, 3]][:, [0, 3]].abs().max() < 1e-6


def test_dimensions_that_hardly_vary_are_not_blown_up():
    total = torch.diag(torch.tensor([1.0, 1.0, 1e-12]))
    weight = shared_directions(total, [None, torch.diag(torch.tensor([0.0, 0.9, 0.0]))], (2, 1))
    assert float(torch.linalg.cond(weight)) < 2000


@pytest.mark.parametrize(
    ("shared", "widths"), [([None], (2, 1)), ([None, torch.eye(2)], (2, 1)), ([None, None], (1, 1))]
)
def test_shapes_that_do_not_fit_are_refused(shared, widths):
    with pytest.raises(ShapeError, match="accepted are"):
        shared_directions(torch.eye(3), shared, widths)
