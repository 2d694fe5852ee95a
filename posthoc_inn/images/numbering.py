"""Which images the batches of a loader hold: those its sampler gave, less those its collate function left out."""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from posthoc_inn.errors import PosthocInnWarning
from posthoc_inn.images.convert import read_sample, take_apart
from posthoc_inn.images.randomness import PrivateRandomness

TRUSTED = 4
"""Batches whose order is found out item by item, where a collate function changes the pixels, before it is trusted."""

Numbered = Iterator[tuple[Any, "list[int] | None"]]
"""What a loader yields, each batch with the positions of its images in the data set: none where they cannot be told of
this batch, None where they are told of no batch."""

STREAM = 200_000
"""Images that are read in a pass at the most, where the data does not tell how many it holds: it may never end."""


def numbered(loader: DataLoader[Any]) -> Callable[[], Numbered]:
    """Return a function that starts a pass over what `loader` yields, with the positions of the images.

    A copy of the loader is read, with the same data set, sampler, workers and generator: its sampler remembers what it
    gave, its collate function tells which of the items came through. A sampler without an end is cut. A loader that
    iterates in a way of its own, and one of a stream, is read itself, and tells no positions.
    """
    kind = type(loader)
    is_plain = kind.__iter__ is DataLoader.__iter__ and kind._get_iterator is DataLoader._get_iterator
    if not is_plain or isinstance(loader.dataset, IterableDataset):
        return lambda: ((batch, None) for batch in loader)
    is_collating = loader.batch_sampler is not None
    sampler = loader.batch_sampler if is_collating else loader.sampler
    told = _Told(sampler, _most(loader.dataset, sampler, is_collating))
    twin = copy.copy(loader)
    # A DataLoader refuses to have these set; and no pass of the user's may be gone on with.
    twin.__dict__.update({"batch_sampler" if is_collating else "sampler": told, "_iterator": None, "in_order": True})
    if is_collating:
        twin.collate_fn = _Collate(loader.collate_fn)
    return lambda: _read(twin, told, is_collating)


def _read(twin: DataLoader[Any], told: _Told, is_collating: bool) -> Numbered:
    length = len(twin.dataset) if hasattr(twin.dataset, "__len__") else None
    for item in twin:
        given = _positions(told.given.popleft(), length)
        if not is_collating:
            yield item, given
            continue
        batch, places, count = item
        # A data set that returns fewer items than it was asked for does not say which.
        yield batch, [given[place] for place in places] if count == len(given) else []


class _Told:
    """A sampler that remembers what it gave; batches come back in its order.

    Args:
        sampler: The user's.
        most: Items that a pass ends after, if the sampler goes on.
    """

    def __init__(self, sampler: Any, most: int) -> None:
        self.sampler, self.most = sampler, most
        self.given: deque[Any] = deque()
        self._is_cut = False

    def __iter__(self) -> Iterator[Any]:
        self.given.clear()
        count = 0
        for index in self.sampler:
            if count >= self.most:
                if not self._is_cut:
                    what = f"The sampler of the loader gives more than {self.most:,} items"
                    tell_rest(what, "If it ends, give it a __len__.")
                self._is_cut = True
                return
            count += len(index) if isinstance(index, (list, tuple)) else 1
            self.given.append(list(index) if isinstance(index, (list, tuple)) else index)
            yield index

    def __len__(self) -> int:
        return len(self.sampler)


def _most(dataset: Any, sampler: Any, is_collating: bool) -> int:
    """Return after how many items a pass ends: as many as there are, or as the sampler says that it gives."""
    count = len(dataset) if hasattr(dataset, "__len__") else STREAM
    try:
        given = len(sampler)
    except (TypeError, NotImplementedError):
        return count
    size = getattr(sampler, "batch_size", None if is_collating else 1)
    return max(count, given * size if isinstance(size, int) else STREAM)


def tell_rest(what: str, advice: str) -> None:
    """Warn that data yields more than is read of it."""
    told = f"{what}; the rest of each pass is left out, since it may never end. {advice}"
    warnings.warn(told, PosthocInnWarning, stacklevel=3)


def _positions(given: Any, length: int | None) -> list[int]:
    """Return what a sampler gave as positions from 0; none where it names its items in another way."""
    if isinstance(given, torch.Tensor) or hasattr(given, "tolist"):
        given = given.tolist()
    values = given if isinstance(given, list) else [given]
    try:
        whole = [int(v) for v in values if int(v) == v]
    except (TypeError, ValueError):
        return []
    if length is not None:
        whole = [v + length if v < 0 else v for v in whole]
    return whole if len(whole) == len(values) and all(v >= 0 for v in whole) else []


