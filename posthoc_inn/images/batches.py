"""One uniform view on users' data (loaders, data sets, tensors, arrays, lists), checked before training."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from types import TracebackType
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, Subset, TensorDataset

from posthoc_inn.errors import DataError, Problems, is_count
from posthoc_inn.images.convert import (
    IMAGE_KEYS,
    Labels,
    Sample,
    as_labels,
    as_tensor,
    check_images,
    collate,
    ragged,
    read_sample,
    take_apart,
)
from posthoc_inn.seeds import derived

CHECKED = 64
"""Images looked at before training starts."""


class Batch(TypedDict):
    """What a `BatchSource` yields.

    `images` float32 (B, C, H, W) as the data yields them, `labels` a tensor (B, ...) or a dict of such or
    None, `index` the positions (B,) in the data set, or None where they are not known.
    """

    images: Tensor
    labels: Labels
    index: Tensor | None


class PrivateRandomness:
    """While entered, the global generators of torch, NumPy and Python are replaced by others.

    Users' transforms draw from the global generators: this way they are reproducible, and the caller's own
    generators are left alone.
    """

    def __init__(self, seed: int) -> None:
        self._torch = torch.Generator().manual_seed(derived(seed, "torch")).get_state()
        # NumPy's old generator takes 32 bits.
        self._numpy = np.random.RandomState(derived(seed, "numpy") % 2**32).get_state()
        self._python = random.Random(derived(seed, "python")).getstate()

    def __enter__(self) -> PrivateRandomness:
        self._swap()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._swap()

    def _swap(self) -> None:
        outer = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        self._torch, self._numpy, self._python = outer


class BatchSource:
    """A uniform, re-iterable view on a user's images; yields `Batch` dicts.

    Accepts a DataLoader (its own batches, order and workers), a map-style or iterable data set, a tensor or
    array (N, C, H, W), (images, labels) or a dict of those, a list of images or of (image, label), and any
    other iterable that can be iterated again. uint8 and Pillow images are brought to [0, 1]; floating-point
    ones are left as they are (see `recognize_normalization`). The global random generators are left alone:
    what a pass draws depends on `seed` and the number of the pass. Not to be read from several threads at
    once, since the global generators are exchanged while the user's code runs.

    Attributes:
        data: What was given.
        batch_size: Images a batch, where the data brings no batches of its own.
        limit: Images a pass at the most, or None.
        notes: What was converted or left out, in words.

    >>> source = BatchSource(torch.rand(10, 3, 8, 8), batch_size=4).check()
    >>> len(source), source.image_shape, [b["images"].shape[0] for b in source]
    (10, (3, 8, 8), [4, 4, 2])
    """

    def __init__(self, data: Any, batch_size: int = 64, *, limit: int | None = None, seed: int = 0) -> None:
        """Store `data`; nothing is read yet.

        Args:
            data: The images; see above.
            batch_size: Images a batch, where the data brings no batches of its own.
            limit: Use only the first so many images of each pass.
            seed: Seed of whatever the data draws at random (order, augmentation).

        Raises:
            ConfigError: `batch_size` or `limit` is out of range.
            DataError: `data` is nothing that can be read more than once.
        """
        problems = Problems("BatchSource")
        problems.check(is_count(batch_size, 1), f"batch_size must be at least 1, got {batch_size!r}")
        problems.check(limit is None or is_count(limit, 2), f"limit must be None or at least 2, got {limit!r}")
        problems.check(is_count(seed, 0), f"seed must be a whole number of at least 0, got {seed!r}")
        problems.raise_if_any()
        if isinstance(data, BatchSource):
            limit = min((n for n in (limit, data.limit) if n is not None), default=None)
            data = data.data
        self.data: Any = data
        self.limit: int | None = limit
        self.batch_size, self.seed = batch_size, seed
        self.notes: list[str] = []
        self._passes = 0
        self._shape: tuple[int, ...] | None = None
        self._dtype: torch.dtype | None = None
        self._is_checked = False
        self._has_labels = False
        self._label_names: tuple[str, ...] = ()
        self._length, self._read = _open(data, batch_size)

    # ---- what is known

    @property
    def length(self) -> int | None:
        """Images a pass, or None where only iterating could tell."""
        if self._length is None or self.limit is None:
            return self._length
        return min(self._length, self.limit)

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("The number of images is not known before they are read; see `length`.")
        return self.length

    def __bool__(self) -> bool:
        return True

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        self.check()
        c, h, w = self._shape or (0, 0, 0)
        return c, h, w

    @property
    def source_dtype(self) -> torch.dtype:
        """The dtype in which the data yields images, before conversion."""
        self.check()
        return self._dtype or torch.float32

    @property
    def has_labels(self) -> bool:
        """Whether usable labels come with the images."""
        self.check()
        return self._has_labels

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels where they come as a dict, else ()."""
        self.check()
        return self._label_names

    # ---- reading

    def check(self) -> BatchSource:
        """Look at the first images once, before anything is trained, and return self.

        Raises:
            DataError: They cannot be used: shape, channels, dtype, values, fewer than two, all the same.
        """
        if self._is_checked:
            return self
        parts: list[Tensor] = []
        labels: Labels = None
        for batch in self.batches(draw=0):
            if not parts:
                labels = batch["labels"]
            parts.append(batch["images"])
            if sum(len(p) for p in parts) >= CHECKED:
                break
        count = sum(len(p) for p in parts)
        if count < 2:
            raise DataError(f"The data holds {count or 'no'} image{'s' * (count != 1)}; at least 2 are needed.")
        first = parts[0][:1]
        if all(bool((p == first).all()) for p in parts):
            value = f", every value {first.flatten()[0]:g}" if bool((first == first.flatten()[0]).all()) else ""
            raise DataError(
                f"The first {count} images are all the same{value}; look at what the data set yields, and at "
                f"its transform."
            )
        self._has_labels = labels is not None
        self._label_names = tuple(labels) if isinstance(labels, dict) else ()
        self._is_checked = True
        return self

    def __iter__(self) -> Iterator[Batch]:
        self._passes += 1
        return self.batches(draw=self._passes)

    def batches(self, *, draw: int = 0) -> Iterator[Batch]:
        """Iterate over one pass; the same `draw` gives the same order and augmentation again.

        That holds as long as the data draws from the global generators (torch, NumPy, Python), also through
        the workers of a DataLoader; a generator of the data's own goes on where it stands.

        Args:
            draw: Number of the pass.

        Raises:
            DataError: A batch cannot be used.
        """
        seen = 0
        for number, (sample, index) in enumerate(self._samples(draw)):
            batch = self._convert(sample, index, f"batch {number}")
            if self.limit is not None and seen + len(batch["images"]) > self.limit:
                batch = _head(batch, self.limit - seen)
            seen += len(batch["images"])
            yield batch
            if self.limit is not None and seen >= self.limit:
                return
        if not seen and self._is_checked:
            raise DataError(
                "The data yielded images at first, but none on a later pass; it has to start anew each time "
                "it is iterated. Pass a Dataset, a DataLoader or a list."
            )

    def first(self, n: int) -> Tensor:
        """Return the first `n` images, or as many as there are: float32 (n, C, H, W)."""
        return self.take(n)["images"]

    def take(self, n: int) -> Batch:
        """Return the first `n` images, or as many as there are, in one batch with labels and index."""
        parts: list[Batch] = []
        for batch in self.batches(draw=0):
            missing = n - sum(len(p["images"]) for p in parts)
            parts.append(_head(batch, missing))
            if len(batch["images"]) >= missing:
                break
        if not parts:
            raise DataError("The data holds no images; at least 2 are needed.")
        return _join(parts)

    def _samples(self, draw: int) -> Iterator[tuple[Sample, Tensor | None]]:
        """Yield raw batches, the user's code running with random generators of its own."""
        randomness = PrivateRandomness(derived(self.seed, "draw", draw))
        with randomness:
            iterator = self._read()
        while True:
            with randomness:
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _convert(self, sample: Sample, index: Tensor | None, where: str) -> Batch:
        images = sample.images
        check_images(images, where=where)
        shape = tuple(images.shape[1:])
        if self._shape is None:
            self._shape, self._dtype = shape, images.dtype
        elif shape != self._shape:
            raise DataError(ragged(self._shape, shape, f"the first batch and {where}"))
        elif images.dtype != self._dtype:
            raise DataError(f"The data yields {self._dtype} images at first and {images.dtype} ones in {where}.")
        labels, note = as_labels(sample)
        self._note(*sample.notes, note)
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
            self._note("uint8 images were divided by 255.")
        return Batch(images=images.float(), labels=labels, index=index)

    def _note(self, *notes: str | None) -> None:
        self.notes += [n for n in dict.fromkeys(notes) if n is not None and n not in self.notes]


