"""Tuples in an order of their own, and labels that are texts: found where that is clear, told of where it is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from posthoc_inn.errors import DataError
from posthoc_inn.images import BatchSource
from posthoc_inn.images.convert import code_of

N = 6
X = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([5, 6, 5, 6, 5, 6])
TEXTS = ["cat", "dog"] * 3
ONE_HOT = torch.eye(2)[Y - 5]
ORDER = "in an order of their own: number 2 is taken as the image"


class Items(Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.make(i)


def transposed(samples):
    return list(zip(*samples, strict=True))


WAYS = {
    "data set": Items,
    "loader": lambda make: DataLoader(Items(make), batch_size=4),
    "list": lambda make: [make(i) for i in range(N)],
    "columns": lambda make: DataLoader(Items(make), batch_size=4, collate_fn=transposed),
}
ORDERS = {
    "label, image": (lambda i: (int(Y[i]), X[i]), Y),
    "path, image, label": (lambda i: (f"{i}.png", X[i], int(Y[i])), Y),
    "label, image, path": (lambda i: (int(Y[i]), X[i], f"{i}.png"), Y),
    "one-hot, image": (lambda i: (ONE_HOT[i], X[i]), ONE_HOT),
    "index, image, label": (lambda i: (i, X[i], int(Y[i])), None),
    "index, image, dict": (lambda i: (i, X[i], {"label": int(Y[i])}), None),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize(("make", "labels"), ORDERS.values(), ids=ORDERS.keys())
def test_an_image_that_does_not_come_first_is_found_and_a_label_where_it_is_clear(make, labels, way):
    source = BatchSource(way(make), 4).check()
    batch = source.take(N)
    assert torch.equal(batch["images"], X)
    assert (batch["labels"] is None) if labels is None else torch.equal(batch["labels"], labels)
    (note,) = [note for note in source.notes if ORDER in note]
    assert ("none as the label, as 2 others might be it. Yield (image, label)" in note) == (labels is None)


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (TensorDataset(Y, X), range(N)),
        (Subset(TensorDataset(Y, X), [1, 3, 4]), [1, 3, 4]),
        ((Y, X), range(N)),
        ((Y.numpy(), X.numpy()), range(N)),
    ],
    ids=["tensor data set", "part of it", "pair", "arrays"],
)
def test_tensors_in_another_order_are_found_too(data, rows):
    source = BatchSource(data, 4).check()
    batch = source.take(N)
    assert torch.equal(batch["images"], X[list(rows)])
    assert torch.equal(batch["labels"], Y[list(rows)])
    assert any(ORDER in note for note in source.notes)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda i: (i, X[i], X[i, :1]), r"1\. int 0; 2\. float32 \(3, 8, 8\); 3\. float32 \(1, 8, 8\)"),
        (lambda i: (i, int(Y[i])), r"1\. int 0; 2\. int 5"),
        (lambda i: (None, None), r"1\. NoneType None; 2\. NoneType None"),
        (lambda i: ("a.png", 3), r"1\. str 'a\.png'; 2\. int 3\..* Read files with load_image_files"),
        (lambda i: ("a" * 10**6, [0] * 10**5), r"1\. str 'aaa"),
    ],
    ids=["two images", "no image", "nothing", "file", "long"],
)
def test_where_no_part_is_clearly_the_image_each_is_named(make, told):
    with pytest.raises(DataError, match=told) as error:
        BatchSource(Items(make), 4).check()
    assert "yield (image, label)" in str(error.value)
    assert "uint8" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_loader_of_indices_is_not_told_to_make_bytes_of_them():
    with pytest.raises(DataError, match=r"Batch 0 is a list of 1\. int64 \(4,\); 2\. int64 \(4,\)\. The image comes"):
        BatchSource(DataLoader(TensorDataset(Y, Y), batch_size=4)).check()


@pytest.mark.parametrize("make", [lambda i: (X[i], X[i], int(Y[i])), lambda i: (X[i], int(Y[i]), i)])
def test_an_image_that_comes_first_is_the_image(make):
    source = BatchSource(Items(make), 4).check()
    assert torch.equal(source.take(N)["images"], X)
    assert not any(ORDER in note for note in source.notes)


def picture(i):
    return Image.fromarray((X[i].permute(1, 2, 0).numpy() * 255).astype(np.uint8))


@pytest.mark.parametrize(
    "data",
    [
        Items(lambda i: (X[i], TEXTS[i])),
        Items(lambda i: (TEXTS[i].encode(), picture(i))),
        Items(lambda i: {"image": X[i], "label": TEXTS[i]}),
        DataLoader(Items(lambda i: (X[i], TEXTS[i])), batch_size=4),
        (X, np.array(TEXTS)),
        (X, np.array(TEXTS, dtype=object)),
        {"image": X, "label": TEXTS},
    ],
    ids=["texts", "bytes", "dict", "loader", "array", "objects", "whole"],
)
def test_labels_that_are_texts_are_classes_under_a_name(data):
    labels = BatchSource(data, 4).take(N)["labels"]
    assert list(labels) == ["class"]  # a name keeps them apart from numbers of the model's classes
    assert labels["class"].tolist() == [code_of(text) for text in TEXTS]


def test_texts_that_are_missing_are_missing():
    source = BatchSource([(X[i], (None, "", "cat")[i % 3]) for i in range(N)], 4)
    assert source.take(3)["labels"]["class"].tolist() == [-1, -1, code_of("cat")]
