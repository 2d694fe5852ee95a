"""What the page is opened on: fitted layers with their names, and the pictures that it offers."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from posthoc_inn.analysis.comparable import check_comparable
from posthoc_inn.analysis.samples import class_names_of
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.errors import ConfigError, DataError, OutsideWarning, PosthocInnError, listed
from posthoc_inn.images import apply_spec, fit_canonical, load_image, resize
from posthoc_inn.images.spec import check_canonical
from posthoc_inn.interpreter import Interpreter
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.report.findings import findings

LONGEST = 768
"""Pixels of the longer side that a visitor's picture is kept with, in memory alone, while the page is open."""
MAX_PIXELS = 25_000_000
"""Pixels of a file that is read; larger ones are refused before they are decoded."""
MAX_BYTES = 10_000_000
"""Of a file that is sent."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture that is looked at.

    Attributes:
        name: What it is called.
        picture: Canonical image (C, H, W) in [0, 1], of any size.
    """

    name: str
    picture: Tensor = dataclasses.field(repr=False)

    @classmethod
    def of_file(cls, path: str | Path) -> Shown:
        """Read a file that a stranger sent, with the package's own reader.

        Raises:
            DataError: It is no picture, damaged or too large; the message names it without its folder.
        """
        file = Path(path)
        try:
            size = file.stat().st_size
        except OSError:
            raise DataError(f"{file.name} is not there any more; choose it again.") from None
        if size > MAX_BYTES:
            raise DataError(f"{file.name} has {size:,} bytes, more than {MAX_BYTES:,}; make it smaller.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of an animation its first frame is a good picture
                image = load_image(file, max_pixels=MAX_PIXELS)[None]
        except DataError as error:
            raise DataError(str(error).replace(str(file), file.name)) from error
        return cls(file.name, smaller(image)[0])


def smaller(images: Tensor) -> Tensor:
    """Return canonical images (B, C, H, W) whose longer side is `LONGEST` pixels at the most."""
    height, width = images.shape[-2:]
    longest = max(height, width)
    if longest <= LONGEST:
        return images
    return resize(images, [max(1, round(side * LONGEST / longest)) for side in (height, width)])


@dataclass(frozen=True, eq=False)
class FittedLayer:
    """One bundle: a layer of a model, and what was learned of it.

    Attributes:
        name: What the page calls it; no two are called the same.
        interpreter: Loaded.
        read_shape: Height and width at which the model or the autoencoder needs its images.
    """

    name: str
    interpreter: Interpreter
    read_shape: tuple[int, int]

    @property
    def pipeline(self) -> Pipeline:
        """The fitted parts."""
        return self.interpreter.pipeline

    @property
    def classes(self) -> Sequence[str]:
        """Names of the model's classes, as far as they are known."""
        return class_names_of(self.interpreter.origin)

    @property
    def concepts(self) -> ConceptModel | None:
        """The fitted e over latents, or None."""
        found: ConceptModel | None = self.interpreter.__dict__.get("concept_model_")
        return found if found is not None and found.space == "z_bar" else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the figures of the fit warn of, in a sentence; empty where all are good or fair."""
        poor = [f.label for f in findings(getattr(self.interpreter, "metrics_", {})) if f.status == "poor"]
        if not poor:
            return ()
        return (f"Some figures of this fit are poor: {listed(poor, 4)}. See Numbers before you conclude anything.",)

    def given(self, *shown: Shown) -> Tensor:
        """Return pictures as this interpreter takes its images, (B, C, H, W).

        Raises:
            ShapeError: One is no canonical image.
        """
        adapter = self.pipeline.adapter
        parts = []
        for one in shown:
            check_canonical(one.picture[None])
            parts.append(fit_canonical(one.picture[None], self.read_shape, adapter.channels)[0])
        images = torch.stack(parts)
        return images if adapter.normalization is None else apply_spec(images, adapter.spec)

    def doubts(self, *shown: Shown) -> tuple[str, ...]:
        """Say which of the pictures the layer sees as unlike those that t was fitted to."""
        found = self.interpreter.outside(self.given(*shown))
        told = "" if found is None else found.told_by([one.name for one in shown])
        return (told,) if told else ()


@contextmanager
def told_elsewhere() -> Iterator[None]:
    """Keep the library from warning of pictures that `doubts` tells of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutsideWarning)
        yield


@dataclass(frozen=True, eq=False)
class Opened:
    """All that the page is opened on.

    Attributes:
        layers: At least one, in the order of the slider.
        examples: Pictures to choose from; may be empty.
        groups: For each layer the number of its group: layers of one have the same model and autoencoder.
    """

    layers: tuple[FittedLayer, ...]
    examples: tuple[Shown, ...] = ()
    groups: tuple[int, ...] = ()

    @classmethod
    def of(cls, layers: Sequence[FittedLayer], examples: Sequence[Shown] = ()) -> Opened:
        """Return these, with their groups.

        Raises:
            ConfigError: There is no layer, or two have the same name.
        """
        names = [layer.name for layer in layers]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"The page is opened on at least one layer, each with a name of its own; got {names}.")
        groups: list[int] = []
        for layer in layers:
            found = (g for other, g in zip(layers, groups, strict=False) if _are_comparable(other, layer))
            groups.append(next(found, len(groups)))
        return cls(tuple(layers), tuple(examples), tuple(groups))

    def layer(self, number: float) -> FittedLayer:
        """Return a layer by its place on the slider, from 1; a stranger's number is brought into range."""
        return self.layers[self.place(number)]

    def place(self, number: float) -> int:
        """Return the place of a layer in `layers` for its number on the slider."""
        return min(max(int(number), 1), len(self.layers)) - 1

    def named(self, name: str) -> FittedLayer:
        """Return a layer by its name.

        Raises:
            ConfigError: There is none of that name.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise ConfigError(f"There is no {name!r} here; there are {', '.join(one.name for one in self.layers)}.")

    def beside(self, layer: FittedLayer) -> dict[str, FittedLayer]:
        """Return all layers of the same model and autoencoder, this one among them, by name and in order."""
        group = self.groups[self.layers.index(layer)]
        return {one.name: one for one, g in zip(self.layers, self.groups, strict=True) if g == group}


def _are_comparable(a: FittedLayer, b: FittedLayer) -> bool:
    try:
        check_comparable({"a": a.pipeline, "b": b.pipeline}, "the page")
    except PosthocInnError:
        return False
    return True