Reader = Callable[[], Iterator[tuple[Sample, "Tensor | None"]]]


def _head(batch: Batch, n: int) -> Batch:
    labels, index = batch["labels"], batch["index"]
    cut: Labels = {k: v[:n] for k, v in labels.items()} if isinstance(labels, dict) else labels
    cut = cut[:n] if isinstance(cut, Tensor) else cut
    return Batch(images=batch["images"][:n], labels=cut, index=None if index is None else index[:n])


def _join(parts: Sequence[Batch]) -> Batch:
    labels: Labels = None
    kinds = [p["labels"] for p in parts]
    if all(isinstance(k, Tensor) for k in kinds):
        labels = torch.cat([k for k in kinds if isinstance(k, Tensor)])
    elif all(isinstance(k, dict) for k in kinds):
        tables = [k for k in kinds if isinstance(k, dict)]
        labels = {name: torch.cat([t[name] for t in tables]) for name in tables[0] if all(name in t for t in tables)}
    indices = [p["index"] for p in parts]
    index = torch.cat([i for i in indices if i is not None]) if all(i is not None for i in indices) else None
    return Batch(images=torch.cat([p["images"] for p in parts]), labels=labels, index=index)


def _open(data: Any, batch_size: int) -> tuple[int | None, Reader]:
    """Return how many images `data` holds, if known, and a function that starts a new pass."""
    if isinstance(data, (str, bytes, os.PathLike)) or data is None:
        raise DataError(
            f"Data must be a DataLoader, a Dataset, a tensor or a list of images, got {data!r}; for a file "
            f"or folder use ImageFiles(folder, size=64) or load_image_files(paths)."
        )
    arrays = _as_arrays(data)
    if arrays is not None:
        images, labels, rows = arrays
        return len(images) if rows is None else len(rows), lambda: _array_batches(images, labels, rows, batch_size)
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
            f"{', '.join(IMAGE_KEYS)}; got the keys {', '.join(repr(k) for k in data)}."
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


