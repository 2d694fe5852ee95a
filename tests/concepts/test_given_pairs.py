"""Given pairs, joined sources, the random concept, sizes of factors, and pairs of cached rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posthoc_inn.concepts import (
    RANDOM,
    AttributeSource,
    GivenPairs,
    JoinedSources,
    WithRandom,
    factor_sizes,
    shared_score,
)
from posthoc_inn.errors import ConfigError, DataError, ShapeError
from posthoc_inn.rows.pairs import RowPairs


def test_sharing_and_differing_pairs_have_opposite_masks():
    source = GivenPairs({"pose": [(0, 1)], "light": [(2, 3)]}, {"pose": [(4, 5)]})
    a, b, shared = source.pairs(300, seed=0)
    for first, mask in ((0, [False, True, False]), (2, [False, False, True]), (4, [True, False, True])):
        rows = torch.minimum(a, b) == first
        assert 60 < int(rows.sum()) < 140
        assert (shared[rows] == torch.tensor(mask)).all()
        assert {int(x) for x in a[rows]} == {first, first + 1}  # in either order


def test_a_subset_keeps_pairs_whose_images_are_both_there():
    source = GivenPairs({"pose": [(0, 1), (1, 7)]}).subset(torch.tensor([7, 1, 3]))
    a, b, _ = source.pairs(20, seed=0)
    assert set(torch.stack([a, b], 1).sort(1).values.unique(dim=0)[0].tolist()) == {0, 1}
    with pytest.raises(DataError, match="'pose' has no pairs among these 2 images"):
        GivenPairs({"pose": [(0, 1)]}).subset(torch.tensor([0, 5]))


@pytest.mark.parametrize(
    ("pairs", "match"),
    [
        ([], "no pairs"),
        ([(0, 0)], "one image twice"),
        ([(0, -1)], "image indices from 0"),
        ([(0.5, 1.0)], "image indices from 0"),
        ([(0, 1, 2)], r"must be \(n, 2\)"),
        ("ab", "no list of pairs"),
    ],
)
def test_wrong_pairs_are_refused(pairs, match):
    with pytest.raises(DataError, match=match):
        GivenPairs({"pose": pairs})
    with pytest.raises(DataError, match="at least one concept"):
        GivenPairs()


def test_joined_sources_count_others_as_independent_or_as_agreeing():
    digits = AttributeSource({"digit": [0, 0, 1, 1]})
    light = GivenPairs({}, {"light": [(0, 3)]})
    a, b, shared = JoinedSources([digits, light]).pairs(100, seed=0)
    from_light = shared[:, 0]
    assert int(from_light.sum()) == 50
    assert (shared[from_light] == torch.tensor([True, True, False])).all()
    assert (shared[~from_light] == torch.tensor([False, True, False])).all()
    assert (a != b).all()
    with pytest.raises(DataError, match="two sources have a concept called digit"):
        JoinedSources([digits, digits])


def test_the_random_concept_takes_its_share_and_pairs_strangers():
    values = torch.arange(200) // 2
    source = WithRandom(AttributeSource({"twin": values}))
    assert source.names == ("twin", RANDOM)
    a, b, shared = source.pairs(4000, seed=0)
    is_random = shared[:, 2]
    assert abs(float(is_random.float().mean()) - 0.5) < 0.03
    assert (shared[is_random] == torch.tensor([False, False, True])).all()
    assert (values[a] == values[b])[~is_random].all()
    assert (values[a] == values[b])[is_random].float().mean() < 0.03


# ---- sizes of factors


def test_the_score_is_covariance_over_total_variance_as_numpy_has_it():
    rng = np.random.default_rng(0)
    common = rng.normal(size=(500, 4)) * [2.0, 1.0, 0.5, 0.0]
    a, b = (common + rng.normal(size=(500, 4)) for _ in range(2))
    both = np.concatenate([a, b])
    mean = both.mean(0)
    expected = ((a - mean) * (b - mean)).mean(0).sum() / both.var(0).sum()
    assert shared_score(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ShapeError, match=r"two \(n, D\)"):
        shared_score(torch.zeros(1, 2), torch.zeros(1, 2))


def test_sizes_are_the_softmax_of_the_scores_and_the_residual_gets_the_rest():
    scores = {"digit": 0.3, "color": -0.2}
    shares = np.exp([1.0, 0.3, -0.2])
    shares = shares / shares.sum() * 64
    sizes = factor_sizes(scores, 64)
    assert sizes[1:] == tuple(round(s) for s in shares[1:])
    assert sum(sizes) == 64


def test_every_factor_gets_a_dimension_even_where_there_are_few():
    assert factor_sizes([0.0] * 3, 4) == (1, 1, 1, 1)
    assert min(factor_sizes([0.9] * 10, 12)) == 1
    assert sum(factor_sizes([0.9] * 10, 12)) == 12
    with pytest.raises(ConfigError, match="need as many dimensions"):
        factor_sizes([0.0] * 4, 4)


# ---- rows


class Strangers:
    """A third party's source: nothing but the protocol."""

    names = ("pose",)

    def __init__(self, pairs):
        self.all = torch.tensor(pairs)

    def pairs(self, n, *, seed):
        pick = torch.randint(len(self.all), (n,), generator=torch.Generator().manual_seed(seed))
        return self.all[pick, 0], self.all[pick, 1], torch.tensor([[False, True]]).repeat(n, 1)


def test_images_with_several_rows_lend_any_of_them():
    images = torch.tensor([0, 1, 2, 0, 1, 2])
    a, b, shared = RowPairs(Strangers([(0, 2)]), images).draw(200, seed=0)
    assert set(a.tolist()) == {0, 3}
    assert set(b.tolist()) == {2, 5}
    assert shared.shape == (200, 2)


def test_pairs_with_an_image_that_is_not_cached_are_left_out():
    pairs = RowPairs(Strangers([(0, 1), (0, 9), (1, 2)]), torch.tensor([2, 1, 0]))
    a, b, _ = pairs.draw(100, seed=0)
    assert len(a) == 100
    assert {tuple(p) for p in torch.stack([a, b], 1).tolist()} == {(2, 1), (1, 0)}
    with pytest.raises(DataError, match="only 0 have both images among"):
        RowPairs(Strangers([(7, 8)]), torch.tensor([0, 1]))


def test_a_source_that_breaks_the_protocol_is_named():
    class Broken(Strangers):
        def pairs(self, n, *, seed):
            a, b, shared = super().pairs(n, seed=seed)
            return a, b, shared[:, 1:]

    with pytest.raises(DataError, match=r"Broken.pairs must return indices .* mask \(n, 2\)"):
        RowPairs(Broken([(0, 1)]))

    class Same(Strangers):
        def pairs(self, n, *, seed):
            a, _, shared = super().pairs(n, seed=seed)
            return a, a, shared

    with pytest.raises(DataError, match="no pairs of two different images"):
        RowPairs(Same([(0, 1)]))
