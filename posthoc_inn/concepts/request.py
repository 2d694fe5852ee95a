"""What a user can pass as concepts, turned into a source; wrong input raises before anything is trained."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Subset

from posthoc_inn.concepts.attributes import AttributeSource, attributes_of, read_table
from posthoc_inn.errors import ConfigError, DataError, UnknownNameError
from posthoc_inn.images import BatchSource
from posthoc_inn.protocols import ConceptSource

LABELS = "labels"
ATTRIBUTES = "attributes"

ACCEPTED = (
    "'labels' (of the data), 'attributes' (the data set's own) or a list of their names, a CSV file, a mapping name -> "
    "values with one an image, a registered concept source's name, or an object with names and pairs(n, seed=)"
)


class LabelsOf:
    """Stands for the labels that come with the images, of which `names` are wanted (all when None)."""

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.names = None if names is None else tuple(names)

    def source(self, columns: Mapping[str, Tensor]) -> AttributeSource:
        """Return the source over cached rows with these labels.

        Raises:
            DataError: There are no labels, or a concept cannot be learned from them.
        """
        if not columns:
            raise DataError("concepts='labels' needs labels with the images, and the data yields none.")
        return AttributeSource(columns, concepts=self.names)


def as_source(
    concepts: Any, data: Any, *, seed: int = 0, options: Mapping[str, Any] | None = None
) -> ConceptSource | LabelsOf:
    """Return the source that `concepts` stands for, over the images of `data`.

    Args:
        concepts: See `ACCEPTED`.
        data: What the images come from.
        seed: For a registered source.
        options: For a registered source.

    Raises:
        ConfigError: It stands for nothing.
        PosthocInnError: The source refuses: unknown names, one value only, no pairs.
    """
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
        if text.lower().endswith(".csv"):
            return _sized(AttributeSource(read_table(text, names=file_names(data))), data)
        return _by_name(text, data, seed, options or {})
    raise ConfigError(f"concepts must be {ACCEPTED}; got {type(concepts).__name__}.")


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
                f"There is no concept source and no attribute {(unknown or [name])[0]!r}. Attributes of the data: "
                f"{', '.join(table)}. Sources: {', '.join(registry.names())}, {LABELS}, {ATTRIBUTES}, or a .csv file."
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
