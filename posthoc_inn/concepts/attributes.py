"""Pairs of images that agree in an attribute: class labels, tables of attributes, a data set's own attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from posthoc_inn.concepts.columns import MISSING, as_column
from posthoc_inn.concepts.tables import missing_notes, open_table, read_table
from posthoc_inn.errors import DataError, Problems, UnknownNameError, listed, quoted, suggest

__all__ = ["MISSING", "AttributeSource", "as_column", "attributes_of", "open_table", "read_table"]


class _Categories:
    """Draws two images of one value; every value is equally likely, so that rare ones are balanced."""

    def __init__(self, name: str, values: Tensor) -> None:
        self.codes = values
        order = torch.argsort(values, stable=True)
        found, counts = torch.unique_consecutive(values[order], return_counts=True)
        starts = counts.cumsum(0) - counts
        known = found != MISSING
        if int(known.sum()) < 2:
            told = "no known value" if not bool(known.any()) else "one value only"
            missing = int((values == MISSING).sum())
            why = f" (-1 stands for missing, {missing:,} are; where it means no, pass 0 instead)" if missing else ""
            raise DataError(
                f"The concept {name!r} has {told} among the {len(values):,} images{why}: it cannot be learned."
            )
        usable = known & (counts >= 2)
        if not bool(usable.any()):
            raise DataError(f"The concept {name!r} has no pairs: no two of the {len(values):,} images share a value.")
        self._order, self._starts, self._counts = order, starts[usable], counts[usable]

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        value = torch.randint(len(self._starts), (n,), generator=generator)
        start, count = self._starts[value], self._counts[value]
        first = (torch.rand(n, generator=generator, dtype=torch.float64) * count).long()
        other = 1 + (torch.rand(n, generator=generator, dtype=torch.float64) * (count - 1)).long()
        return self._order[start + first], self._order[start + (first + other) % count]


class _Neighbors:
    """Draws an image and one of those nearest to it in the values of a continuous attribute."""

    codes: Tensor | None = None

    def __init__(self, name: str, values: Tensor, neighbors: int) -> None:
        from sklearn.neighbors import NearestNeighbors

        rows = values.double().reshape(len(values), -1)
        self._known = torch.isfinite(rows).all(dim=1).nonzero()[:, 0]
        rows = rows[self._known]
        if len(rows) < 2 or bool((rows == rows[:1]).all()):
            told = "no known values" if not len(rows) else "one value only"
            raise DataError(f"The concept {name!r} has {told} among the {len(values):,} images: it cannot be learned.")
        count = min(neighbors, len(rows) - 1)
        # Asked without query points, no image is its own neighbour.
        index = NearestNeighbors(n_neighbors=count).fit(rows.numpy()).kneighbors(return_distance=False)
        self._nearest = torch.from_numpy(index)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        a = torch.randint(len(self._known), (n,), generator=generator)
        which = torch.randint(self._nearest.shape[1], (n,), generator=generator)
        return self._known[a], self._known[self._nearest[a, which]]


class AttributeSource:
    """Pairs that share one attribute's value, drawn from a table with a row an image.

    Whole numbers, booleans and texts are categories (-1 and empty texts are missing); each value is drawn equally
    often, so that rare attributes are balanced. Floating-point columns, (N,) or (N, d), are continuous (NaN is
    missing): a pair is an image and one of its nearest `neighbors`.

    Args:
        values: Name -> values, one row an image.
        concepts: Which columns, and their order; all by default.
        neighbors: How many neighbours of a continuous value count as sharing it.
        agree: What a pair shares besides the concept it was drawn for: "drawn", nothing (as in MSC, where all else
            is independent); "all", every category that happens to agree.
        notes: What a user has to know of the values, a sentence each; by default, how many are missing.

    Raises:
        UnknownNameError: A concept is not in the table.
        DataError: A column has one value only or no pairs, or columns have different lengths.

    >>> source = AttributeSource({"digit": [0, 0, 1, 1], "size": torch.tensor([0.1, 0.9, 0.2, 0.8])}, neighbors=1)
    >>> a, b, shared = source.pairs(100, seed=0)
    >>> digits = torch.tensor([0, 0, 1, 1])
    >>> bool((digits[a] == digits[b])[shared[:, 1]].all()), shared[:, 0].any().item()
    (True, False)
    """

    is_by_file = False
    """Whether file names tell which row is of which image, rather than the order of the rows."""

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        concepts: Sequence[str] | None = None,
        neighbors: int = 8,
        agree: Literal["drawn", "all"] = "drawn",
        notes: Sequence[str] | None = None,
    ) -> None:
        names = tuple(values) if concepts is None else tuple(concepts)
        problems = Problems("AttributeSource")
        problems.check(bool(names), "there are no concepts; name at least one column")
        problems.check(len(set(names)) == len(names), f"a concept is named twice: {listed(names)}")
        problems.check(neighbors >= 1, f"neighbors must be at least 1, got {neighbors}")
        problems.check(agree in ("drawn", "all"), f"agree must be 'drawn' or 'all', got {agree!r}")
        problems.raise_if_any()
        for name in names:
            if name not in values:
                raise UnknownNameError(f"There is no attribute {quoted(name)}. {suggest(str(name), values)}")
        columns = {name: as_column(values[name], name) for name in names}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            counts = [f"{length:,} of {name!r}" for name, length in lengths.items()]
            raise DataError(f"Attributes have one value an image; got {listed(counts)}.")
        if not max(lengths.values()):
            raise DataError(f"The attributes {listed(names)} have no values: one an image is needed.")
        self.names = names
        self.values: Mapping[str, Tensor] = columns
        self.notes = tuple(missing_notes(columns) if notes is None else notes)
        self._neighbors = neighbors
        self._agree: Literal["drawn", "all"] = agree
        self._draws = [
            _Neighbors(n, c, neighbors) if c.is_floating_point() else _Categories(n, c) for n, c in columns.items()
        ]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def subset(self, index: Tensor) -> AttributeSource:
        """Return the same concepts over the images `index` (M,), which are then numbered from 0."""
        if len(index) and int(index.max()) >= len(self):
            raise DataError(f"The table has {len(self):,} rows, the data an image number {int(index.max()):,}.")
        return self.over({name: column[index] for name, column in self.values.items()}, notes=self.notes)

    def over(self, values: Mapping[str, Any], *, notes: Sequence[str] | None = None) -> AttributeSource:
        """Return the same concepts, their pairs drawn in the same way, over other images with a table of their own."""
        return AttributeSource(values, concepts=self.names, neighbors=self._neighbors, agree=self._agree, notes=notes)

    def pairs(self, n: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices a (n,), b (n,) and `shared` (n, K + 1); each concept is drawn equally often."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(len(self.names), (n,), generator=generator)
        a, b = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long)
        for k, draw in enumerate(self._draws):
            rows = (which == k).nonzero()[:, 0]
            a[rows], b[rows] = draw.draw(len(rows), generator)
        shared = torch.zeros(n, len(self.names) + 1, dtype=torch.bool)
        shared[torch.arange(n), which + 1] = True
        if self._agree == "all":
            for k, draw in enumerate(self._draws):
                if draw.codes is not None:
                    shared[:, k + 1] |= (draw.codes[a] == draw.codes[b]) & (draw.codes[a] != MISSING)
        return a, b, shared


def attributes_of(data: Any) -> dict[str, Tensor]:
    """Return the table of attributes that a data set brings along: name -> one row an image.

    Looks for ``attribute_table()``, then for ``targets`` (N, K) with ``attribute_names``, then asks
    ``attributes(index)`` of each image.

    Raises:
        DataError: It brings none.
    """
    table = getattr(data, "attribute_table", None)
    if callable(table):
        return {str(k): as_column(v, str(k)) for k, v in table().items()}
    names = getattr(data, "attribute_names", None)
    targets = getattr(data, "targets", None)
    if names is not None and isinstance(targets, Tensor) and targets.ndim == 2 and targets.shape[1] == len(names):
        return {str(n): as_column(targets[:, k], str(n)) for k, n in enumerate(names)}
    one = getattr(data, "attributes", None)
    if not callable(one) or not len(data):
        raise DataError(
            f"The data set {type(data).__name__} has no attributes of its own; pass a table, "
            "labels or pairs as concepts."
        )
    rows = [one(i) for i in range(len(data))]
    return {str(k): as_column(torch.stack([torch.as_tensor(r[k]) for r in rows]), str(k)) for k in rows[0]}
