"""One view on whatever users keep their images in."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from posthoc_inn.errors import ConfigError, DataError, PosthocInnWarning
from posthoc_inn.images import BatchSource

N = 10
X = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N)


class Items(Dataset):
    """A map-style data set of whatever `make` returns."""

    def __init__(self, make, n=N):
        self.make, self.n = make, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i >= self.n:
            raise IndexError(i)
        return self.make(i)


class Stream(IterableDataset):
    def __init__(self, make, n=N):
        self.make, self.n = make, n

    def __iter__(self):
        return (self.make(i) for i in range(self.n))


class Again:
    """No data set, no sequence: only an __iter__ that starts anew."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def pil(i):
    return Image.fromarray((X[i].permute(1, 2, 0).numpy() * 255).astype(np.uint8))


def read(source):
    batches = list(source)
    images = torch.cat([b["images"] for b in batches])
    labels = [b["labels"] for b in batches]
    return images, labels, batches


WITH_LABELS = {
    "data set of pairs": Items(lambda i: (X[i], int(Y[i]))),
    "data set of longer tuples": Items(lambda i: (X[i], Y[i], f"file {i}", {"more": 1})),
    "data set of dicts": Items(lambda i: {"pixel_values": X[i], "label": i}),
    "data set of arrays": Items(lambda i: (X[i].numpy(), np.int64(i))),
    "data set of doubles": Items(lambda i: (X[i].double(), Y[i])),
    "tensor data set": TensorDataset(X, Y),
    "subset": Subset(TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), list(range(N))),
    "subset of a subset": Subset(Subset(TensorDataset(X.flip(0), Y.flip(0)), range(N)), range(N - 1, -1, -1)),
    "tuple of tensors": (X, Y),
    "list of tensors": [X, Y],
    "tuple of arrays": (X.numpy(), Y.numpy()),
    "dict of tensors": {"image": X, "label": Y},
    "list of pairs": [(X[i], i) for i in range(N)],
    "list of batches": [(X[:4], Y[:4]), (X[4:8], Y[4:8]), (X[8:], Y[8:])],
    "iterable data set": Stream(lambda i: (X[i], i)),
    "iterable data set of batches": Stream(lambda i: (X[i : i + 1], Y[i : i + 1])),
    "any iterable of batches": Again([(X[:5], Y[:5]), (X[5:], Y[5:])]),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=3),
    "loader of dicts": DataLoader(Items(lambda i: {"x": X[i], "y": i}), batch_size=4),
    "loader with a batch sampler": DataLoader(
        TensorDataset(X, Y), batch_sampler=BatchSampler(SequentialSampler(range(N)), 4, False)
    ),
    "loader without batches": DataLoader(TensorDataset(X, Y), batch_size=None),
    "loader of a stream": DataLoader(Stream(lambda i: (X[i], i)), batch_size=4),
    "loader that lists its samples": DataLoader(Items(lambda i: (X[i], i)), batch_size=4, collate_fn=list),
    "loader that transposes": DataLoader(
        Items(lambda i: (X[i], i)), batch_size=4, collate_fn=lambda b: list(zip(*b, strict=True))
    ),
    "loader that transposes into a tuple": DataLoader(
        Items(lambda i: (X[i], i)), batch_size=2, collate_fn=lambda b: tuple(zip(*b, strict=True))
    ),
}

WITHOUT_LABELS = {
    "tensor": X,
    "array": X.numpy(),
    "read-only array": np.frombuffer(X.numpy().tobytes(), dtype=np.float32).reshape(X.shape),
    "list of images": list(X),
    "tuple of images": tuple(X),
    "data set of images": Items(lambda i: X[i]),
    "tensor data set": TensorDataset(X),
    "loader": DataLoader(X, batch_size=4),
    "iterable": Again(list(X)),
    "dict": {"images": X},
    "dict items": Items(lambda i: {"img": X[i]}),
    "targets that are no labels": Items(lambda i: (X[i], object())),
}


