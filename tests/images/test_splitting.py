"""Holding a part of the data out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from posthoc_inn.errors import ConfigError, DataError, PosthocInnWarning
from posthoc_inn.images import BatchSource, split

N = 40
X = torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N)


class Stream(IterableDataset):
    def __init__(self, shuffle=False):
        self.shuffle = shuffle

    def __iter__(self):
        order = torch.randperm(N) if self.shuffle else Y
        return ((X[i], int(i)) for i in order)


def labels(data):
    return torch.cat([b["labels"] for b in BatchSource(data, 8)]).tolist()


KINDS = {
    "tensors": TensorDataset(X, Y),
    "pair": (X, Y),
    "arrays": (X.numpy(), Y.numpy()),
    "dict": {"image": X, "label": Y},
    "list": [(X[i], i) for i in range(N)],
    "loader": DataLoader(TensorDataset(X, Y), batch_size=8),
    "shuffled loader": DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True),
    "batch sampler": DataLoader(TensorDataset(X, Y), batch_sampler=BatchSampler(SequentialSampler(X), 8, False)),
    "stream": Stream(),
    "loader of a stream": DataLoader(Stream(), batch_size=7),
    "batches": [(X[:20], Y[:20]), (X[20:], Y[20:])],
    "source": BatchSource(TensorDataset(X, Y)),
}


@pytest.mark.parametrize("data", KINDS.values(), ids=KINDS.keys())
def test_the_parts_are_disjoint_complete_and_the_same_each_time(data):
    train, held_out = split(data, 0.25, seed=3)
    a, b = labels(train), labels(held_out)
    assert len(b) == 10
    assert sorted(a + b) == Y.tolist()
    assert b == sorted(b)
    assert labels(split(data, 0.25, seed=3)[1]) == b
    assert sorted(labels(train)) == sorted(a)


def test_images_go_with_their_labels():
    for data in (TensorDataset(X, Y), (X.numpy(), Y.numpy()), Stream(), [(X[i], i) for i in range(N)]):
        for part in split(data, 0.2):
            for batch in BatchSource(part, 4):
                assert torch.equal(batch["images"], X[batch["labels"]])


def test_bare_tensors_and_arrays_are_split():
    for data in (X, X.numpy()):
        train, held_out = split(data)
        assert (len(BatchSource(train)), len(BatchSource(held_out))) == (36, 4)
        assert BatchSource(held_out).check().image_shape == (1, 4, 4)


def test_the_seed_chooses():
    assert labels(split(TensorDataset(X, Y), 0.25, seed=0)[1]) != labels(split(TensorDataset(X, Y), 0.25, seed=1)[1])


def test_a_stream_that_draws_its_order_at_once_leaves_the_global_generators_alone():
    state = torch.get_rng_state()
    assert sorted(labels(Stream(shuffle=True))) == Y.tolist()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_global_generators_are_left_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for part in split(DataLoader(TensorDataset(X, Y), shuffle=True), 0.25):
        labels(part)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_held_out_data_of_ones_own_is_kept():
    other = TensorDataset(X[:5], Y[:5])
    data = TensorDataset(X, Y)
    train, held_out = split(data, other)
    assert train is data
    assert held_out is other


def test_a_loaders_settings_are_kept():
    loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, drop_last=True, collate_fn=list)
    train, held_out = split(loader, 0.25)
    assert train.batch_size == held_out.batch_size == 8
    assert train.collate_fn is list
    assert train.drop_last
    assert not held_out.drop_last
    assert labels(train) != sorted(labels(train))


def test_a_sampler_that_is_not_kept_is_said_so():
    loader = DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler([1.0] * N, N))
    with pytest.warns(PosthocInnWarning, match="WeightedRandomSampler is replaced by plain shuffling"):
        split(loader, 0.25)


def test_a_stream_in_another_order_each_time_cannot_be_split():
    for data in (Stream(shuffle=True), DataLoader(Stream(shuffle=True), batch_size=4)):
        with pytest.raises(DataError, match="no part of it can be held out for good"):
            split(data, 0.25)


def test_an_image_that_comes_again_stays_in_its_part():
    class Again(IterableDataset):
        def __iter__(self):
            return ((X[k % 13], k % 13) for k in itertools.count())

    train, held_out = (labels(part) for part in split(BatchSource(Again(), limit=50), 0.25))
    assert len(train) + len(held_out) == 50
    assert set(train) | set(held_out) == set(range(13))
    assert not set(train) & set(held_out)
    assert len(set(held_out)) == 3


def test_a_stream_that_is_too_short_is_refused():
    with pytest.raises(DataError, match="holds 7 images: too few to hold 25% out"):
        split([(X[:4], Y[:4]), (X[4:7], Y[4:7])], 0.25)


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, True, None])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(ConfigError, match=r"share in \(0, 1\) or held-out data"):
        split(X, share)


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="holds 3 images: too few to hold 50% out"):
        split(X[:3], 0.5)
    assert [len(p) for p in split(X[:4], 0.1)] == [2, 2]


def test_a_limited_source_is_refused():
    with pytest.raises(ConfigError, match="limit of its own"):
        split(BatchSource(X, limit=10))
