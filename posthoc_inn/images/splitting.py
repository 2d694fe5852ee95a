"""Holding a part of users' data out, the same part each time."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from posthoc_inn.errors import ConfigError, DataError, PosthocInnWarning
from posthoc_inn.images.batches import BatchSource
from posthoc_inn.images.convert import as_labels
from posthoc_inn.images.numbering import STREAM
from posthoc_inn.seeds import derived

COMPARED = 256
"""First images of a stream, which two passes have to agree about."""


def split(data: Any, held_out: Any = 0.1, seed: int = 0) -> tuple[Any, Any]:
    """Split data into a part to train on and a part held out.

    A loader's parts keep its batch size, workers and collate function; the order of its training part is
    shuffled where the loader's was, the held-out part's never. Streams, whose length is not known, give
    every k-th image to the held-out part.

    Args:
        data: Anything that `BatchSource` accepts.
        held_out: The share held out, in (0, 1), at random; or the held-out data itself, which is returned as
            it is.
        seed: Seed of the choice.

    Returns:
        Training data and held-out data, each accepted by `BatchSource`.

    Raises:
        ConfigError: `held_out` is a number outside of (0, 1).
        DataError: Too few images, or a stream that yields something else in each pass.

    >>> train, held_out = split(torch.rand(20, 3, 4, 4), 0.25)
    >>> len(train), len(held_out)
    (15, 5)
    """
    if isinstance(held_out, bool) or held_out is None:
        raise ConfigError(f"held_out must be a share in (0, 1) or held-out data, got {held_out!r}.")
    if not isinstance(held_out, (int, float)):
        return data, held_out
    if not 0 < held_out < 1:
        raise ConfigError(f"held_out must be a share in (0, 1) or held-out data, got {held_out!r}.")
    source = data if isinstance(data, BatchSource) else BatchSource(data)
    data = source.data
    indexable = _indexable(data)
    has_rows = has_length(data) if isinstance(data, DataLoader) else indexable is not None and source.length is not None
    if not has_rows:
        return _stream_parts(source, held_out)
    if source.limit is not None:
        raise ConfigError("Split the data itself, then limit the parts: the source has a limit of its own.")
    if isinstance(data, DataLoader):
        train_rows, held_rows = _rows(len(data.dataset), held_out, seed)  # type: ignore[arg-type]
        return _part(data, train_rows, is_training=True), _part(data, held_rows, is_training=False)
    train_rows, held_rows = _rows(len(source), held_out, seed)
    return Subset(indexable, train_rows), Subset(indexable, held_rows)


def some_of(data: Any, count: int, *, seed: int = 0) -> Any:
    """Return the data with `count` of its images, chosen at random, in their own order; all where it has no more.

    A folder comes class by class, so that its first images stand for nothing. Of a stream, and of a loader with a
    sampler of its own, the first ones are all that can be had without reading everything: those stay as they are.

    >>> len(some_of(torch.rand(20, 3, 4, 4), 5))
    5
    """
    if isinstance(data, BatchSource):
        if data.limit is not None:
            return data
        data = data.data
    if not has_length(data):
        return data
    is_loader = isinstance(data, DataLoader)
    if is_loader and type(data.sampler) not in (RandomSampler, SequentialSampler):
        return data
    length = len(data.dataset) if is_loader else BatchSource(data).length
    indexable = data.dataset if is_loader else _indexable(data)
    if length is None or length <= count or indexable is None:
        return data
    chosen = Subset(indexable, some_places(length, count, seed=seed).tolist())
    return _like(data, chosen, batch_size=data.batch_size or 64) if is_loader else chosen


def some_places(length: int, count: int, *, seed: int = 0) -> Tensor:
    """Return up to `count` of the numbers below `length`, chosen at random, in order."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(derived(seed, "some")))
    return order[:count].sort().values


def has_length(data: Any) -> bool:
    """Whether a data set, or that of a loader, holds a known number of images, however many of them a pass gives."""
    if isinstance(data, DataLoader):
        return not isinstance(data.dataset, IterableDataset) and hasattr(data.dataset, "__len__")
    return BatchSource(data).length is not None


def positions(part: Any) -> Tensor | None:
    """Return where the images of a part that `split` made lie in the whole data, (N,), or None where it is no part.

    >>> train, held_out = split(torch.rand(20, 3, 4, 4), 0.25)
    >>> sorted(positions(train).tolist() + positions(held_out).tolist()) == list(range(20))
    True
    """
    data = part.dataset if isinstance(part, DataLoader) else part
    if isinstance(data, Subset):
        return torch.as_tensor(np.asarray(data.indices)).long()
    return None