@pytest.mark.parametrize("data", WITH_LABELS.values(), ids=WITH_LABELS.keys())
def test_every_kind_of_labelled_data_gives_the_same_images(data):
    source = BatchSource(data, 4)
    for _ in range(2):
        images, labels, batches = read(source)
        assert images.dtype == torch.float32
        assert torch.equal(images, X)
        assert torch.equal(torch.cat(labels).long(), Y)
        assert all(b["images"].shape[1:] == (3, 8, 8) for b in batches)
    assert source.has_labels
    assert source.label_names == ()
    assert source.image_shape == (3, 8, 8)
    assert source.length in (N, None)


@pytest.mark.parametrize("data", WITHOUT_LABELS.values(), ids=WITHOUT_LABELS.keys())
def test_labels_are_never_needed(data):
    source = BatchSource(data, 4)
    images, labels, _ = read(source)
    assert torch.equal(images, X)
    assert not any(label is not None for label in labels)
    assert not source.has_labels


@pytest.mark.parametrize("kind", ["items", "pairs", "list", "stream", "dict", "loader"])
def test_pillow_images_are_converted(kind):
    data = {
        "items": Items(pil),
        "pairs": Items(lambda i: (pil(i), i)),
        "list": [pil(i) for i in range(N)],
        "stream": Stream(lambda i: (pil(i), i)),
        "dict": Items(lambda i: {"image": pil(i), "label": i}),
        "loader": DataLoader(Items(lambda i: (pil(i), i)), batch_size=4, collate_fn=list),
    }[kind]
    source = BatchSource(data, 4)
    images, _, _ = read(source)
    assert (images - X).abs().max() < 1 / 255 + 1e-6
    assert source.notes == ["Pillow images were converted to [0, 1]."]
    assert source.has_labels == (kind not in ("items", "list"))


def test_bytes_are_divided_by_255_and_said_so():
    source = BatchSource((X * 255).round().to(torch.uint8), 4)
    images, _, _ = read(source)
    assert (images - X).abs().max() <= 0.5 / 255 + 1e-6
    assert source.source_dtype == torch.uint8
    assert source.notes == ["uint8 images were divided by 255."]


def test_the_users_memory_is_not_written_to():
    bytes_ = (X * 255).to(torch.uint8)
    before = bytes_.clone()
    list(BatchSource(bytes_, 4))
    assert torch.equal(bytes_, before)


def test_grey_images_stay_grey():
    assert BatchSource(X[:, :1]).image_shape == (1, 8, 8)


def test_positions_are_known_for_what_has_an_order():
    for data in (X, TensorDataset(X, Y), Items(lambda i: X[i]), DataLoader(X, batch_size=3)):
        index = torch.cat([b["index"] for b in BatchSource(data, 4)])
        assert torch.equal(index, Y)
    for data in (DataLoader(Stream(lambda i: X[i]), batch_size=3), Stream(lambda i: X[i])):
        assert all(b["index"] is None for b in BatchSource(data, 4))


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (X, N),
        (DataLoader(X, batch_size=3), N),
        (DataLoader(X, batch_size=3, drop_last=True), 9),
        (DataLoader(X, batch_size=3, shuffle=True), N),
        (DataLoader(X, batch_size=3, sampler=RandomSampler(X, num_samples=7)), 7),
        (DataLoader(X, batch_sampler=BatchSampler(SequentialSampler(X), 4, False)), None),
        (Stream(lambda i: X[i]), None),
        (Again(list(X)), None),
    ],
)
def test_the_number_of_images_is_known_or_said_not_to_be(data, length):
    source = BatchSource(data, 4)
    assert source.length == length
    if length is None:
        with pytest.raises(TypeError, match="not known before they are read"):
            len(source)
    else:
        assert len(source) == length == len(read(source)[0])
    assert source


def test_a_limit_cuts_each_pass():
    for data in (X, DataLoader(X, batch_size=4), Stream(lambda i: X[i])):
        source = BatchSource(data, 4, limit=6)
        assert len(read(source)[0]) == 6
        assert source.length in (6, None)
    nested = BatchSource(BatchSource(X, 4, limit=6), 2)
    assert [len(b["images"]) for b in nested] == [2, 2, 2]
    assert len(nested) == 6


