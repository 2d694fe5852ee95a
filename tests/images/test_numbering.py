"""Which image each row of a loader's batches is of, whatever its sampler and its collate function do."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from posthoc_inn.images import BatchSource

N = 24
X = torch.rand(N, 3, 6, 6, generator=torch.Generator().manual_seed(0))
BAD = {2, 3, 9, 20}


class Items(Dataset):
    """Images of which some cannot be read, as a data set that returns None for them has it."""

    def __init__(self, make=lambda i: (X[i], i), bad=frozenset(BAD)):
        self.make, self.bad = make, bad

    def __len__(self):
        return N

    def __getitem__(self, i):
        return None if i in self.bad else self.make(int(i))


class Many(Items):
    """Fetches a batch at once, as Hugging Face's data sets do."""

    def __getitems__(self, indices):
        return [self[i] for i in indices]


def without_none(items):
    return default_collate([item for item in items if item is not None])


def sorting(items):
    items.sort(key=lambda item: -item[1])
    return default_collate(items)


def replacing(items):
    good = [item for item in items if item is not None]
    return default_collate([good[0] if item is None else item for item in items])


def without_none_normalised(items):
    images, labels = without_none(items)
    return (images - 0.5) / 0.25, labels


def sorting_normalised(items):
    images, labels = default_collate(items)
    order = labels.argsort(descending=True)
    return (images[order] - 0.5) / 0.25, labels[order]


def augmenting(items):
    images, labels = without_none(items)
    flips = torch.rand(len(images)) < 0.5
    return torch.where(flips[:, None, None, None], images.flip(3), images) + 0.01 * torch.rand(()), labels


def of_pictures(items):
    kept = [item for item in items if item is not None]
    stacked = np.stack([np.asarray(item["image"]) for item in kept])
    return {"pixel_values": torch.from_numpy(stacked).permute(0, 3, 1, 2) / 255, "labels": [i["label"] for i in kept]}


def picture(i):
    return {"image": Image.fromarray((X[i].permute(1, 2, 0).numpy() * 255).astype(np.uint8)), "label": i}


def loader(data=None, **more):
    return DataLoader(Items() if data is None else data, **{"batch_size": 5, "collate_fn": without_none, **more})


WHOLE = Items(bad=())
LOADERS = {
    "drops": loader(),
    "drops, shuffled": loader(shuffle=True),
    "drops, workers": loader(shuffle=True, num_workers=2),
    "drops, workers in any order": loader(shuffle=True, num_workers=2, in_order=False),
    "drops, workers that persist": loader(shuffle=True, num_workers=1, persistent_workers=True),
    "drops, fetched at once": loader(Many()),
    "drops, no last batch": loader(shuffle=True, drop_last=True),
    "drops, batches of one": loader(batch_size=1),
    "drops, a subset": loader(Subset(Items(), range(N))),
    "drops and normalises": loader(collate_fn=without_none_normalised),
    "drops and augments": loader(collate_fn=augmenting, shuffle=True),
    "drops, of pictures and dicts": loader(Items(picture), collate_fn=of_pictures, shuffle=True),
    "drops, lists": loader(collate_fn=lambda items: [item for item in items if item is not None]),
    "sorts": loader(WHOLE, collate_fn=sorting, shuffle=True),
    "sorts and normalises": loader(WHOLE, collate_fn=sorting_normalised, shuffle=True),
    "replaces": loader(collate_fn=replacing),
    "weighted": loader(sampler=WeightedRandomSampler(torch.rand(N), 40)),
    "subset sampler": loader(sampler=SubsetRandomSampler(range(3, 20))),
    "a list as sampler": loader(sampler=[5, 3, 7, 7, -7, 8, 6]),
    "numpy's numbers": loader(sampler=np.random.default_rng(0).permutation(N)),
    "distributed": loader(sampler=DistributedSampler(Items(), num_replicas=3, rank=1)),
    "batch sampler": loader(
        batch_size=1, batch_sampler=BatchSampler(SubsetRandomSampler(range(N)), 7, drop_last=True)
    ),
    "list of batches": DataLoader(WHOLE, batch_sampler=[[4, 1], [7, 0, 12], [3]]),
    "no batches": DataLoader(WHOLE, batch_size=None, sampler=SubsetRandomSampler(range(N))),
    "batches by the sampler": DataLoader(
        TensorDataset(X, torch.arange(N)), batch_size=None, sampler=BatchSampler(SubsetRandomSampler(range(N)), 5, True)
    ),
}  # fmt: skip


@pytest.mark.parametrize("data", LOADERS.values(), ids=LOADERS)
def test_each_row_has_the_place_of_its_image(data):
    source = BatchSource(data, seed=1).check()
    for _ in range(2):
        batches = list(source)
        index = torch.cat([b["index"] for b in batches])
        labels = torch.cat([b["labels"] for b in batches])
        assert len(index) >= 5
        assert torch.equal(index, labels % N)


def test_the_users_loader_and_its_order_are_left_as_they_are():
    data = loader(shuffle=True)
    before = dict(data.__dict__)
    torch.manual_seed(3)
    usual = torch.cat([labels for _, labels in data])
    list(BatchSource(data))
    assert data.__dict__ == before
    torch.manual_seed(3)
    assert torch.equal(torch.cat([labels for _, labels in data]), usual)


def test_what_a_worker_is_told_of_is_the_users_data_set():
    class Opened(Items):
        value = 0

    def open_it(worker):
        torch.utils.data.get_worker_info().dataset.make = lambda i: (X[i] + 1, i)

    data = loader(Opened(), num_workers=1, worker_init_fn=open_it)
    assert float(BatchSource(data).first(5).min()) >= 1


def random_choice(items):
    return default_collate(random.sample([item for item in items if item is not None], 2))


def of_noise(items):
    return torch.rand(len(items) - 1, 3, 6, 6), torch.zeros(len(items) - 1)


class OwnWay(DataLoader):
    def __iter__(self):
        for images, labels in super().__iter__():
            yield images + 1, labels


def test_what_cannot_be_told_is_not_guessed():
    # Drawn at random, but recognised; noise is of no image.
    found = list(BatchSource(loader(collate_fn=random_choice)))
    assert all(torch.equal(b["index"], b["labels"]) for b in found)
    assert all(bool((b["index"] == -1).all()) for b in BatchSource(loader(WHOLE, collate_fn=of_noise)))
    assert all(b["index"] is None for b in BatchSource(OwnWay(WHOLE, batch_size=5)))
    # Equal pictures of which one is gone, for a reason that lies in the batch.
    same = TensorDataset(torch.cat([X[:1], X[:1], X[1:3]]), torch.arange(4))
    last = DataLoader(same, batch_size=4, collate_fn=lambda items: default_collate(items[1:] or items))
    assert next(iter(BatchSource(last)))["index"].tolist() == [-1, -1, -1]
