"""Some rows of a cache as a cache of their own, read only: held-out rows that choose, and those that are measured."""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_inn.rows.cache import Cache, Column
from posthoc_inn.seeds import derived

LEAST = 200
"""Held-out images from which on those that choose the weights are not those that are measured."""
MOST_TO_CHOOSE = 4096
"""Images that choose at the most: no look at t takes more rows."""
IMAGE = "image"
"""Column of the image's index in the data that it came from."""


class ColumnPart(Column):
    """Some rows of a column, in the order of their numbers; nothing is copied.

    Args:
        base: The column.
        index: Numbers of its rows, (N,).
    """

    def __init__(self, base: Column, index: Tensor) -> None:
        self.name, self.shape, self.dtype, self.is_on_disk = base.name, base.shape, base.dtype, base.is_on_disk
        self._base, self._index = base, index

    def tensor(self) -> Tensor:
        """Return all rows (N, *shape), a copy."""
        return self._base.rows(self._index)

    def rows(self, index: Tensor) -> Tensor:
        """Return the rows at `index` (B,), in its order, as a tensor of its own."""
        return self._base.rows(self._index[index])

    def span(self, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop`, without the latter, as a tensor of its own."""
        return self._base.rows(self._index[start:stop])

    def append(self, rows: Tensor) -> None:
        """Refuse: rows are added to the whole."""
        raise TypeError("These are some rows of another column: add rows to that one.")

    def __len__(self) -> int:
        return len(self._index)


class CachePart(Cache):
    """Some rows of a cache, with all columns that it has now and later; nothing is copied.

    Args:
        base: The cache.
        index: Numbers of its rows, (N,).

    Attributes:
        index: Those numbers.

    >>> cache = Cache()
    >>> cache.append(z=torch.arange(5.0)[:, None])
    >>> part = CachePart(cache, torch.tensor([1, 4]))
    >>> cache.append(z=torch.ones(1, 1))
    >>> len(part), part["z"].rows(torch.tensor([1, 0])).flatten().tolist()
    (2, [4.0, 1.0])
    """

    def __init__(self, base: Cache, index: Tensor) -> None:
        self._base, self.index, self.directory = base, index, base.directory

    def __getitem__(self, name: str) -> Column:
        return ColumnPart(self._base[name], self.index)

    def __contains__(self, name: object) -> bool:
        return name in self._base

    def names(self) -> list[str]:
        """Return the columns' names."""
        return self._base.names()

    def append(self, **rows: Tensor) -> None:
        """Refuse: rows are added to the whole."""
        raise TypeError("These are some rows of another cache: add rows to that one.")

    def drop(self, name: str) -> None:
        """Refuse: columns are dropped from the whole."""
        raise TypeError("These are some rows of another cache: drop columns of that one.")

    def remove(self) -> None:
        """Refuse: the whole is removed."""
        raise TypeError("These are some rows of another cache: remove that one.")

    @property
    def nbytes(self) -> int:
        """Bytes of these rows, which are the whole's."""
        return sum(len(self.index) * self._base[name].row_bytes for name in self.names())

    @property
    def is_on_disk(self) -> bool:
        """Whether any column of the whole went to disk."""
        return self._base.is_on_disk

    def __len__(self) -> int:
        return len(self.index)


def part_held_out(held_out: Cache, *, seed: int) -> tuple[Cache, Cache]:
    """Return the held-out rows that choose (best weights, early stopping, ridge), and those that are measured.

    What was chosen by some images is a little too good on the same ones. Half of the images choose, at most
    `MOST_TO_CHOOSE`; all rows of an image go together. With fewer than `LEAST` images both parts are all rows.

    Args:
        held_out: All held-out rows.
        seed: Of the choice.
    """
    image = torch.arange(len(held_out))
    if IMAGE in held_out:
        known = held_out[IMAGE].rows(image)
        # An image whose place is not known (-1) is one of its own.
        image = torch.where(known < 0, known.max() + 1 + image, known)
    image = torch.unique(image, return_inverse=True)[1]
    count = int(image.max()) + 1 if len(image) else 0
    if count < LEAST:
        return held_out, held_out
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derived(seed, "selection")))
    chooses = torch.zeros(count, dtype=torch.bool)
    chooses[order[: min(count // 2, MOST_TO_CHOOSE)]] = True
    mask = chooses[image]
    return CachePart(held_out, mask.nonzero()[:, 0]), CachePart(held_out, (~mask).nonzero()[:, 0])
