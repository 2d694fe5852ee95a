"""Concepts as a fit meets them: what was asked for, and the same over cached rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from posthoc_inn.concepts import LabelsOf, Space
from posthoc_inn.errors import DataError
from posthoc_inn.images import BatchSource
from posthoc_inn.images.batches import CHECKED
from posthoc_inn.protocols import ConceptSource
from posthoc_inn.rows.cache import Cache
from posthoc_inn.rows.pairs import RowPairs
from posthoc_inn.rows.part import IMAGE
from posthoc_inn.rows.reader import LABEL
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
        kept_extra: Numbers of the source's own images that train; None for all. Those that were made from held-out
            images are left out: they would tell of these.
    """

    source: ConceptSource | LabelsOf | None
    held_out_source: ConceptSource | LabelsOf | None = None
    space: Space = "z_bar"
    sizes: tuple[int, ...] | None = None
    positions: tuple[Tensor | None, Tensor | None] = (None, None)
    length: int | None = None
    reason: str = ""
    kept_extra: Tensor | None = None

    @property
    def extra(self) -> Any:
        """Images of the source's own that train, or None."""
        found = getattr(self.source, "extra", None)
        return found if found is None or self.kept_extra is None else Subset(found, self.kept_extra.tolist())

    def leave_out_copies(self) -> None:
        """Leave out of training what the source made from held-out images, as far as it says what it made from what."""
        made_of, held_out = getattr(self.source, "extra_of", None), self.positions[1]
        if made_of is None or held_out is None:
            return
        is_copy = torch.isin(torch.as_tensor(made_of).long(), held_out)
        if bool(is_copy.any()):
            self.kept_extra = (~is_copy).nonzero()[:, 0]


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
    source = over_rows(request.source, train, request.positions[0], request.length, extra, request.kept_extra)
    _check_pairs(source, SIZING_PAIRS)
    kept, note = over_held_out(request, held_out)
    # What was left out of a table, or is missing in it: said once, of all the data.
    known = source if isinstance(request.source, LabelsOf) else request.source
    told = getattr(known, "notes", ())
    note = " ".join(filter(None, (*told, note)))
    return BoundConcepts(source, kept, request.space, request.sizes, note)


def over_held_out(request: ConceptRequest, rows: Cache) -> tuple[ConceptSource | None, str]:
    """Return the concepts over cached held-out rows; or None, and why."""
    aside = request.held_out_source
    if aside is None and (isinstance(request.source, LabelsOf) or request.positions[1] is not None):
        aside = request.source
    if aside is None:
        note = "e is measured on training pairs: nothing is known of the held-out images' concepts"
        return None, note + (f": {request.reason}" if request.reason else ".")
    try:
        kept = over_rows(aside, rows, request.positions[1], request.length, None)
        _check_pairs(kept, HELD_OUT_PAIRS)
    except DataError as error:
        return None, f"e is measured on training pairs, since held-out images give none: {error}"
    return kept, ""


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
    source: ConceptSource | LabelsOf,
    rows: Cache,
    position: Tensor | None,
    length: int | None,
    extra: Cache | None,
    kept_extra: Tensor | None = None,
) -> ConceptSource:
    """Return a source that numbers cached rows, from one that numbers images.

    Args:
        source: Over the images, or their labels.
        rows: The cached rows, with the image that each is of.
        position: Where these images lie in the data that the source knows; None where it knows them in their own order.
        length: Images in the data that the source knows.
        extra: Rows of the source's own images, which follow, or None.
        kept_extra: Numbers of these images among all that the source made; None for all.

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
        images = torch.cat([images, start + (torch.arange(len(extra)) if kept_extra is None else kept_extra)])
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