def test_the_first_images_come_with_labels_and_positions():
    source = BatchSource(TensorDataset(X, Y), 4)
    assert torch.equal(source.first(6), X[:6])
    batch = source.take(7)
    assert torch.equal(batch["labels"], Y[:7])
    assert torch.equal(batch["index"], Y[:7])
    assert len(source.first(99)) == N


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_images_are_read_once(workers):
    starts = []

    class Counted(DataLoader):
        def __iter__(self):
            starts.append(1)
            return super().__iter__()

    source = BatchSource(Counted(TensorDataset(X, Y), batch_size=4, num_workers=workers))
    source.check()
    for n in (2, 99, 5):
        assert torch.equal(source.take(n)["labels"], Y[:n])
    assert len(starts) == 1
    assert len(read(source)[0]) == N


def test_few_large_images_are_kept(monkeypatch):
    monkeypatch.setattr("posthoc_inn.images.batches.KEPT", 3 * X[0].nbytes)
    source = BatchSource(X, 4).check()
    assert [len(source.first(n)) for n in (2, 3, 7, 99)] == [2, 3, 7, N]
    assert torch.equal(source.first(7), X[:7])


def test_several_labels_keep_their_names():
    colors = torch.rand(N, 3)
    for data in (
        Items(lambda i: (X[i], {"digit": i, "color": colors[i], "file": "a.png"})),
        DataLoader(Items(lambda i: (X[i], {"digit": i, "color": colors[i], "file": "a"})), batch_size=4),
        Items(lambda i: {"image": X[i], "digit": i, "color": colors[i], "file": "a.png"}),
        {"image": X, "label": {"digit": Y, "color": colors, "file": ["a"] * N}},
    ):
        source = BatchSource(data, 4).check()
        assert source.label_names == ("digit", "color")
        labels = source.take(N)["labels"]
        assert torch.equal(labels["digit"], Y)
        torch.testing.assert_close(labels["color"], colors)
        assert any("file" in n for n in source.notes)


def test_columns_of_labels_are_told_apart_from_rows():
    data = Items(lambda i: (X[i], (i, torch.tensor([i, i + 1]))))
    loader = DataLoader(data, batch_size=2)
    labels = BatchSource(loader).take(N)["labels"]
    assert torch.equal(labels["label_0"], Y)
    assert torch.equal(labels["label_1"], torch.stack([Y, Y + 1], 1))
    rows = BatchSource(Items(lambda i: (X[i], torch.tensor([i, -i]))), 2).take(4)["labels"]
    assert torch.equal(rows, torch.stack([Y[:4], -Y[:4]], 1))


def test_targets_that_are_no_labels_are_left_out_and_said_so():
    boxes = Items(lambda i: (X[i], torch.zeros(i + 1, 4)))
    source = BatchSource(boxes, 4).check()
    assert not source.has_labels
    assert source.notes == ["Labels left out because they are not one number or vector an image."]


def test_a_data_set_that_fetches_many_is_asked_for_many():
    class Many(Items):
        asked = 0

        def __getitems__(self, rows):
            self.asked += 1
            return [(X[i], i) for i in rows]

    data = Many(lambda i: None)
    assert torch.equal(read(BatchSource(data, 4))[0], X)
    assert data.asked == 3


# ---- randomness


def augmented(i):
    return X[i] + torch.rand(()) + float(np.random.rand()) + random.random()


@pytest.mark.parametrize("wrap", ["items", "loader", "workers"])
def test_augmentation_is_reproducible_and_the_global_generators_are_left_alone(wrap):
    data = Items(augmented)
    if wrap != "items":
        data = DataLoader(data, batch_size=5, shuffle=True, num_workers=int(wrap == "workers"))
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    one, two = BatchSource(data, 5, seed=1), BatchSource(data, 5, seed=1)
    first, second = read(one)[0], read(one)[0]
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()
    assert random.getstate() == state[2]
    torch.manual_seed(99)
    assert torch.equal(read(two)[0], first)
    assert not torch.equal(first, second)
    if wrap != "workers":
        assert not torch.equal(read(BatchSource(data, 5, seed=2))[0], first)
        same = [torch.cat([b["images"] for b in one.batches(draw=7)]) for _ in range(2)]
        assert torch.equal(*same)


