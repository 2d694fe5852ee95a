"""Concepts as a fit meets them: what was asked for, and the same over cached rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posthoc_inn.concepts import LabelsOf, Space
from posthoc_inn.errors import DataError
from posthoc_inn.images import BatchSource
from posthoc_inn.images.batches import CHECKED
from posthoc_inn.protocols import ConceptSource
from posthoc_inn.rows.cache import Cache
from posthoc_inn.rows.pairs import RowPairs
from posthoc_inn.rows.reader import IMAGE, LABEL
from posthoc_inn.training.factors import HELD_OUT_PAIRS

SIZING_PAIRS = 4096
"""Pairs that each concept's score is measured on."""


@dataclass
class ConceptRequest:
    """Which e is to be fitted.

    Attributes:
        source: The concepts, over the images of the data that was given; None for an e without any (IIN eq. 12).
        held_out_source: Those of held-out images, where these are other data.
        space: What e is over.
        sizes: Widths of its factors, residual first, the random concept last; estimated when None.
        positions: Where training and held-out images lie in the data that the source knows; None where it knows them
            in their own order.
        length: Images in the data that the source knows; those of its own are numbered on from there.
        reason: Why nothing is known of held-out images, where that was found out.
    """

    source: ConceptSource | LabelsOf | None
    held_out_source: ConceptSource | LabelsOf | None = None
    space: Space = "z_bar"
    sizes: tuple[int, ...] | None = None
    positions: tuple[Tensor | None, Tensor | None] = (None, None)
    length: int | None = None
    reason: str = ""

    @property
    def extra(self) -> Any:
        """Images of the source's own, or None."""
        return getattr(self.source, "extra", None)


@dataclass
class BoundConcepts:
    """Concepts over cached rows.

    Attributes:
        source: Numbers training rows, then a source's own images; None for an e without concepts.
        held_out: Numbers held-out rows; None where nothing is known of them.
        space: What e is over.
        sizes: Widths of its factors, or None.
        note: What a user has to know, or "".
    """

    source: ConceptSource | None
    held_out: ConceptSource | None
    space: Space
    sizes: tuple[int, ...] | None
    note: str = ""


class _Numbered:
    """A source over rows, from one over images."""

    def __init__(self, source: ConceptSource, images: Tensor) -> None:
        self._source, self._images = source, images
        self._pairs = RowPairs(source, images)
        self.names = source.names

    @property
    def values(self) -> Mapping[str, Tensor]:
        """Values of the concepts, one a row, where the source tells them of these images."""
        found = self._pairs.source
        return getattr(found, "values", {}) if found is not self._source else {}

    def subset(self, index: Tensor) -> _Numbered:
        """Return the pairs among the rows `index` (M,), which are numbered from 0 then."""
        return _Numbered(self._source, self._images[index])

    def pairs(self, n: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        return self._pairs.draw(n, seed=seed)


def bind(request: ConceptRequest, train: Cache, held_out: Cache, extra: Cache | None = None) -> BoundConcepts:
    """Return the concepts over cached rows.

    Raises:
        DataError: A concept has no pairs among the training rows, or one value only; or it is not known which image
            each row is of.
    """
    if request.source is None:
        return BoundConcepts(None, None, request.space, request.sizes)
    source = over_rows(request.source, train, request.positions[0], request.length, extra)
    aside = request.held_out_source
    if aside is None and (isinstance(request.source, LabelsOf) or request.positions[1] is not None):
        aside = request.source
    kept, note = None, "e is measured on training pairs: nothing is known of the held-out images' concepts"
    note += f": {request.reason}" if request.reason else "."
    _check_pairs(source, SIZING_PAIRS)
    if aside is not None:
        try:
            kept, note = over_rows(aside, held_out, request.positions[1], request.length, None), ""
            _check_pairs(kept, HELD_OUT_PAIRS)
        except DataError as error:
            kept = None
            note = f"e is measured on training pairs, since held-out images give none: {error}"
    # What was left out of a table, or is missing in it: said once, of all the data.
    known = source if isinstance(request.source, LabelsOf) else request.source
    told = getattr(known, "notes", ())
    note = " ".join(filter(None, (*told, note)))
    return BoundConcepts(source, kept, request.space, request.sizes, note)


def _check_pairs(source: ConceptSource, count: int) -> None:
    """Draw pairs as sizing and training will: what they would miss is missed before the autoencoder is trained."""
    _, _, shared = RowPairs(source).draw(count * len(source.names), seed=0)
    for k, name in enumerate(source.names, 1):
        telling_pairs(shared, k, name)


def telling_pairs(shared: Tensor, k: int, name: str) -> tuple[Tensor, bool]:
    """Return which pairs tell of the concept `k`, and whether they share it, rather than differ in it alone.

    Raises:
        DataError: There are none.
    """
    sharing = (shared[:, k] & ~shared[:, 0]).nonzero()[:, 0]
    differing = (~shared[:, k] & shared[:, 0]).nonzero()[:, 0]
    index = sharing if len(sharing) >= 2 else differing
    if len(index) < 2:
        raise DataError(f"The concept {name!r} has no pairs among {len(shared):,} drawn.")
    return index, len(sharing) >= 2


def over_rows(
    source: ConceptSource | LabelsOf, rows: Cache, position: Tensor | None, length: int | None, extra: Cache | None
) -> ConceptSource:
    """Return a source that numbers cached rows, from one that numbers images.

    Args:
        source: Over the images, or their labels.
        rows: The cached rows, with the image that each is of.
        position: Where these images lie in the data that the source knows; None where it knows them in their own order.
        length: Images in the data that the source knows.
        extra: Rows of the source's own images, which follow, or None.

    Raises:
        DataError: It is not known which image each row is of, or a concept has no pairs among them.
    """
    everything = torch.arange(len(rows))
    if isinstance(source, LabelsOf):
        return source.source(
            {n.removeprefix(LABEL): rows[n].rows(everything) for n in rows.names() if n.startswith(LABEL)}
        )
    images = _placed(rows[IMAGE].rows(everything) if IMAGE in rows else None)
    if position is not None:
        images = position[images]
    if extra is not None:
        start = int(images.max()) + 1 if length is None else length
        images = torch.cat([images, start + torch.arange(len(extra))])
    return _Numbered(source, images)


def _placed(index: Tensor | None) -> Tensor:
    if index is None or bool((index < 0).any()):
        raise DataError(
            "Concepts name images by their place in the data set, and this data does not tell which image comes when: "
            "it is a stream, a loader that iterates in a way of its own, or one whose collate_fn yields images that "
            "match none of its items. Pass the data set itself, or labels with the images and concepts='labels'."
        )
    return index


def check_placed(wanted: ConceptRequest, data: BatchSource) -> None:
    """Check, before images are read, that concepts which name them by their place can be found again.

    Raises:
        DataError: The data does not tell which image is which.
    """
    if wanted.source is not None and not isinstance(wanted.source, LabelsOf):
        _placed(data.look(CHECKED)["index"])
