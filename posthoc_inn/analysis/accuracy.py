"""How often the explained model is right, where the data has its classes: is it worth explaining at all?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

from posthoc_inn.features.outputs import is_classification
from posthoc_inn.images import BatchSource
from posthoc_inn.training.classifier import chance


class Accuracy(TypedDict):
    """Share of images whose label is predicted, that of always naming the most frequent label, and their number."""

    accuracy: float
    chance: float
    images: int


@torch.no_grad()
def model_accuracy(
    predict: Callable[[Tensor], Tensor], data: BatchSource, *, classes: int | None = None, limit: int = 1000
) -> Accuracy | None:
    """Return how often `predict` is right on labelled images.

    Args:
        predict: The user's tensors (B, C, H, W) -> the model's output.
        data: Images, with labels or without.
        classes: Number of the data's classes; by default one more than the largest label.
        limit: Images at the most.

    Returns:
        The accuracy; None where there are no labels that are one class an image, or where the model has another
        number of classes, so that its numbers need not mean the labels'.
    """
    hits, seen = 0, []
    for batch in BatchSource(data, limit=limit).batches():
        labels = batch["labels"]
        if isinstance(labels, dict):
            labels = next((v for v in labels.values() if v.ndim == 1), None)
        if labels is None or labels.ndim != 1 or labels.is_floating_point() or bool((labels < 0).any()):
            return None
        output = predict(batch["images"])
        if not is_classification(output):
            return None
        hits += int((output.argmax(1).cpu() == labels).sum())
        seen.append(labels.long())
    known = torch.cat(seen)
    if output.shape[1] != max(classes or 0, int(known.max()) + 1):
        return None
    return Accuracy(accuracy=hits / len(known), chance=chance(known), images=len(known))