def test_the_callers_generators_are_left_alone_between_batches_and_on_errors():
    def broken(i):
        torch.rand(3)
        if i == 6:
            raise KeyError("in the user's code")
        return X[i]

    state = torch.get_rng_state()
    batches = iter(BatchSource(Items(broken), 2))
    next(batches)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(KeyError, match="in the user's code"):
        list(batches)
    assert torch.equal(torch.get_rng_state(), state)


# ---- what cannot be used, said before anything is trained


def nan_images():
    x = X.clone()
    x[3, 0, 0, :2] = torch.nan
    x[5, 1, 1, 1] = torch.inf
    return x


BAD = [
    ("channels last", torch.rand(N, 8, 8, 3), r"permute\(0, 3, 1, 2\)"),
    (
        "channels last, transparent",
        torch.rand(N, 8, 8, 4),
        r"permute\(0, 3, 1, 2\), and leave out transparency",
    ),
    (
        "channels last array",
        (np.random.default_rng(0).random((N, 8, 8, 3)), np.arange(N)),
        r"permute\(0, 3, 1, 2\)",
    ),
    ("channels last items", Items(lambda i: X[i].permute(1, 2, 0).numpy()), r"permute\(0, 3, 1, 2\)"),
    (
        "four channels",
        torch.rand(N, 4, 8, 8),
        r"If the fourth is transparency, leave it out: images\[:, :3\]",
    ),
    ("many channels", torch.rand(N, 13, 8, 8), "13 channels"),
    ("no channel", torch.rand(N, 8, 8), r"need a channel: images\[:, None\]"),
    ("no channel in a loader", DataLoader(TensorDataset(X[:, 0]), batch_size=4), r"images\[:, None\]"),
    ("vectors", torch.rand(N, 64), "reshape vectors"),
    ("videos", torch.rand(N, 3, 2, 8, 8), "cut into pictures"),
    ("no images", X[:0], "holds no images; at least 2"),
    ("no items", [], "holds no images; at least 2"),
    ("one image", X[:1], "holds 1 image; at least 2"),
    ("no pixels", torch.rand(N, 3, 0, 8), "are empty"),
    ("complex", X + 0j, "complex64"),
    ("bool", X > 0.5, "torch.bool"),
    ("whole numbers", (X * 255).long(), r"int64.*images\.to\(torch\.uint8\)"),
    (
        "not finite",
        DataLoader(nan_images(), batch_size=N),
        r"2 values are NaN and 1 infinite among the 1920 .* in 2 of its 10 images \(first: image 3\)",
    ),
    ("all black", torch.zeros(N, 3, 8, 8), r"first 10 images are all the same, every value 0;"),
    ("all the same", X[:1].expand(N, -1, -1, -1), r"first 10 images are all the same; look at"),
    (
        "ragged items",
        Items(lambda i: torch.rand(3, 8 + i % 2, 8)),
        r"differ in size: \(3, 8, 8\) and \(3, 9, 8\)",
    ),
    ("ragged list", [torch.rand(3, 8 + i, 8) for i in range(4)], "differ in size.*Resize"),
    ("ragged batches", [torch.rand(2, 3, 8 + i, 8) for i in range(4)], "the first batch and batch 1"),
    (
        "ragged loader",
        DataLoader(Items(lambda i: torch.rand(3, 8 + i, 8)), batch_size=4),
        "cannot stack them; resize",
    ),
    (
        "ragged loader with workers",
        DataLoader(Items(lambda i: torch.rand(3, 8 + i, 8)), batch_size=4, num_workers=1),
        "cannot stack them; resize",
    ),
    (
        "grey among colour",
        Items(lambda i: pil(i).convert("L") if i == 3 else pil(i)),
        r"differ in channels.*convert\('RGB'\)",
    ),
    ("Pillow images in a loader", DataLoader(Items(pil), batch_size=4), "ToTensor"),
    ("mixed dtypes", Items(lambda i: X[i] if i else X[i].double()), "mixes torch.float64 and torch.float32"),
    (
        "unknown keys",
        Items(lambda i: {"picture": X[i], "name": "a"}),
        r"keys 'picture', 'name'.*rename one to 'image'",
    ),
    ("a dict of splits", {"train": X, "test": X}, "got the keys 'train', 'test'"),
    ("file names", ["a.png", "b.png"], r"holds str 'a\.png' where an image is expected.*load_image_files"),
    ("a path", "folder", r"ImageFiles\(folder, size=64\)"),
    ("nothing", None, "got None"),
    ("a number", 3, "got int"),
    ("a generator", (x for x in X), "generator can be read only once"),
    ("an iterator", iter([X[:4], X[4:]]), "can be read only once"),
    ("a zip", zip(X, Y, strict=True), "zip can be read only once"),
    ("None items", Items(lambda i: None), "NoneType None where an image is expected"),
    ("empty tuples", Items(lambda i: ()), "yields empty tuples"),
    ("objects", Items(lambda i: object()), "where an image is expected"),
    ("batches as items", Items(lambda i: X[:2]), r"DataLoader\(data, batch_size=None\)"),
]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        # torch itself takes 5 s to put a loader's worker away after an error in it
        pytest.param(*b[1:], id=b[0], marks=[pytest.mark.slow] * ("workers" in b[0]))
        for b in BAD
    ],
)
def test_what_cannot_be_used_is_refused_with_advice(data, match):
    with pytest.raises(DataError, match=match):
        BatchSource(data, 4).check()