def _as_arrays(data: Any) -> tuple[Any, Any, Tensor | None] | None:
    """Return images, labels and the chosen rows (None: all) where the data lies in memory as a whole."""
    rows: Tensor | None = None
    while isinstance(data, Subset):
        chosen = torch.as_tensor(np.asarray(data.indices)).long().reshape(-1)
        rows = chosen if rows is None else chosen[rows]
        data = data.dataset
    if isinstance(data, TensorDataset):
        # type() keeps subclasses with a __getitem__ of their own on the slow path.
        if type(data) is not TensorDataset:
            return None
        tensors = data.tensors
        return tensors[0], tensors[1] if len(tensors) > 1 else None, rows
    if isinstance(data, (Tensor, np.ndarray)):
        return data, None, rows
    if isinstance(data, Mapping) and not any(k in data for k in IMAGE_KEYS):
        return None
    if isinstance(data, (tuple, list, Mapping)) and data:
        images, labels = take_apart(data)
        whole = isinstance(images, (Tensor, np.ndarray)) and (images.ndim == 4 or isinstance(data, Mapping))
        has_batch = isinstance(labels, (Tensor, np.ndarray)) and labels.ndim == 4
        is_pair = len(data) == 2 and labels is not None and not has_batch
        if whole and (is_pair or isinstance(data, Mapping)):
            return images, labels, rows
    return None


def _array_batches(
    images: Any, labels: Any, rows: Tensor | None, batch_size: int
) -> Iterator[tuple[Sample, Tensor | None]]:
    count = len(images) if rows is None else len(rows)
    named = labels if isinstance(labels, Mapping) else {"": labels}
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        index = torch.arange(start, stop)
        key: Any = slice(start, stop) if rows is None else rows[start:stop]
        part = images[key if isinstance(images, Tensor) or rows is None else key.numpy()]
        cut = {k: _label_rows(v, key) for k, v in named.items()}
        sample = Sample(as_tensor(part, where="the data"), cut if isinstance(labels, Mapping) else cut[""], True)
        yield sample, index


def _label_rows(labels: Any, key: Any) -> Any:
    if labels is None or isinstance(labels, Tensor) or isinstance(key, slice):
        return None if labels is None else labels[key] if hasattr(labels, "__getitem__") else None
    return np.asarray(labels)[key.numpy()]


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
    iterator = _explained(lambda: iter(loader), _explained_next)
    if loader.batch_sampler is None:
        return _rebatch(iterator, batch_size)
    return _number((read_sample(s, where=f"batch {i}", expect_batch=True) for i, s in enumerate(iterator)), is_ordered)


def _number(samples: Iterator[Sample], is_ordered: bool) -> Iterator[tuple[Sample, Tensor | None]]:
    seen = 0
    for sample in samples:
        count = len(sample.images)
        yield sample, torch.arange(seen, seen + count) if is_ordered else None
        seen += count


def _explained_next(iterator: Iterator[Any]) -> Any:
    """Fetch the next batch; what PyTorch's default_collate cannot stack is said in words."""
    try:
        return next(iterator)
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


def _explained(start: Callable[[], Iterator[Any]], fetch: Callable[[Iterator[Any]], Any]) -> Iterator[Any]:
    iterator = start()
    while True:
        try:
            item = fetch(iterator)
        except StopIteration:
            return
        yield item


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
