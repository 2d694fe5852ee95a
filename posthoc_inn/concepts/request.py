"""What a user can pass as concepts, turned into a source; wrong input raises before anything is trained."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Subset

from posthoc_inn.concepts.attributes import AttributeSource, attributes_of
from posthoc_inn.concepts.model import check_names
from posthoc_inn.concepts.tables import TABLE_ENDINGS, open_table
from posthoc_inn.errors import ConfigError, DataError, UnknownNameError, listed, quoted
from posthoc_inn.images import BatchSource
from posthoc_inn.protocols import ConceptSource

LABELS = "labels"
ATTRIBUTES = "attributes"

ACCEPTED = (
    "'labels' (of the data), 'attributes' (the data set's own) or a list of their names, a table (.csv, .tsv, .txt), "
    "a mapping name -> values with one an image, a registered concept source's name, or an object with names and "
    "pairs(n, seed=)"
)

TABLE_OPTIONS = {
    "columns": "the wanted columns, separated by commas",
    "files": "the column of file names",
    "delimiter": "what separates cells: , ; tab | or space",
    "neighbors": "how many neighbours of a continuous value share it",
    "agree": "drawn or all: what a pair shares besides its own concept",
}
OTHER_TABLES = (
    ".xlsx",
    ".xls",
    ".ods",
    ".parquet",
    ".feather",
    ".json",
    ".jsonl",
    ".pkl",
    ".npz",
    ".npy",
    ".gz",
    ".zip",
)
"""Endings of tables that are not read here."""


NO_LABELS = "concepts='labels' needs labels with the images, and the data yields none."


class LabelsOf:
    """Stands for the labels that come with the images, of which `names` are wanted (all when None)."""

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.names = None if names is None else tuple(names)

    @staticmethod
    def check(data: BatchSource) -> None:
        """Check, before anything is trained, that the data yields labels whose names can be concepts'.

        Raises:
            DataError: It yields none; the message says what was left out.
            ConfigError: A name cannot be a concept's.
        """
        if not data.has_labels:
            left = [note for note in data.notes if "label" in note.lower()]
            raise DataError(" ".join([NO_LABELS, *left]))
        check_names(data.label_names)

    def source(self, columns: Mapping[str, Tensor]) -> AttributeSource:
        """Return the source over cached rows with these labels.

        Raises:
            DataError: There are no labels, or a concept cannot be learned from them.
        """
        if not columns:
            raise DataError(NO_LABELS)
        return AttributeSource(columns, concepts=self.names)


def as_source(
    concepts: Any, data: Any, *, seed: int = 0, options: Mapping[str, Any] | None = None
) -> ConceptSource | LabelsOf:
    """Return the source that `concepts` stands for, over the images of `data`.

    Args:
        concepts: See `ACCEPTED`.
        data: What the images come from.
        seed: For a registered source.
        options: Of a registered source, or of a table (`TABLE_OPTIONS`).

    Raises:
        ConfigError: It stands for nothing.
        PosthocInnError: The source refuses: unknown names, one value only, no pairs.
    """
    options = dict(options or {})
    is_name = isinstance(concepts, (str, Path)) and str(concepts) not in (LABELS, ATTRIBUTES)
    if options and not is_name:
        raise ConfigError(
            f"Options are for tables and registered concept sources; {_kind(concepts)} has none, got "
            f"{', '.join(options)}."
        )
    if isinstance(concepts, (LabelsOf, ConceptSource)):
        return concepts
    if isinstance(concepts, Mapping):
        return _sized(AttributeSource(concepts), data)
    if isinstance(concepts, (list, tuple)) and concepts and all(isinstance(c, str) for c in concepts):
        return _sized(AttributeSource(attributes_of(underlying(data)), concepts=concepts), data)
    if isinstance(concepts, (str, Path)):
        text = str(concepts)
        if text == LABELS:
            return LabelsOf()
        if text == ATTRIBUTES:
            return _sized(AttributeSource(attributes_of(underlying(data))), data)
        if text.lower().endswith(TABLE_ENDINGS):
            return _of_table(text, data, options)
        if text.lower().endswith(OTHER_TABLES):
            raise ConfigError(f"The table {text} is of a kind that is not read; save it as a text file, .csv or .tsv.")
        return _by_name(text, data, seed, options)
    raise ConfigError(f"concepts must be {ACCEPTED}; got {type(concepts).__name__}.")


def _kind(concepts: Any) -> str:
    return repr(concepts) if isinstance(concepts, str) else f"a {type(concepts).__name__}"


def _of_table(path: str, data: Any, options: Mapping[str, Any]) -> AttributeSource:
    """Return the source over a table in a file; columns that nobody chose and that cannot be learned are left out."""
    wrong = sorted(set(options) - set(TABLE_OPTIONS))
    if wrong:
        told = "; ".join(f"{key}: {text}" for key, text in TABLE_OPTIONS.items())
        raise ConfigError(f"A table of concepts has no option {wrong[0]!r}; it has {told}.")
    columns, neighbors = options.get("columns"), options.get("neighbors", 8)
    if columns is not None:
        parts = columns.split(",") if isinstance(columns, str) else columns
        columns = [str(part).strip() for part in parts if str(part).strip()]
        if not columns:
            raise ConfigError("The option columns names no column; give their names, separated by commas.")
    try:
        neighbors = int(neighbors)
    except (TypeError, ValueError):
        raise ConfigError(f"The option neighbors must be a whole number of at least 1, got {neighbors!r}.") from None
    table = open_table(
        path,
        names=file_names(data),
        columns=columns,
        files=options.get("files"),
        delimiter=options.get("delimiter"),
    )
    count, rows = length_of(data), len(next(iter(table.columns.values()), ()))
    if count is not None and table.columns and rows != count:
        raise DataError(
            f"The table of concepts has {rows:,} rows, the data {count:,} images: one each is needed, or images with "
            "file names and a column of them."
        )
    if columns is None:
        table = table.learnable()
    source = AttributeSource(
        table.columns, concepts=columns, neighbors=neighbors, agree=options.get("agree", "drawn"), notes=table.notes
    )
    source.is_by_file = table.is_by_file
    return source


def _by_name(name: str, data: Any, seed: int, options: Mapping[str, Any]) -> ConceptSource:
    """Return a registered source, or, where nobody registers the name, the data set's attributes of these names."""
    from posthoc_inn.plugins import get_plugin_manager

    registry = get_plugin_manager().concept_sources
    if name not in registry:
        names = [part.strip() for part in name.split(",") if part.strip()]
        try:
            table = attributes_of(underlying(data))
        except DataError:
            registry.get(name)  # raises, and lists what is registered
            raise
        unknown = [part for part in names if part not in table]
        if unknown or not names:
            raise UnknownNameError(
                f"There is no concept source and no attribute {quoted((unknown or [name])[0])}. Attributes of the "
                "data: "
                f"{listed(list(table))}. Sources: {', '.join(registry.names())}, {LABELS}, {ATTRIBUTES}, or a "
                "table (.csv, .tsv, .txt)."
            )
        return _sized(AttributeSource(table, concepts=names), data)
    known = registry.get(name).metadata.get("options") or {}
    wrong = sorted(set(options) - set(known))
    if wrong:
        raise ConfigError(f"The concept source {name} has no option {wrong[0]!r}; it has {', '.join(known) or 'none'}.")
    factory = registry.get(name).factory
    try:
        inspect.signature(factory).bind(underlying(data), seed=seed, **options)
    except TypeError as error:
        told = "; ".join(f"{key}: {text}" for key, text in known.items())
        raise ConfigError(
            f"The concept source {name} cannot be made: {error}. Its options: {told or 'none'}."
        ) from None
    built: ConceptSource = factory(underlying(data), seed=seed, **options)
    return built


def _sized(source: AttributeSource, data: Any) -> AttributeSource:
    count = length_of(data)
    if count is not None and len(source) != count:
        raise DataError(
            f"The table of concepts has {len(source):,} rows, the data {count:,} images: one each is needed."
        )
    return source


def length_of(data: Any) -> int | None:
    """Return the number of images of data that knows it."""
    return BatchSource(underlying(data)).length


def underlying(data: Any) -> Any:
    """Return the data set behind a loader."""
    return data.dataset if isinstance(data, DataLoader) else data


def file_names(data: Any) -> list[str] | None:
    """Return the file names of a data set's images, in their order, where it tells them."""
    data = underlying(data)
    if isinstance(data, Subset):
        names = file_names(data.dataset)
        return None if names is None else [names[i] for i in data.indices]
    for attribute in ("files", "names", "samples", "imgs"):
        found = getattr(data, attribute, None)
        if isinstance(found, (list, tuple)) and len(found) == len(data):
            return [str(f[0] if isinstance(f, tuple) else f) for f in found]
    return None
