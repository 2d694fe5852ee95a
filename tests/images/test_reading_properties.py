"""Whatever a data set yields is read as a batch of images or refused with DataError, and nothing else happens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from posthoc_inn.errors import DataError
from posthoc_inn.images import BatchSource
from posthoc_inn.images.convert import IMAGE_KEYS, LABEL_KEYS, as_labels, read_sample

few = settings(max_examples=100, deadline=None, derandomize=True)

SIDES = st.lists(st.sampled_from((0, 1, 2, 3, 4, 5)), max_size=5).map(tuple)
USUAL = st.sampled_from(((3, 5, 4), (1, 5, 4), (2, 3, 5, 4), (5, 4), (5, 4, 3)))
SHAPES = USUAL | USUAL | SIDES
TORCH_TYPES = st.sampled_from(
    (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64, torch.bool, torch.complex64)
)
NUMPY_TYPES = st.sampled_from(
    ("f4", "f2", "f8", ">f4", "u1", "u2", "i8", "?", "c8", "O", "U3", "M8[s]", [("r", "u1"), ("g", "u1")])
)
MODES = st.sampled_from(("L", "RGB", "RGBA", "P", "1", "I", "I;16", "F", "CMYK", "LA", "YCbCr"))


def tensor(shape, dtype, value):
    pixels = torch.linspace(0, 1, max(1, int(np.prod(shape))))[: int(np.prod(shape))].reshape(shape)
    made = (pixels * (255 if dtype == torch.uint8 else 1)).to(dtype)
    if value is not None and made.is_floating_point() and made.numel():
        made.view(-1)[0] = value
    return made


def odd(made, kind):
    """The same tensor in one of the guises in which torch keeps them."""
    if kind == "sparse":
        return made.to_sparse()
    if kind == "meta":
        return made.to("meta")
    if kind == "gradient" and made.is_floating_point():
        return made.requires_grad_()
    if kind == "nested" and made.is_floating_point() and made.ndim > 1 and len(made):
        return torch.nested.as_nested_tensor([made[0], made[0]], layout=torch.jagged)
    if kind == "strided" and made.ndim:
        return made.expand(*made.shape).flip(0).transpose(0, -1).transpose(0, -1)
    return made


def array(shape, dtype, kind):
    made = np.zeros(shape, dtype=dtype)
    if kind == "masked":
        return np.ma.masked_array(made)
    if kind == "backwards" and made.ndim:
        return made[::-1]
    if kind == "locked":
        made.flags.writeable = False
    return made


TENSORS = st.builds(
    odd,
    st.builds(tensor, SHAPES, TORCH_TYPES, st.sampled_from((None, None, 2.0, -1.0, float("nan"), float("inf")))),
    st.sampled_from(("plain", "plain", "plain", "sparse", "meta", "gradient", "nested", "strided")),
)
ARRAYS = st.builds(array, SHAPES, NUMPY_TYPES, st.sampled_from(("plain", "plain", "masked", "backwards", "locked")))
PICTURES = st.builds(lambda mode, w, h: Image.new(mode, (w, h)), MODES, st.integers(1, 5), st.integers(1, 5))
OTHERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=4)
GOOD = st.builds(
    lambda value, dtype: (torch.full((3, 5, 4), value) * (255 if dtype == torch.uint8 else 1)).to(dtype),
    st.sampled_from((0.0, 0.25, 1.0)),
    st.sampled_from((torch.uint8, torch.float32, torch.float32, torch.float16)),
)
LEAVES = (
    GOOD
    | GOOD.map(lambda t: t.numpy())
    | GOOD.map(lambda t: torch.stack([t, 1 - t]))
    | TENSORS
    | ARRAYS
    | PICTURES
    | OTHERS
    | st.just(object())
    | st.just({1, 2})
    | st.just(range(3))
)
KEYS = st.sampled_from((*IMAGE_KEYS, *LABEL_KEYS, "other")) | st.integers(0, 2)
LABELLED = st.builds(lambda image, label: (image, label), GOOD, LEAVES) | st.builds(
    lambda image, key, label: {"image": image, key: label}, GOOD, KEYS, LEAVES
)
SAMPLES = LABELLED | st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=6,
)


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def as_it_is(sample):
    return sample


def check_batches(source):
    """Read two batches, and hold them to what `Batch` promises."""
    for number, batch in enumerate(source):
        images, labels = batch["images"], batch["labels"]
        assert (images.dtype, images.ndim) == (torch.float32, 4)
        assert images.shape[1] in (1, 3)
        assert len(images)
        assert (images.layout, images.device.type, images.requires_grad) == (torch.strided, "cpu", False)
        assert bool(torch.isfinite(images).all())
        named = labels if isinstance(labels, dict) else {} if labels is None else {"": labels}
        assert all(isinstance(v, Tensor) and len(v) == len(images) for v in named.values())
        if number:
            break


@few
@given(st.lists(SAMPLES, max_size=3) | SAMPLES.map(lambda s: [s, s]), st.sampled_from(("items", "list", "loader")))
def test_a_data_set_of_anything_is_read_or_refused(items, way):
    data = {
        "items": Items,
        "list": list,
        "loader": lambda i: DataLoader(Items(i), batch_size=None, collate_fn=as_it_is),
    }[way](items)
    try:
        check_batches(BatchSource(data, batch_size=2))
    except DataError as error:
        message = str(error)
    else:
        return
    assert 20 < len(message) < 1000


@few
@given(SAMPLES)
def test_anything_given_as_data_is_read_or_refused(data):
    try:
        check_batches(BatchSource(data, batch_size=2))
    except DataError:
        return


@few
@given(SAMPLES, st.booleans())
def test_a_sample_of_anything_has_images_and_labels_or_is_refused(raw, expect_batch):
    try:
        sample = read_sample(raw, where="item 0", expect_batch=expect_batch)
    except DataError:
        return
    assert type(sample.images) is Tensor
    if sample.is_batch and sample.images.ndim:
        labels, note = as_labels(sample)
        assert labels is None or len(labels)
        assert note is None or note.startswith("Labels left out")


@few
@given(
    st.lists(st.integers(0, 255), min_size=2, max_size=5, unique=True),
    st.sampled_from(("tensor", "array", "picture")),
    st.sampled_from(("alone", "tuple", "dict", "long tuple")),
)
def test_what_can_be_read_is_read_right(values, kind, nesting):
    def sample(value, label):
        pixels = np.full((4, 5, 3), value, np.uint8)
        image = {
            "tensor": lambda: torch.from_numpy(pixels).permute(2, 0, 1),
            "array": lambda: pixels.transpose(2, 0, 1),
            "picture": lambda: Image.fromarray(pixels),
        }[kind]()
        return {
            "alone": image,
            "tuple": (image, label),
            "dict": {"image": image, "label": label},
            "long tuple": (image, label, "name"),
        }[nesting]

    source = BatchSource(Items([sample(v, i) for i, v in enumerate(values)]), batch_size=2)
    batch = source.take(len(values))
    expected = (torch.tensor(values) / 255).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 5)
    torch.testing.assert_close(batch["images"], expected)
    assert batch["index"].tolist() == list(range(len(values)))
    if nesting == "alone":
        assert batch["labels"] is None
    else:
        assert batch["labels"].tolist() == list(range(len(values)))


def test_the_strategies_make_what_is_read_and_what_is_refused():
    counts = {True: 0, False: 0}

    @few
    @given(SAMPLES)
    def count(sample):
        try:
            next(iter(BatchSource(Items([sample, sample]), batch_size=2)))
        except DataError:
            counts[False] += 1
        else:
            counts[True] += 1

    count()
    assert min(counts.values()) >= 10


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (None, "Items 0 to 1 holds NoneType None where an image is expected"),
        (torch.ones(3, 5, 4).to_sparse(), "Items 0 to 1 holds a tensor that is sparse; pass dense ones"),
        (torch.ones(3, 5, 4, device="meta"), r"without values \(on the meta device\)"),
        (
            np.ma.masked_less(np.linspace(0, 1, 60).reshape(3, 5, 4), 0.5),
            r"masked values; fill them, with array.filled",
        ),
    ],
)
def test_an_image_whose_values_are_not_all_there_is_refused_by_place(image, match):
    with pytest.raises(DataError, match=match):
        BatchSource(Items([image, image])).check()


def test_one_number_is_no_data_set():
    with pytest.raises(DataError, match=r"Data must be images \(N, C, H, W\), got one number"):
        BatchSource(torch.tensor(3.0))


def test_foreign_byte_order_is_read_as_what_it_means():
    images = np.linspace(0, 1, 120).reshape(2, 3, 5, 4)
    source = BatchSource(Items([(x.astype(">f4"), np.array(7 * i, ">i4")) for i, x in enumerate(images)]))
    batch = source.take(2)
    torch.testing.assert_close(batch["images"], torch.from_numpy(images).float())
    assert batch["labels"].tolist() == [0, 7]


@pytest.mark.parametrize("labels", [object(), torch.tensor(1), {1, 2}, "ab", {"a": torch.tensor(1)}, [1]])
def test_labels_that_have_no_row_for_each_image_are_left_out_and_said(labels):
    source = BatchSource({"image": torch.rand(4, 3, 5, 4), "label": labels}).check()
    assert not source.has_labels
    assert any(note.startswith("Labels left out") for note in source.notes)