class _Collate:
    """A user's collate function, which also tells what item each image of its batch is of.

    Args:
        function: The user's.
    """

    def __init__(self, function: Callable[[list[Any]], Any]) -> None:
        self.function = function
        self._kept_order = 0

    def __call__(self, items: Sequence[Any]) -> tuple[Any, list[int], int]:
        """Return the batch, the places of its images among `items` (none if they cannot be told), and their number."""
        if self.function is default_collate:
            return self.function(list(items)), list(range(len(items))), len(items)
        try:
            batch = self.function(list(items))  # a list of its own, which it may sort or empty
        except Exception:
            if any(_is_readable(item) for item in items):
                raise
            return None, [], len(items)
        return batch, [] if is_empty(batch) else self._places(items, batch), len(items)

    def _places(self, items: Sequence[Any], batch: Any) -> list[int]:
        rows, everything = _images(batch, is_batch=True), list(range(len(items)))
        if rows is None:
            return []
        own = [_images(item, is_batch=False) for item in items]
        is_whole = len(rows) == len(items)
        if is_whole and all(_is_same(a, b) for a, b in zip(own, rows, strict=True)):
            return everything
        if is_whole and self._kept_order >= TRUSTED and all(_is_readable(item) for item in items):
            return everything
        with PrivateRandomness(0):  # asked beside the user's reading, which draws as if it had not been
            alone = [self._alone(item) for item in items]
        found = _match(rows, alone, own)
        self._kept_order += 1 if found == everything else -TRUSTED
        return found

    def _alone(self, item: Any) -> Tensor | None:
        """Return what becomes of an item in a batch of its own; None where it is left out."""
        try:
            rows = _images(self.function([item]), is_batch=True)
        except Exception:  # a stranger's function may raise anything over an item that it cannot use
            return None
        return rows[0] if rows is not None and len(rows) == 1 else None


def _match(rows: Tensor, alone: Sequence[Tensor | None], own: Sequence[Tensor | None]) -> list[int]:
    """Return the place of the item that each row is of; none where that cannot be told.

    Args:
        rows: Images of the batch, (B, C, H, W).
        alone: What becomes of each item in a batch of its own; None where it is left out.
        own: The items' own images, where they can be read.
    """
    kept = [place for place, image in enumerate(alone) if image is not None]
    if len(kept) == len(rows) and all(_is_close(alone[place], row) for place, row in zip(kept, rows, strict=True)):
        return kept
    found = []
    for row in rows:
        likely = [k for k in range(len(own)) if _is_close(alone[k], row) or _is_same(own[k], row)]
        likely = [place for place in likely if place in kept] or likely
        fresh = [place for place in likely if place not in found]
        if len(likely) > 1 and len(fresh) != 1:
            return []  # pictures that are all the same, some of them left out or exchanged
        found.append((fresh or likely or [-1])[0])
    if -1 not in found:
        return found
    # Pixels drawn at random are like none of the items. As many as come through alone come in their order, then,
    # unless those that stayed as they are tell otherwise.
    is_in_order = len(kept) == len(rows) and all(f in (-1, place) for f, place in zip(found, kept, strict=True))
    return kept if is_in_order else []


def is_empty(batch: Any) -> bool:
    """Say whether a collate function left nothing of a batch."""
    if batch is None:
        return True
    if isinstance(batch, (list, tuple, Mapping)) and not batch:
        return True
    try:
        images = take_apart(batch)[0]
    except Exception:  # what cannot be read is said with words of its own
        return False
    if isinstance(images, (list, tuple)):
        return not images
    shape = tuple(getattr(images, "shape", ()))
    return bool(shape) and shape[0] == 0


def _is_readable(item: Any) -> bool:
    try:
        return take_apart(item)[0] is not None
    except Exception:  # whatever it is, it is no image
        return False


def _images(sample: Any, *, is_batch: bool) -> Tensor | None:
    """Return the images of a batch or of one item, or None where there are none to be found."""
    try:
        found = read_sample(sample, where="a batch", expect_batch=is_batch)
    except Exception:  # said with words of its own once it is read
        return None
    return found.images if found.is_batch == is_batch else None


def _is_same(a: Tensor | None, b: Tensor) -> bool:
    return _are_alike(a, b) and torch.equal(a, b)  # type: ignore[arg-type]


def _is_close(a: Tensor | None, b: Tensor) -> bool:
    if not _are_alike(a, b) or not b.is_floating_point():
        return _is_same(a, b)
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


def _are_alike(a: Tensor | None, b: Tensor) -> bool:
    return a is not None and a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
