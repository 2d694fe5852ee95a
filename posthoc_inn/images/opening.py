"""What users keep their images in, opened: how many there are, and a pass over them in raw batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, Subset, TensorDataset

from posthoc_inn.errors import DataError, listed, quoted
from posthoc_inn.images.convert import IMAGE_KEYS, Sample, as_tensor, collate, find_parts, read_sample, take_apart
from posthoc_inn.images.randomness import PrivateRandomness

Reader = Callable[[], Iterator[tuple[Sample, "Tensor | None"]]]
"""Starts a pass: yields raw batches with the positions (B,) of their images, or None where these are not known."""


def open_data(data: Any, batch_size: int) -> tuple[int | None, Reader]:
    """Return how many images `data` holds, if known, and a function that starts a new pass.

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
        return len(images) if rows is None else len(rows), lambda: _array_batches(
            (images, labels), rows, batch_size, note
        )
    if isinstance(data, DataLoader):
        return _loader_length(data), lambda: _loader_batches(data, batch_size)
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
        return len(data) if is_counted else None, lambda: _rebatch(iter(data), batch_size)  # type: ignore[arg-type]
    if isinstance(data, Mapping):
        raise DataError(
            f"A dict of data must hold the images as one tensor or array under one of "
            f"{', '.join(IMAGE_KEYS)}; got the keys {listed([repr(k) for k in data])}."
        )
    if not hasattr(data, "__len__"):
        raise DataError(f"The data set {type(data).__name__} has no __len__; add one, or make it an IterableDataset.")
    return len(data), lambda: _dataset_batches(data, batch_size)


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
        chosen = torch.as_tensor(np.asarray(data.indices)).long().reshape(-1)
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


def _array_batches(
    arrays: tuple[Any, Any], rows: Tensor | None, batch_size: int, note: str | None
) -> Iterator[tuple[Sample, Tensor | None]]:
    images, labels = arrays
    count = len(images) if rows is None else len(rows)
    named = labels if isinstance(labels, Mapping) else {"": labels}
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        index = torch.arange(start, stop)
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


def _loader_batches(loader: DataLoader[Any], batch_size: int) -> Iterator[tuple[Sample, Tensor | None]]:
    is_ordered = isinstance(loader.sampler, SequentialSampler) and loader.batch_size is not None
    iterator = _explained(loader)
    if loader.batch_sampler is None:
        return _rebatch(iterator, batch_size)
    return _number((read_sample(s, where=f"batch {i}", expect_batch=True) for i, s in enumerate(iterator)), is_ordered)


def _number(samples: Iterator[Sample], is_ordered: bool) -> Iterator[tuple[Sample, Tensor | None]]:
    seen = 0
    for sample in samples:
        count = len(sample.images)
        yield sample, torch.arange(seen, seen + count) if is_ordered else None
        seen += count


def _explained(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield what a loader yields; what PyTorch's default_collate cannot stack is said in words."""
    try:
        yield from loader
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
        raise


def _rebatch(samples: Iterator[Any], batch_size: int) -> Iterator[tuple[Sample, Tensor | None]]:
    """Collect single images into batches; batches pass as they are."""
    waiting: list[Sample] = []
    for i, raw in enumerate(samples):
        sample = read_sample(raw, where=f"item {i}")
        if sample.is_batch:
            if waiting:
                yield collate(waiting, where=f"the items before {i}"), None
                waiting = []
            yield sample, None
            continue
        waiting.append(sample)
        if len(waiting) == batch_size:
            yield collate(waiting, where=f"items {i + 1 - batch_size} to {i}"), None
            waiting = []
    if waiting:
        yield collate(waiting, where="the last items"), None


def _dataset_batches(data: Any, batch_size: int) -> Iterator[tuple[Sample, Tensor | None]]:
    fetch_many = getattr(data, "__getitems__", None)
    count = len(data)
    for start in range(0, count, batch_size):
        rows = list(range(start, min(start + batch_size, count)))
        where = f"items {rows[0]} to {rows[-1]}"
        raw = fetch_many(rows) if callable(fetch_many) else [data[i] for i in rows]
        yield collate([read_sample(r, where=where) for r in raw], where=where), torch.tensor(rows)
