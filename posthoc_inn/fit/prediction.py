"""Settles what the model's prediction is, by the user's word or the first images, before anything is trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from posthoc_inn.features.outputs import Recognised, given, recognise
from posthoc_inn.fit.parts import Parts

LOOKED_AT = 64
"""Images whose predictions are looked at."""
OTHERWISE = "prediction_kind= (--prediction-kind) says otherwise: classes, multilabel, embedding or none."


@torch.no_grad()
def settle_prediction(parts: Parts) -> Parts:
    """Return the parts with an extractor that knows what the prediction is.

    Raises:
        ConfigError: The prediction cannot be what the user says, or the model returns several tensors.
    """
    extractor = parts.extractor
    batch = parts.data.take(LOOKED_AT)
    inputs = parts.adapter.to_model(batch["images"].to(parts.device))
    word = extractor.prediction_kind
    if word == "none":
        found = Recognised("none", "as prediction_kind says", is_given=True)
    elif word == "auto" and extractor.returns_one_each(inputs):
        found = Recognised("none", "the model returns one structure an image, as detectors do")
    elif word == "auto":
        labels = batch["labels"]
        found = recognise(
            extractor.predict(inputs),
            head=parts.probe.head,
            labels=labels,
            classes=_class_count(parts.data.data, labels),
        )
    else:
        found = given(word, extractor.predict(inputs))
    return dataclasses.replace(parts, extractor=extractor.of_kind(found), prediction=found)


def doubts(found: Recognised | None) -> list[str]:
    """Return what a user has to know of what was recognised, a sentence each."""
    if found is None or found.is_sure:
        return []
    doubt = found.doubt or f"The model's prediction is taken as scores of classes: {found.why}"
    return [f"{doubt}; {OTHERWISE}"]


def _class_count(data: Any, labels: Any) -> int | None:
    """Return how many classes the data has: as many as it names, or else as the first labels show."""
    for _ in range(5):
        named = getattr(data, "classes", None)
        if isinstance(named, (list, tuple)) and named:
            return len(named)
        data = getattr(data, "dataset", None) or getattr(data, "data", None)
    if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point() and int(labels.min()) >= 0:
        return int(labels.max()) + 1
    return None
