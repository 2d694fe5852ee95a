"""Concepts: one slider a dimension of a concept, a concept taken from another picture, and the model's answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_inn.app.answers import Answer, Card, Row, said_of
from posthoc_inn.app.fitted import FittedLayer, Shown, told_elsewhere
from posthoc_inn.concepts import RANDOM, ConceptModel
from posthoc_inn.concepts.model import RESIDUAL
from posthoc_inn.errors import NotFittedError

KNOBS = 6
"""Sliders at the most: the dimensions that pairs with the concept in common share most."""
RANGE = 3.0
"""Of a slider, in deviations, unless the picture itself lies farther out."""


@dataclass(frozen=True)
class Knob:
    """A slider: one dimension of a concept.

    Attributes:
        dimension: Which one of the concept's.
        value: Of the picture, in deviations of that dimension over held-out images.
        low: Its end on the left.
        high: Its end on the right.
    """

    dimension: int
    value: float
    low: float
    high: float


def concept_names(layer: FittedLayer) -> list[str]:
    """Return what can be changed: the concepts, and last what none of them describes."""
    model = layer.concepts
    if model is None:
        return []
    return [name for name in model.factor_names if name not in (RANDOM, RESIDUAL)] + [RESIDUAL]


def own_value(layer: FittedLayer, shown: Shown, concept: str) -> Tensor:
    """Return a picture's factor of a concept, (width,)."""
    model = _model(layer)
    return model.joined(layer.pipeline.means(layer.given(shown)))[0, model.part(concept)].cpu()


def between(layer: FittedLayer, shown: Shown, other: Shown, concept: str, amount: float) -> Tensor:
    """Return the factor on the way from the picture's (0) to the other's (1), (width,)."""
    start, stop = (own_value(layer, one, concept) for one in (shown, other))
    return torch.lerp(start, stop, min(max(float(amount), 0.0), 1.0))


def knobs(layer: FittedLayer, concept: str, value: Tensor) -> list[Knob]:
    """Return the sliders of a concept, set to a value (width,)."""
    model = _model(layer)
    part = model.part(concept)
    deviation, rho = model.deviation[part].cpu(), model.rho[part].abs().nan_to_num(0.0).cpu()
    order = torch.argsort(rho, descending=True, stable=True)[:KNOBS].tolist()
    found = []
    for k in order:
        own = float(value[k] / deviation[k])
        low, high = min(-RANGE, math.floor(own)), max(RANGE, math.ceil(own))
        found.append(Knob(k, round(own, 3), low, high))
    return found


def turned(layer: FittedLayer, concept: str, value: Tensor, settings: list[float]) -> Tensor:
    """Return the value (width,) with what the sliders say, in their order, in place of its own.

    Args:
        layer: Whose e it is.
        concept: Which one.
        value: What the sliders were set from, (width,).
        settings: In deviations, one a slider; more than there are sliders are left alone.
    """
    model = _model(layer)
    deviation, found = model.deviation[model.part(concept)].cpu(), value.clone()
    for knob, setting in zip(knobs(layer, concept, value), settings, strict=False):
        found[knob.dimension] = float(setting) * float(deviation[knob.dimension])
    return found


def changed(layer: FittedLayer, shown: Shown, concept: str, value: Tensor) -> Answer:
    """Return the picture with a concept set to a value (width,), and what the model says of it.

    Raises:
        NotFittedError: There is no e.
        PosthocInnError: The picture cannot be used.
    """
    _model(layer)
    pipeline, given = layer.pipeline, layer.given(shown)
    with told_elsewhere():
        edited = layer.interpreter.edit(given, concept, value=value)
    plain = pipeline.reconstructions(given)
    own = pipeline.ask(given)
    before, after = (pipeline.ask_model(picture)[1] for picture in (plain, edited))
    picture = pipeline.adapter.to_images(given.to(pipeline.device))
    cards = []
    for title, image, said in (
        ("the picture", picture, said_of(layer, own)),
        ("reconstructed", plain, said_of(layer, before, own)),
        ("changed", edited, said_of(layer, after, before)),
    ):
        cards.append(Card(image[0].cpu(), title, said[0].text, said[0].mark, said[0].bars))
    return Answer((Row("", tuple(cards)),), (), layer.doubts(shown))


def taken(layer: FittedLayer, shown: Shown, other: Shown) -> Answer:
    """Return the picture with each concept in turn taken from the other.

    Raises:
        NotFittedError: There is no e.
        PosthocInnError: A picture cannot be used.
    """
    _model(layer)
    pipeline, given, source = layer.pipeline, layer.given(shown), layer.given(other)
    cards = []
    reference = pipeline.ask_model(pipeline.reconstructions(given))[1]
    with told_elsewhere():
        for name in concept_names(layer):
            edited = layer.interpreter.edit(given, name, source=source)
            said = said_of(layer, pipeline.ask_model(edited)[1], reference)[0]
            cards.append(Card(edited[0].cpu(), f"{name} of the other", said.text, said.mark))
    return Answer((Row("One concept of the other picture, all else of this one", tuple(cards)),))


def _model(layer: FittedLayer) -> ConceptModel:
    model = layer.concepts
    if model is None:
        raise NotFittedError(
            f"{layer.name} has no concepts. Fit with them: posthoc-inn fit --concepts labels (or a table, or names of "
            "the data's attributes), and open the page on that bundle."
        )
    return model
