"""What users keep their images in, opened: how many there are, and a pass over them in raw batches."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, default_collate, default_convert

from posthoc_inn.errors import DataError, listed, quoted
from posthoc_inn.images.convert import IMAGE_KEYS, Sample, as_tensor, collate, find_parts, read_sample, take_apart
from posthoc_inn.images.numbering import STREAM, Numbered, is_empty, numbered, tell_rest
from posthoc_inn.images.randomness import PrivateRandomness

Raw = Iterator[tuple["Sample | None", "Tensor | None"]]
"""Raw batches with the positions (B,) of their images, or None where these are not known; None for an empty batch."""


@dataclass(frozen=True)
class Opened:
    """Data that can be read.

    Attributes:
        length: Images a pass, where that is known.
        most: Images at which a pass ends, even if the data goes on; None where it has an end of its own.
        read: Starts a pass.
    """

    length: int | None
    most: int | None
    read: Callable[[], Raw]


def open_data(data: Any, batch_size: int) -> Opened:
    """Find out how many images `data` holds, and how they are read.

    Args:
        data: What the user gave; see `BatchSource`.
        batch_size: Images a batch, where the data brings no batches of its own.

    Raises:
        DataError: `data` is nothing that can be read more than once.
    """
    if isinstance(data, (str, bytes, os.PathLike)) or data is None:
        raise DataError(
            f"Data must be a DataLoader, a Dataset, a tensor or a list of images, got {quoted(data)}; for a file "
            f"or folder use ImageFiles(folder, size=64) or load_image_files(paths)."
        )
    arrays = _as_arrays(data)
    if arrays is not None:
        images, labels, rows, note = arrays
        images = as_tensor(images, where="the data") if isinstance(images, Tensor) else images
        if images.ndim == 0:
            raise DataError(f"Data must be images (N, C, H, W), got one number: {images!r}.")
        count = len(images) if rows is None else len(rows)
        return Opened(count, None, lambda: _array_batches((images, labels), rows, batch_size, note))
    if isinstance(data, DataLoader):
        return _open_loader(data, batch_size)
    if hasattr(data, "__next__"):
        raise DataError(_only_once(data))
    is_stream = isinstance(data, IterableDataset) or not hasattr(data, "__getitem__")
    if not is_stream and isinstance(data, (list, tuple)) and data and _is_ready_batch(data[0]):
        is_stream = True
    if is_stream:
        if not isinstance(data, Iterable):
            raise DataError(
                f"Data must be a DataLoader, a Dataset, a tensor or a list of images, got {type(data).__name__}."
            )
        with PrivateRandomness(0):  # an __iter__ may draw its order at once
            is_same = iter(data) is iter(data)
        if is_same:
            raise DataError(_only_once(data))
        is_counted = isinstance(data, IterableDataset) and isinstance(data, Sized)
        length = len(data) if is_counted else None  # type: ignore[arg-type]
        most, ending = STREAM if length is None else None, _Ending(length, "items")
        return Opened(length, most, lambda: _rebatch(ending.cut((item, None) for item in data), batch_size))
    if isinstance(data, Mapping):
        raise DataError(
            f"A dict of data must hold the images as one tensor or array under one of "
            f"{', '.join(IMAGE_KEYS)}; got the keys {listed([repr(k) for k in data])}."
        )
    if not hasattr(data, "__len__"):
        raise DataError(f"The data set {type(data).__name__} has no __len__; add one, or make it an IterableDataset.")
    return Opened(len(data), None, lambda: _dataset_batches(data, batch_size))


def _only_once(data: Any) -> str:
    return (
        f"Data of the type {type(data).__name__} can be read only once, but several passes are needed; pass "
        f"a Dataset, a DataLoader, list(...) of it, or an object whose __iter__ starts anew."
    )


def _is_ready_batch(sample: Any) -> bool:
    images = take_apart(sample)[0] if isinstance(sample, (tuple, list, Mapping)) and sample else sample
    return isinstance(images, (Tensor, np.ndarray)) and images.ndim == 4


def _as_arrays(data: Any) -> tuple[Any, Any, Tensor | None, str | None] | None:
    """Return images, labels, the chosen rows (None: all) and a note where the data lies in memory as a whole."""
    rows: Tensor | None = None
    while isinstance(data, Subset):
        chosen = torch.as_tensor(np.asarray(data.indices), device="cpu").long().reshape(-1)
        rows = chosen if rows is None else chosen[rows]
        data = data.dataset
    if isinstance(data, TensorDataset):
        # type() keeps subclasses with a __getitem__ of their own on the slow path.
        if type(data) is not TensorDataset:
            return None
        return _parts(data.tensors, rows)
    if isinstance(data, (Tensor, np.ndarray)):
        return data, None, rows, None
    if isinstance(data, Mapping) and not any(k in data for k in IMAGE_KEYS):
        return None
    if isinstance(data, (tuple, list, Mapping)) and data:
        images, labels = take_apart(data)
        note = find_parts(data)[2] if isinstance(data, (tuple, list)) else None
        whole = isinstance(images, (Tensor, np.ndarray)) and (images.ndim == 4 or isinstance(data, Mapping))
        has_batch = isinstance(labels, (Tensor, np.ndarray)) and labels.ndim == 4
        is_pair = len(data) == 2 and labels is not None and not has_batch
        if whole and (is_pair or isinstance(data, Mapping)):
            return images, labels, rows, note
    return None


def _parts(tensors: Sequence[Tensor], rows: Tensor | None) -> tuple[Any, Any, Tensor | None, str | None]:
    image, label, note = find_parts(tensors)
    if tensors[image].ndim <= 1:
        read_sample(tuple(tensors), where="the data")  # raises, naming each part
    return tensors[image], None if label is None else tensors[label], rows, note


def _array_batches(arrays: tuple[Any, Any], rows: Tensor | None, batch_size: int, note: str | None) -> Raw:
    images, labels = arrays
    count = len(images) if rows is None else len(rows)
    named = labels if isinstance(labels, Mapping) else {"": labels}
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        index = torch.arange(start, stop, device="cpu")
        key: Any = slice(start, stop) if rows is None else rows[start:stop]
        part = images[key if isinstance(images, Tensor) or rows is None else key.numpy()]
        cut = {k: _label_rows(v, key) for k, v in named.items()}
        found = cut if isinstance(labels, Mapping) else cut[""]
        sample = Sample(as_tensor(part, where="the data"), found, True, (note,) if note else ())
        yield sample, index


def _label_rows(labels: Any, key: Any) -> Any:
    """Return the labels of some rows; text, which is never a label, where they have no such rows."""
    if labels is None:
        return None
    try:
        return labels[key] if isinstance(labels, Tensor) or isinstance(key, slice) else np.asarray(labels)[key.numpy()]
    except (TypeError, ValueError, LookupError, RuntimeError):
        return ""


def _open_loader(loader: DataLoader[Any], batch_size: int) -> Opened:
    start, length = numbered(loader), _loader_length(loader)
    try:
        count = len(copy.copy(loader))  # batches; a loader of a stream that was asked warns of others later
    except (TypeError, NotImplementedError):
        count = None
    if not isinstance(loader.dataset, IterableDataset):
        known = len(loader.dataset) if hasattr(loader.dataset, "__len__") else 0
        most = None if count is not None else max(STREAM, known)
        return Opened(length, most, lambda: _loader_batches(loader, start(), batch_size))
    most = STREAM if count is None else None
    # Each worker may read the whole stream.
    unit = "items" if loader.batch_sampler is None else "batches"
    ending = _Ending(None if count is None else count * max(1, loader.num_workers), unit)
    return Opened(length, most, lambda: _loader_batches(loader, ending.cut(start()), batch_size))


class _Ending:
    """Ends each pass after as many items as the data says it holds, and warns, once, if it goes on.

    Args:
        count: Their number; None where the data does not tell it.
        unit: What they are.
    """

    def __init__(self, count: int | None, unit: str) -> None:
        self.count, self.unit, self._is_told = count, unit, False

    def cut(self, items: Numbered) -> Numbered:
        """Yield the first ones of `items`."""
        for i, item in enumerate(items):
            if i == self.count:
                if not self._is_told:
                    self._is_told = True
                    what = f"The data yields more than the {self.count:,} {self.unit} that it says it holds"
                    tell_rest(what, "If it ends, correct its __len__.")
                return
            yield item


def _loader_length(loader: DataLoader[Any]) -> int | None:
    """Count a loader's images, those of a dropped last batch left out."""
    counted: Any = loader.dataset if isinstance(loader.dataset, IterableDataset) else loader.sampler
    if loader.batch_size is None:
        return None
    try:
        count = len(counted)
    except (TypeError, NotImplementedError):
        return None
    return count // loader.batch_size * loader.batch_size if loader.drop_last else count


