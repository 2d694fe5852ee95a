"""What a part answers: rows of pictures with what the model says of each, and sentences. No HTML, no gradio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from posthoc_inn.analysis.comparable import class_name, log_probabilities
from posthoc_inn.app.fitted import FittedLayer

Mark = Literal["", "same", "other"]
TOP = 3
"""Classes whose probabilities are shown."""


@dataclass(frozen=True)
class Bar:
    """A class and its probability."""

    name: str
    share: float


@dataclass(frozen=True)
class Card:
    """A picture with its words.

    Attributes:
        picture: (C, H, W) in [0, 1].
        title: What it is.
        says: What the model says of it, or "".
        mark: Whether that is what it says of the picture that it is compared with; "" where nothing is compared.
        bars: The likeliest classes, or none.
    """

    picture: Tensor = field(repr=False)
    title: str = ""
    says: str = ""
    mark: Mark = ""
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True)
class Row:
    """Pictures that belong together."""

    heading: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Answer:
    """What a part shows.

    Attributes:
        rows: Of pictures.
        told: Sentences about these pictures.
        doubts: Why not to trust them.
    """

    rows: tuple[Row, ...] = ()
    told: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Said:
    """What the model says of one picture."""

    text: str
    mark: Mark = ""
    bars: tuple[Bar, ...] = ()


def said_of(layer: FittedLayer, output: Tensor, reference: Tensor | None = None) -> list[Said]:
    """Return what a model's output (B, ...) says of each picture, compared with that for a reference (1, ...).

    Classes come with their probability, labels as a set, embeddings as their cosine to the reference.
    """
    extractor = layer.pipeline.extractor
    kind = extractor.kind_of(output)
    if kind == "classes":
        return _classes(output, reference, layer.classes)
    told = extractor.said(output)
    if told is None:
        return [Said("")] * len(output)
    if kind == "multilabel":
        named = layer.classes if len(layer.classes) == told.shape[1] else [str(k) for k in range(told.shape[1])]
        other = None if reference is None else extractor.said(reference)
        return [
            Said(
                ", ".join(named[k] for k in row.nonzero().flatten().tolist()) or "no label",
                "" if other is None else _mark(bool((row == other[0]).all())),
            )
            for row in told
        ]
    if reference is None:
        return [Said("")] * len(output)
    near = torch.nn.functional.cosine_similarity(output.flatten(1).double(), reference.flatten(1).double())
    return [Said(f"output's cosine {value:.2f}") for value in near.tolist()]


def _classes(output: Tensor, reference: Tensor | None, classes: Sequence[str]) -> list[Said]:
    shares = log_probabilities(output.detach()).exp()
    names = classes if len(classes) == shares.shape[1] else ()
    own = None if reference is None else int(reference.argmax(1)[0])
    found = []
    for row in shares:
        best = row.topk(min(TOP, len(row)))
        bars = tuple(
            Bar(class_name(k, names), p) for k, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )
        mark = "" if own is None else _mark(own == int(best.indices[0]))
        found.append(Said(percent(bars[0].name, bars[0].share), mark, bars))
    return found


def percent(name: str, share: float) -> str:
    """Return a class with its probability.

    >>> percent("cat", 0.981)
    'cat, 98 %'
    """
    return f"{name}, {100 * share:.0f} %"


def _mark(is_same: bool) -> Mark:
    return "same" if is_same else "other"
