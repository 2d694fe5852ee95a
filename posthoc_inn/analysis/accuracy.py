"""How often the explained model is right on labelled images, beside what guessing would reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from posthoc_inn.errors import DataError
from posthoc_inn.features.outputs import is_classification
from posthoc_inn.images import BatchSource, some_of
from posthoc_inn.training.classifier import chance, classes_of

LIMIT = 1000
"""Images that are looked at, unless a caller wants more."""


@torch.no_grad()
def model_accuracy(
    predict: Callable[[Tensor], Tensor],
    source: BatchSource,
    *,
    limit: int = LIMIT,
    classes: int | None = 0,
    kind: str = "auto",
) -> dict[str, Any] | None:
    """Return the share of images that a model gets right.

    Args:
        predict: Images as `source` yields them, (B, C, H, W) -> the model's output, batch first.
        source: Labelled images.
        limit: Images that are looked at, at random where there are more (`some_of`).
        classes: How many classes the data has, as far as it is known; labels may show more. The model must have as
            many: another number means other classes. None asks every model that has a score for each label, and takes,
            of several labels with names, the first that is a class.
        kind: What the prediction is, as `LayerExtractor.kind` knows; other kinds than classes have no accuracy.

    Returns:
        `accuracy`, the share; `chance`, what naming the most frequent class would reach; `images`, how many were
        looked at. None where the images have no classes, or the model other ones.

    >>> source = BatchSource((torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 1, 1])))
    >>> model_accuracy(lambda images: torch.tensor([[1.0, 0.0]]).expand(len(images), 2), source)
    {'accuracy': 0.25, 'chance': 0.75, 'images': 4}
    """
    if kind not in ("auto", "classes"):
        return None
    source = BatchSource(some_of(source, limit, seed=source.seed), source.batch_size, seed=source.seed)
    hits = width = 0
    seen: list[Tensor] = []
    for batch in source.batches(draw=0):
        left = limit - sum(len(part) for part in seen)
        try:
            labels = classes_of(_first_class(batch["labels"]) if classes is None else batch["labels"])[:left]
        except DataError:
            return None
        output = predict(batch["images"][:left])
        if not is_classification(output):
            return None
        width = output.shape[1]
        hits += int((output.argmax(1).cpu() == labels).sum())
        seen.append(labels)
        if len(labels) >= left:
            break
    wanted = torch.cat(seen) if seen else torch.empty(0, dtype=torch.long)
    if not len(wanted):
        return None
    shown = int(wanted.max()) + 1
    if shown > width or (classes is not None and width != max(classes, shown)):
        return None
    return {"accuracy": hits / len(wanted), "chance": chance(wanted), "images": len(wanted)}


def _first_class(labels: Any) -> Any:
    """Return the first of several labels that is a class, or `labels` where they are one."""
    if not isinstance(labels, Mapping):
        return labels
    return next((v for v in labels.values() if v.ndim == 1 and not v.is_floating_point()), None)