def test_a_bad_batch_far_into_the_data_is_found_when_it_is_read():
    x = torch.rand(200, 1, 4, 4)
    x[150] = torch.nan
    source = BatchSource(x, 20).check()
    with pytest.raises(DataError, match=r"16 values are NaN .* of batch 7, in 1 of its 20 images \(first: image 10\)"):
        list(source)


def test_an_iterable_that_hands_out_the_same_iterator_is_refused():
    class Once:
        def __init__(self):
            self.iterator = iter(list(X))

        def __iter__(self):
            return self.iterator

    with pytest.raises(DataError, match="Once can be read only once"):
        BatchSource(Once(), 4)


def test_an_iterable_that_runs_dry_is_noticed_on_the_next_pass():
    class Dry:
        def __init__(self):
            self.items = list(X)

        def __iter__(self):
            while self.items:
                yield self.items.pop()

    source = BatchSource(Dry(), 16).check()
    with pytest.raises(DataError, match="none on a later pass"):
        list(source)


def test_a_data_set_without_length_is_refused():
    class NoLength(Dataset):
        def __getitem__(self, i):
            return X[i]

    with pytest.raises(DataError, match="NoLength has no __len__"):
        BatchSource(NoLength())


def test_all_argument_problems_are_listed_together():
    with pytest.raises(ConfigError, match=r"batch_size must be .*0; limit must be .*1; seed must be"):
        BatchSource(X, 0, limit=1, seed=-1)


def test_two_equal_images_at_the_start_are_no_reason_to_stop():
    assert BatchSource(torch.cat([X[:1], X[:1], X]), 2).check()


def test_wrapped_tensor_types_become_plain():
    class Wrapped(torch.Tensor):
        pass

    images = next(iter(BatchSource(X.as_subclass(Wrapped), 4)))["images"]
    assert type(images) is torch.Tensor
    assert not images.requires_grad


def test_images_that_ask_for_gradients_are_detached():
    assert not next(iter(BatchSource(X.clone().requires_grad_(), 4)))["images"].requires_grad


# ---- what leaves images out, and what has no end


def leaving_out(dropped):
    """A collate function that leaves out images, as one does that drops unreadable ones."""

    def collate(items):
        kept = [item for item in items if item[1] not in dropped]
        return default_collate(kept) if kept else None

    return collate


@pytest.mark.parametrize("dropped", [{0, 1, 2}, {3, 4, 5}, {9}, {0, 1, 2, 3, 4, 5, 8}])
def test_batches_of_which_nothing_is_left_are_passed_over(dropped):
    loader = DataLoader(Items(lambda i: (X[i], i)), batch_size=3, collate_fn=leaving_out(dropped))
    images, labels, batches = read(BatchSource(loader).check())
    kept = [i for i in range(N) if i not in dropped]
    assert torch.equal(images, X[kept])
    assert torch.cat([b["index"] for b in batches]).tolist() == kept == torch.cat(labels).tolist()