def _like(
    loader: DataLoader[Any], dataset: Any, *, batch_size: int | None, shuffle: bool = False, drop_last: bool = False
) -> DataLoader[Any]:
    """Return a loader of `dataset` with the workers and the collate function of `loader`."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if loader.num_workers else None,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _indexable(data: Any) -> Any:
    """Return what `Subset` can index row by row, or None for streams."""
    if isinstance(data, torch.Tensor):
        return TensorDataset(data)
    if isinstance(data, (DataLoader, IterableDataset)) or not hasattr(data, "__getitem__"):
        return None
    return data


def _rows(count: int, held_out: float, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return the row numbers of both parts, as arrays: 8 bytes a row where a list takes 40."""
    held = max(2, round(count * held_out))
    if count - held < 2:
        raise DataError(_too_few(count, held_out))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    parts = (order[held:].sort().values, order[:held].sort().values)
    train_rows, held_rows = (array("q", part.numpy().tobytes()) for part in parts)
    return train_rows, held_rows


def _too_few(count: int, held_out: float) -> str:
    return (
        f"The data holds {count} images: too few to hold {held_out:.0%} out (2 are needed on either side); add images, "
        "or pass held-out data of its own."
    )


def _part(loader: DataLoader[Any], rows: Sequence[int], *, is_training: bool) -> DataLoader[Any]:
    is_known = type(loader.sampler) in (RandomSampler, SequentialSampler)
    if is_training and not is_known:
        warnings.warn(
            f"The loader's {type(loader.sampler).__name__} is replaced by plain shuffling, since a part of "
            f"its data is held out; pass held-out data of its own to keep it.",
            PosthocInnWarning,
            stacklevel=3,
        )
    batch_size = loader.batch_size
    if batch_size is None and loader.batch_sampler is not None:
        batch_size = getattr(loader.batch_sampler, "batch_size", None) or 64
    return _like(
        loader,
        Subset(loader.dataset, rows),
        batch_size=batch_size,
        shuffle=is_training and type(loader.sampler) is not SequentialSampler,
        drop_last=loader.drop_last and is_training and len(rows) >= (batch_size or 1),
    )


class StreamPart:
    """Every k-th image of a stream, or all but those; re-iterable.

    An image that comes again, as in a stream that repeats itself, stays in the part of its first time.
    """

    def __init__(self, source: BatchSource, every: int, *, is_training: bool) -> None:
        self._source, self._every, self._is_training = source, every, is_training

    def __iter__(self) -> Iterator[dict[str, Any]]:
        seen, most = 0, self._source._most
        parts: dict[int, bool] = {}  # image -> whether it is held out
        for sample, _ in self._source._read():
            if sample is None:
                continue
            if most is not None and seen >= most:
                self._source._tell_cut()
                return
            count = len(sample.images)
            place = torch.arange(seen, seen + count)
            usual = (place % self._every == self._every - 1).tolist()
            for k, image in enumerate(sample.images):
                key = hash(image.numpy().tobytes())
                usual[k] = parts.get(key, usual[k])
                if len(parts) < STREAM:
                    parts[key] = usual[k]
            keep = torch.tensor(usual) == (not self._is_training)
            if most is not None:
                keep &= place < most
            seen += count
            if not bool(keep.any()):
                continue
            labels, _ = as_labels(sample)
            if isinstance(labels, dict):
                labels = {k: v[keep] for k, v in labels.items()}
            elif labels is not None:
                labels = labels[keep]
            yield {"images": sample.images[keep], "labels": labels}


def _stream_parts(source: BatchSource, held_out: float) -> tuple[StreamPart, StreamPart]:
    source.check()
    every = max(2, round(1 / held_out))
    first, again = source.first(min(2 * every, COMPARED)), next(source.batches(draw=1))["images"]
    if len(first) < min(2 * every, COMPARED):
        raise DataError(_too_few(len(first), held_out))
    count = min(len(first), len(again))
    if first.shape[1:] != again.shape[1:] or not bool((first[:count] == again[:count]).all()):
        raise DataError(
            "The data is a stream that yields other images, or another order, in each pass, so that no part "
            "of it can be held out for good; pass held-out data of its own (held_out=...)."
        )
    return StreamPart(source, every, is_training=True), StreamPart(source, every, is_training=False)