def dropped_last(data: Any) -> str:
    """Say that a loader leaves all images out for want of a whole batch; "" where that is not so."""
    sampler = getattr(data, "batch_sampler", None)
    size = getattr(sampler, "batch_size", None)
    if not isinstance(data, DataLoader) or not getattr(sampler, "drop_last", False) or size is None:
        return ""
    counted: Any = data.dataset if isinstance(data.dataset, IterableDataset) else getattr(sampler, "sampler", None)
    try:
        count = len(counted)
    except (TypeError, NotImplementedError):
        count = None
    if count is not None and count >= size:
        return ""
    those = "every image" if count is None else f"all {count:,} images" if count != 1 else "its only image"
    return (
        f"The loader leaves out {those}: drop_last=True drops a last batch of fewer than batch_size={size}, and there "
        "is no other. Pass drop_last=False, or a smaller batch_size."
    )


def _loader_batches(loader: DataLoader[Any], batches: Numbered, batch_size: int) -> Raw:
    explained = _explained(batches)
    may_leave_out = loader.collate_fn not in (default_collate, default_convert)
    if loader.batch_sampler is None:
        yield from _rebatch(explained, batch_size, may_leave_out=may_leave_out)
        return
    for i, (raw, given) in enumerate(explained):
        if may_leave_out and is_empty(raw):
            yield None, None
            continue
        sample = read_sample(raw, where=f"batch {i}", expect_batch=True)
        yield sample, _index(sample, given)