def test_a_stream_may_yield_batches_without_images():
    batches = [(X[:0], Y[:0]), (X[:4], Y[:4]), (X[:0], Y[:0]), (X[4:], Y[4:])]
    assert torch.equal(read(BatchSource(Again(batches)).check())[0], X)
    dropping = DataLoader(Stream(lambda i: (X[i], i)), batch_size=2, collate_fn=leaving_out({2, 3}))
    assert read(BatchSource(dropping).check())[0].shape[0] == 8


def unreadable(n=N):
    return Items(lambda i: None, n)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (
            DataLoader(X, batch_size=64, drop_last=True),
            "leaves out all 10 images: drop_last=True drops a last batch of fewer than batch_size=64",
        ),
        (
            DataLoader(X, batch_sampler=BatchSampler(SequentialSampler(X), 11, True)),
            "leaves out all 10 images: .*batch_size=11",
        ),
        (DataLoader(Stream(lambda i: X[i]), batch_size=11, drop_last=True), "leaves out every image: drop_last=True"),
        (
            DataLoader(unreadable(), batch_size=4, collate_fn=lambda b: default_collate([i for i in b if i])),
            "no images, and 3 batches without any: the loader's collate function leaves them out",
        ),
        (
            DataLoader(Items(lambda i: (X[i], i)), batch_size=4, collate_fn=leaving_out(set(range(1, N)))),
            "holds 1 image, and 2 batches without any",
        ),
        (DataLoader(unreadable(), batch_size=4), "data set yields None where an image or a label is expected"),
    ],
)
def test_data_of_which_nothing_is_left_says_why(data, match):
    with pytest.raises(DataError, match=match):
        BatchSource(data, 4).check()


class Endless(IterableDataset):
    def __init__(self, length=None):
        self.length = length

    def __iter__(self):
        return (X[i % N] for i in itertools.count())


class Declared(Endless):
    def __len__(self):
        return self.length


class EndlessSampler(Sampler):
    def __iter__(self):
        return (i % N for i in itertools.count())


class Lying(EndlessSampler):
    def __len__(self):
        return N


ENDLESS = {
    "stream": (Endless(), 32, "more than 32 images, and does not tell how many"),
    "loader of a stream": (DataLoader(Endless(), batch_size=4), 32, "more than 32 images"),
    "loader of batches": (DataLoader(Endless(), batch_size=None), 32, "more than 32 images"),
    "empty batches": (DataLoader(Endless(), batch_size=4, collate_fn=lambda b: None), 0, "more than 32 images"),
    "stream that says how many": (Declared(7), 7, "more than the 7 items that it says it holds"),
    "loader of such a stream": (DataLoader(Declared(8), batch_size=4), 8, "more than the 2 batches"),
    "sampler": (DataLoader(X, batch_size=4, sampler=EndlessSampler()), 12, "sampler of the loader gives more than 10"),
    "sampler that says how many": (DataLoader(X, batch_size=2, sampler=Lying()), N, "gives more than 10 items"),
    "batch sampler": (DataLoader(X, batch_sampler=BatchSampler(EndlessSampler(), 5, False)), N, "gives more than 10"),
}


@pytest.mark.parametrize(("data", "count", "told"), ENDLESS.values(), ids=ENDLESS)
def test_a_pass_over_data_without_an_end_ends(data, count, told, monkeypatch):
    monkeypatch.setattr("posthoc_inn.images.opening.STREAM", 32)
    source = BatchSource(data, 4)
    with pytest.warns(PosthocInnWarning, match=told):
        images = [b["images"] for b in source.batches()]
    assert sum(len(part) for part in images) == count
    if count:  # told once, and not where a limit was set
        assert sum(len(b["images"]) for b in source.batches()) == count
        assert sum(len(b["images"]) for b in BatchSource(data, 4, limit=3)) == 3


def test_samplers_that_give_images_more_often_than_once_are_read_to_their_end():
    often = RandomSampler(X, replacement=True, num_samples=3 * N)
    assert len(read(BatchSource(DataLoader(X, batch_size=4, sampler=often)))[0]) == 3 * N
    pairs = DataLoader(X, batch_size=4, collate_fn=lambda items: torch.cat([torch.stack(items)] * 2))
    assert len(read(BatchSource(pairs))[0]) == 2 * N
