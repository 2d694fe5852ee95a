"""One uniform view on users' data (loaders, data sets, tensors, arrays, lists), checked before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from posthoc_inn.errors import DataError, Problems, is_count
from posthoc_inn.images.convert import (
    Labels,
    Sample,
    as_labels,
    check_images,
    ragged,
)
from posthoc_inn.images.numbering import tell_rest
from posthoc_inn.images.opening import Raw, dropped_last, open_data
from posthoc_inn.images.randomness import PrivateRandomness
from posthoc_inn.seeds import derived

CHECKED = 64
"""Images looked at before training starts."""
KEPT = 64 * 2**20
"""Bytes of the first images that are kept for whoever asks for them again."""


class Batch(TypedDict):
    """What a `BatchSource` yields.

    `images` float32 (B, C, H, W) as the data yields them, `labels` a tensor (B, ...) or a dict of such or
    None, `index` the positions (B,) in the data set, -1 where one cannot be told, or None where the data tells none.
    """

    images: Tensor
    labels: Labels
    index: Tensor | None


class BatchSource:
    """A uniform, re-iterable view on a user's images; yields `Batch` dicts.

    Accepts a DataLoader (its own batches, order and workers), a map-style or iterable data set, a tensor or
    array (N, C, H, W), (images, labels) or a dict of those, a list of images or of (image, label), and any
    other iterable that can be iterated again. uint8 and Pillow images are brought to [0, 1]; floating-point
    ones are left as they are (see `recognize_normalization`). The global random generators are left alone:
    what a pass draws depends on `seed` and the number of the pass. Not to be read from several threads at
    once, since the global generators are exchanged while the user's code runs.

    Every pass ends: with the data, at `limit`, or after as many images as the data says it holds; after 200,000 where
    it says nothing. A warning tells if there were more.

    Attributes:
        data: What was given.
        batch_size: Images a batch, where the data brings no batches of its own.
        limit: Images a pass at the most, or None.
        few: Images that are looked at before a fit, where the data says that each costs much; else None.
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
        # A generator's draws cost much each: data says how few are looked at before anything starts.
        self.few: int | None = getattr(_innermost(data), "few", None)
        batch_size = (
            batch_size if self.few is None else min(batch_size, getattr(_innermost(data), "together", self.few))
        )
        self.limit: int | None = limit
        self.batch_size, self.seed = batch_size, seed
        self.notes: list[str] = []
        self._passes = 0
        self._shape: tuple[int, ...] | None = None
        self._dtype: torch.dtype | None = None
        self._is_checked = False
        self._has_labels = False
        self._label_names: tuple[str, ...] = ()
        self._first: Batch | None = None
        self._is_all = False
        self._left_out = 0
        opened = open_data(data, batch_size)
        self._length, self._read = opened.length, opened.read
        self._most = opened.most if limit is None else limit
        self._is_cut = False

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
        given = self._read_first(CHECKED if self.few is None else self.few)
        parts, labels = [b["images"] for b in given], given[0]["labels"] if given else None
        count = sum(len(p) for p in parts)
        if count < 2:
            raise DataError(self._too_few(count))
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
        seen = empty = 0
        for number, (sample, index) in enumerate(self._samples(draw)):
            if self._most is not None and seen + empty >= self._most:
                self._tell_cut()
                return
            if sample is None or _holds_none(sample.images):
                empty += 1
                self._left_out = max(self._left_out, empty)
                continue
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
        if self._first is None or (len(self._first["images"]) < n and not self._is_all):
            parts = self._read_first(n)
            if not parts:
                raise DataError(self._too_few(0))
            return _head(_join(parts), n)
        return _head(self._first, n)

    def look(self, n: int) -> Batch:
        """Return what `take` does, of data whose images cost much only `few`: for what a few images tell as well."""
        return self.take(n if self.few is None else min(n, self.few))

    def _read_first(self, n: int) -> list[Batch]:
        """Return the first batches, `n` images at least if there are as many, and keep what of them is not too large.

        Reading them anew would start a loader's workers each time.
        """
        parts: list[Batch] = []
        count, is_all = 0, True
        for batch in self.batches(draw=0):
            parts.append(batch)
            count += len(batch["images"])
            if count >= n:
                is_all = False
                break
        if parts:
            row = parts[0]["images"][0]
            room = KEPT // max(1, row.numel() * row.element_size())
            self._first, self._is_all = _head(_join(parts), min(count, room)), is_all and count <= room
        return parts

    def _too_few(self, count: int) -> str:
        """Say why there are no images, or one only."""
        told = dropped_last(self.data)
        if told and not count:
            return told
        if self._left_out:
            batches = f"{self._left_out:,} batch{'es' * (self._left_out != 1)}"
            return (
                f"The data holds {count or 'no'} image{'s' * (count != 1)}, and {batches} without any: the loader's "
                "collate function leaves them out. Look at what the data set yields (None?)."
            )
        return f"The data holds {count or 'no'} image{'s' * (count != 1)}; at least 2 are needed."

    def _tell_cut(self) -> None:
        """Warn, once, that there are more images than a pass reads."""
        if not self._is_cut and self.limit is None:
            what = f"The data yields more than {self._most:,} images, and does not tell how many it holds"
            tell_rest(what, "posthoc_inn.images.BatchSource(data, limit=...) sets another number.")
        self._is_cut = True

    def _samples(self, draw: int) -> Raw:
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


def _innermost(data: Any) -> Any:
    """Return the data set of which loaders and subsets hold a part."""
    while isinstance(data, (DataLoader, Subset)):
        data = data.dataset
    return data


def _holds_none(images: Tensor) -> bool:
    """Whether this is a batch of no images, rather than one of images without pixels."""
    return images.ndim > 0 and len(images) == 0


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