def _index(sample: Sample, given: list[int] | None) -> Tensor | None:
    """Return the positions of a batch's images; -1 each where they cannot be told."""
    if given is None:
        return None
    count = len(sample.images) if sample.is_batch else 1
    return torch.tensor(given, device="cpu") if len(given) == count else torch.full((count,), -1, device="cpu")


def _explained(batches: Numbered) -> Numbered:
    """Yield what a loader yields; what PyTorch's default_collate cannot stack is said in words."""
    try:
        yield from batches
    except RuntimeError as error:
        if "stack expects each tensor to be equal size" in str(error) or "resize storage" in str(error):
            raise DataError(
                "The loader's images differ in size or channels, so that it cannot stack them; resize them "
                "to one size, for example with torchvision.transforms.Resize((64, 64)), and convert all to "
                "colour or all to grey."
            ) from error
        raise
    except TypeError as error:
        if "default_collate" in str(error) and "PIL" in str(error):
            raise DataError(
                "The loader's data set yields Pillow images, which it cannot stack; add "
                "torchvision.transforms.ToTensor() to its transform, or pass the data set itself."
            ) from error
        if "default_collate" in str(error) and "NoneType" in str(error):
            raise DataError(
                "The loader's data set yields None where an image or a label is expected, which the loader cannot "
                "stack; leave such items out of the data set, or with a collate_fn of your own."
            ) from error
        raise


def _rebatch(samples: Numbered, batch_size: int, *, may_leave_out: bool = False) -> Raw:
    """Collect single images into batches; batches pass as they are."""
    waiting: list[tuple[Sample, Tensor | None]] = []
    for i, (raw, given) in enumerate(samples):
        if may_leave_out and is_empty(raw):
            yield None, None
            continue
        sample = read_sample(raw, where=f"item {i}")
        if sample.is_batch:
            if waiting:
                yield _stacked(waiting, where=f"the items before {i}")
                waiting = []
            yield sample, _index(sample, given)
            continue
        waiting.append((sample, _index(sample, given)))
        if len(waiting) == batch_size:
            yield _stacked(waiting, where=f"items {i + 1 - batch_size} to {i}")
            waiting = []
    if waiting:
        yield _stacked(waiting, where="the last items")


def _stacked(items: list[tuple[Sample, Tensor | None]], *, where: str) -> tuple[Sample, Tensor | None]:
    known = [index for _, index in items if index is not None]
    return collate([s for s, _ in items], where=where), torch.cat(known) if len(known) == len(items) else None


def _dataset_batches(data: Any, batch_size: int) -> Raw:
    fetch_many = getattr(data, "__getitems__", None)
    count = len(data)
    for start in range(0, count, batch_size):
        rows = list(range(start, min(start + batch_size, count)))
        where = f"items {rows[0]} to {rows[-1]}"
        raw = fetch_many(rows) if callable(fetch_many) else [data[i] for i in rows]
        yield collate([read_sample(r, where=where) for r in raw], where=where), torch.tensor(rows, device="cpu")
