"""What sources promise of their pairs, over many small tables and lists: a shared factor is shared, a seed decides."""

from __future__ import annotations

import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from posthoc_inn.concepts import AttributeSource, GivenPairs

few = settings(max_examples=40, deadline=None, derandomize=True, database=None)
MISSING = -1


def is_usable(column):
    """Whether a column of categories has two known values, one of them twice."""
    known = [v for v in column if v != MISSING]
    return len(set(known)) >= 2 and len(known) > len(set(known))


@st.composite
def tables(draw, least=1):
    """Columns, `least` to three, of categories over 4 to 12 images, with missing values."""
    rows = draw(st.integers(4, 12))
    column = st.lists(st.sampled_from([0, 1, MISSING, 2, MISSING]), min_size=rows, max_size=rows).filter(is_usable)
    return {f"c{k}": draw(column) for k in range(draw(st.integers(least, 3)))}


@st.composite
def lists_of_pairs(draw):
    """Sharing and differing pairs of one to three concepts, and the number of their images."""
    images = draw(st.integers(3, 10))
    pair = st.tuples(st.integers(0, images - 1), st.integers(0, images - 1)).filter(lambda p: p[0] != p[1])
    group = st.dictionaries(st.sampled_from(["pose", "light", "hat"]), st.lists(pair, min_size=1, max_size=4))
    sharing, differing = draw(group), draw(group)
    assume(sharing or differing)
    return sharing, differing, images


seeds = st.integers(0, 2**31)
counts = st.sampled_from([40, 1, 0])


def checked(source, n, seed, images):
    """Return the pairs of a source, once shapes, ranges and the seed's part have been looked at."""
    before = torch.get_rng_state()
    a, b, shared = source.pairs(n, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert a.shape == b.shape == (n,)
    assert shared.shape == (n, len(source.names) + 1)
    assert (a.dtype, b.dtype, shared.dtype) == (torch.int64, torch.int64, torch.bool)
    assert not bool((a == b).any())
    if n:
        assert int(torch.minimum(a, b).min()) >= 0
        assert int(torch.maximum(a, b).max()) < images
    assert all(torch.equal(x, y) for x, y in zip(source.pairs(n, seed=seed), (a, b, shared), strict=True))
    return a, b, shared


def agreement(table, a, b):
    """Return whether images a (n,) and b (n,) have the same known value of each column, (n, K)."""
    columns = torch.tensor(list(table.values())).T
    return (columns[a] == columns[b]) & (columns[a] != MISSING)


@few
@given(tables(), counts, seeds)
def test_two_images_agree_in_the_one_category_that_their_pair_was_drawn_for(table, n, seed):
    source = AttributeSource(table)
    a, b, shared = checked(source, n, seed, len(source))
    assert shared.sum(dim=1).tolist() == [1] * n
    assert not bool(shared[:, 0].any())
    assert bool(agreement(table, a, b)[shared[:, 1:]].all())


@few
@given(tables(least=2), seeds)
@example({"c0": [0, 0, 1, 1, 1], "c1": [MISSING, MISSING, 1, 1, 0]}, 0)
def test_pairs_can_tell_of_every_category_in_which_their_images_agree_and_a_missing_value_is_none(table, seed):
    source = AttributeSource(table, agree="all")
    a, b, shared = checked(source, 40, seed, len(source))
    assert not bool(shared[:, 0].any())
    assert torch.equal(shared[:, 1:], agreement(table, a, b))
    assert bool(shared.any(dim=1).all())


@few
@given(tables(), seeds, st.data())
def test_a_subset_of_a_table_keeps_what_its_images_are(table, seed, data):
    source = AttributeSource(table)
    kept = torch.tensor(data.draw(st.permutations(range(len(source)))))
    columns = torch.tensor(list(table.values())).T[kept]
    a, b, shared = checked(source.subset(kept), 20, seed, len(kept))
    assert bool((columns[a] == columns[b])[shared[:, 1:]].all())


@few
@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 1.0, 2.5, float("nan")]), min_size=4, max_size=12).filter(
        lambda c: len({v for v in c if v == v}) >= 2
    ),
    st.integers(1, 5),
    counts,
    seeds,
)
def test_images_that_share_a_number_are_among_the_nearest(column, neighbors, n, seed):
    values = torch.tensor(column, dtype=torch.float64)
    a, b, shared = checked(AttributeSource({"x": values}, neighbors=neighbors), n, seed, len(values))
    assert shared.tolist() == [[False, True]] * n
    for i, j in zip(a.tolist(), b.tolist(), strict=True):
        others = [abs(column[k] - column[i]) for k in range(len(column)) if k != i and column[k] == column[k]]
        # Several can be equally far: what counts is that no more than `neighbors` are nearer.
        assert abs(column[j] - column[i]) <= sorted(others)[min(neighbors, len(others)) - 1]


def told(sharing, differing, names):
    """Return each given pair, in either order, with the flags that its list stands for."""
    expected = set()
    for is_shared, group in ((True, sharing), (False, differing)):
        for name, pairs in group.items():
            flags = tuple((column == name) == is_shared for column in ("residual", *names))
            expected |= {(*ends, flags) for a, b in pairs for ends in ((a, b), (b, a))}
    return expected


def found(a, b, shared):
    return {(i, j, tuple(flags)) for i, j, flags in zip(a.tolist(), b.tolist(), shared.tolist(), strict=True)}


@few
@given(lists_of_pairs(), counts, seeds)
def test_given_pairs_come_back_with_the_flags_of_their_list_and_no_others(lists, n, seed):
    sharing, differing, images = lists
    source = GivenPairs(sharing, differing)
    drawn = found(*checked(source, n, seed, images))
    expected = told(sharing, differing, source.names)
    assert drawn <= expected
    # With pairs enough, each that was given comes up, in both orders.
    assert found(*source.pairs(3000, seed=seed)) == expected


@few
@given(lists_of_pairs(), seeds, st.data())
def test_a_subset_of_given_pairs_numbers_them_by_their_place(lists, seed, data):
    sharing, differing, images = lists
    source = GivenPairs(sharing, differing)
    order = data.draw(st.permutations(range(images)))
    a, b, shared = checked(source.subset(torch.tensor(order)), 20, seed, images)
    numbers = torch.tensor(order)
    assert found(numbers[a], numbers[b], shared) <= told(sharing, differing, source.names)


@few
@given(tables(), st.lists(seeds, min_size=6, max_size=6, unique=True))
def test_other_seeds_give_other_pairs(table, some):
    source = AttributeSource(table)
    assert len({tuple(torch.cat(source.pairs(40, seed=seed)[:2]).tolist()) for seed in some}) > 1
