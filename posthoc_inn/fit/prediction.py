"""Settles what the model's prediction is, by the user's word or the first images, before anything is trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from posthoc_inn.errors import ConfigError
from posthoc_inn.features.outputs import Recognised, given, recognise
from posthoc_inn.fit.parts import Parts

LOOKED_AT = 64
"""Images whose predictions are looked at."""
AS = {"classes": "scores of classes", "embedding": "an embedding"}
OTHERWISE = "prediction_kind= (--prediction-kind) says what it is: classes, multilabel, embedding or none."


@torch.no_grad()
def settle_prediction(parts: Parts) -> Parts:
    """Return the parts with an extractor that knows what the prediction is.

    Raises:
        ConfigError: The prediction cannot be what the user says, or the model returns several tensors.
    """
    extractor = parts.extractor
    batch = parts.data.look(LOOKED_AT)
    inputs = parts.adapter.to_model(batch["images"].to(parts.device))
    word = extractor.prediction_kind
    if word == "none":
        found = Recognised("none", "as prediction_kind says", is_given=True)
    elif word == "auto" and extractor.returns_one_each(inputs):
        found = Recognised("none", "the model returns one structure an image, as detectors do")
    else:
        found = _look(parts, extractor.predict(inputs), len(batch["images"]), batch["labels"])
    return dataclasses.replace(parts, extractor=extractor.of_kind(found), prediction=found)


def _look(parts: Parts, output: Tensor, rows: int, labels: Any) -> Recognised:
    word, head = parts.extractor.prediction_kind, parts.probe.head
    if output.shape[:1] != (rows,):
        if word == "auto":
            return Recognised("none", f"it has not one row an image, but shape {tuple(output.shape)} for {rows}")
        raise ConfigError(
            f"prediction_kind={word!r} needs one row an image, and the model's prediction for {rows} images has shape "
            f"{tuple(output.shape)}; name another tensor with prediction=, or pass prediction_kind='none'."
        )
    if word != "auto":
        return given(word, output, head)
    return recognise(output, head=head, labels=labels, classes=_class_count(parts.data.data, labels))


def doubts(found: Recognised | None) -> list[str]:
    """Return what a user has to know of what was recognised, a sentence each."""
    if found is None or found.is_sure:
        return []
    return [f"The model's prediction is taken as {AS[found.kind]}: {found.why}. {OTHERWISE}"]


def _class_count(data: Any, labels: Any) -> int | None:
    """Return how many classes the data has: as many as it names, or else as the first labels show."""
    for _ in range(5):
        named = getattr(data, "classes", None)
        if isinstance(named, (list, tuple)) and named:
            return len(named)
        inner = getattr(data, "dataset", None)
        data = getattr(data, "data", None) if inner is None else inner
    if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point() and int(labels.min()) >= 0:
        return int(labels.max()) + 1
    return None
