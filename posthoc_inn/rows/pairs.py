"""Pairs of cached rows: what a concept source says of images, carried over to the rows they were cached in."""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_inn.errors import DataError
from posthoc_inn.protocols import ConceptSource
from posthoc_inn.seeds import derived

ROUNDS = 20
"""Times that pairs are drawn anew when some of their images are not among the rows."""


class RowPairs:
    """Draws pairs of cached rows from a concept source.

    A source with ``subset`` (all built-in ones) is asked for the pairs of these rows. Any other draws pairs of images;
    each image is replaced by one of its rows at random (an image has several where data was augmented), and pairs
    with an image that has no row are left out.

    Args:
        source: The concepts.
        images: The image that each row came from, (N,); None when the source numbers rows already.

    Raises:
        DataError: No pair of the source lies within the rows.

    >>> from posthoc_inn.concepts import GivenPairs
    >>> pairs = RowPairs(GivenPairs({"pose": [(0, 7)]}), torch.tensor([7, 3, 0]))
    >>> a, b, shared = pairs.draw(4, seed=0)
    >>> sorted(set(a.tolist() + b.tolist()))
    [0, 2]
    """

    def __init__(self, source: ConceptSource, images: Tensor | None = None) -> None:
        self.names = source.names
        self._order: Tensor | None = None
        if images is not None and callable(getattr(source, "subset", None)):
            source, images = source.subset(images), None  # type: ignore[attr-defined]
        self.source = source
        if images is not None:
            self._order = torch.argsort(images, stable=True)
            self._images, self._counts = torch.unique_consecutive(images[self._order], return_counts=True)
            self._starts = self._counts.cumsum(0) - self._counts
        self.draw(1, seed=0)

    def draw(self, n: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows a (n,), b (n,) and `shared` (n, K + 1), a function of `seed` alone.

        Raises:
            DataError: Too few of the source's pairs lie within the rows, or it breaks its protocol.
        """
        found: list[tuple[Tensor, ...]] = []
        missing = n
        for attempt in range(ROUNDS):
            a, b, shared = self.source.pairs(max(n, 16), seed=derived(seed, "pairs", attempt))
            self._check(a, b, shared)
            if self._order is None:
                return a[:n], b[:n], shared[:n]
            generator = torch.Generator().manual_seed(derived(seed, "rows", attempt))
            a, b = self._rows(a, generator), self._rows(b, generator)
            keep = ((a >= 0) & (b >= 0)).nonzero()[:missing, 0]
            found.append((a[keep], b[keep], shared[keep]))
            missing -= len(keep)
            if not missing:
                a, b, shared = (torch.cat(parts) for parts in zip(*found, strict=True))
                return a, b, shared
        raise DataError(
            f"Of {ROUNDS * max(n, 16):,} pairs that the concept source drew, only {n - missing:,} have both images "
            "among these rows. Are its indices those of the data that was given, and are there enough pairs?"
        )

    def _rows(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return a row of each image (n,), -1 where it has none."""
        order = self._order
        if order is None:
            return images
        place = torch.searchsorted(self._images, images).clamp_max(len(self._images) - 1)
        is_there = self._images[place] == images
        pick = (torch.rand(len(images), generator=generator) * self._counts[place]).long()
        return torch.where(is_there, order[self._starts[place] + pick], -1)

    def _check(self, a: Tensor, b: Tensor, shared: Tensor) -> None:
        columns = len(self.names) + 1
        if a.shape != b.shape or a.ndim != 1 or shared.dtype != torch.bool or shared.shape != (len(a), columns):
            raise DataError(
                f"{type(self.source).__name__}.pairs must return indices (n,), (n,) and a boolean mask (n, {columns}), "
                f"the residual's column first; got {tuple(a.shape)}, {tuple(b.shape)} and {shared.dtype} "
                f"{tuple(shared.shape)}."
            )
        if not len(a) or bool((a == b).all()):
            raise DataError(f"{type(self.source).__name__} draws no pairs of two different images.")
