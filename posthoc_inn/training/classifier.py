"""Trains a classifier with the one training loop: the user's model of an example, before it is explained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posthoc_inn.config import ImageSpec, TrainConfig
from posthoc_inn.errors import DataError
from posthoc_inn.images import apply_spec
from posthoc_inn.rows.cache import Cache, pixels, unit
from posthoc_inn.training.tasks import Shuffle

CLASSIFIER_TRAINING = TrainConfig(
    steps=2500,
    batch_size=64,
    optimizer="adam",
    lr=1e-3,
    betas=(0.9, 0.99),
    weight_decay=0.0,
    warmup=0.05,
    final_lr=0.01,
    clip=1.0,
    eval_every=250,
    patience=0,
    checkpoint_every=250,
)
"""For a small network on small images, from random weights, in about a minute on two cores."""

EVENED = (0.15, 0.5)
"""Shares of the steps: up to the first, images are shown with their contrast evened out; from the second, as they are.

A network without normalisation layers, shown strokes in random colours from the start, stays at chance for thousands of
steps, or for good.
"""

CHUNK = 250
"""Held-out images that go through the network at a time."""


def classes_of(labels: Any) -> Tensor:
    """Return integer labels (B,).

    Raises:
        DataError: There are none, or they are not one class an image.
    """
    if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point() and bool((labels >= 0).all()):
        return labels.long()
    got = "none" if labels is None else f"names {', '.join(labels)}" if isinstance(labels, Mapping) else "other labels"
    raise DataError(
        f"Training the model needs one class an image (integers from 0), and the data has {got}. Give the model's "
        "weights instead (--weights FILE), or data with classes, such as a folder with one subfolder a class."
    )


def labelled_rows(
    batches: Iterable[Mapping[str, Any]], cache: Cache, progress: Callable[[int], None] = lambda done: None
) -> Cache:
    """Fill `cache` with "images" (uint8) and "labels" of canonical labelled images.

    Args:
        batches: Dicts with images (B, C, H, W) in [0, 1] and integer labels (B,).
        cache: An empty one.
        progress: Called with the number of images read so far.

    Raises:
        DataError: Labels are missing or not one class an image, or images lie outside [0, 1].

    >>> rows = labelled_rows([{"images": torch.rand(2, 1, 8, 8), "labels": torch.tensor([0, 1])}], Cache())
    >>> len(rows), rows["images"].dtype
    (2, torch.uint8)
    """
    for batch in batches:
        cache.append(images=pixels(batch["images"]), labels=classes_of(batch["labels"]))
        progress(len(cache))
    return cache


def evened(images: Tensor) -> Tensor:
    """Return grey images of equal contrast: mean 0.5, deviation 0.25, the rarer tone bright.

    Args:
        images: Canonical images (B, C, H, W).

    >>> dim = torch.full((1, 3, 4, 4), 0.5); dim[..., 0, 0] = 0.4
    >>> evened(dim)[0, :, 0, 0].tolist() == [1.0, 1.0, 1.0]
    True
    """
    luma = images.mean(1, keepdim=True)
    luma = luma - luma.mean((2, 3), keepdim=True)
    luma = luma / (luma.std((2, 3), keepdim=True) + 1e-3)
    luma = luma * luma.pow(3).mean((2, 3), keepdim=True).sign()
    return (0.5 + 0.25 * luma).clamp(0, 1).expand_as(images)


class ClassifierLoss(nn.Module):
    """Cross-entropy of a model on cached images, as a module that Fabric can wrap."""

    def __init__(self, model: nn.Module, spec: ImageSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    def logits(self, images: Tensor, share: Tensor | None = None) -> Tensor:
        """Return the model's logits (B, classes) for cached images (B, C, H, W) uint8, evened out by `share` ()."""
        shown = unit(images)
        if share is not None and bool(share > 0):
            shown = shown.lerp(evened(shown), share)
        out: Tensor = self.model(apply_spec(shown, self.spec).contiguous(memory_format=torch.channels_last))
        return out.float()

    def forward(self, images: Tensor, labels: Tensor, share: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats, a scalar, for cached images, labels (B,) and the evened share ()."""
        return F.cross_entropy(self.logits(images, share), labels)


class ClassifierTask:
    """Trains a classifier on cached labelled images; see `posthoc_inn.training.train`.

    Args:
        model: Returns logits (B, classes).
        spec: How it wants canonical images.
        train: Cache with "images" and "labels".
        held_out: The same.
        batch_size: Images a step.
        steps: Steps in all.
        seed: Seed of their order.

    >>> rows, labels = Cache(), torch.tensor([0, 1, 0, 1])
    >>> rows.append(images=torch.zeros(4, 1, 2, 2, dtype=torch.uint8), labels=labels)
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> task = ClassifierTask(net, ImageSpec(channels=1), rows, rows, batch_size=3, steps=9, seed=0)
    >>> [tuple(t.shape) for t in task.batch(0, torch.Generator())], 0 <= task.held_out()["accuracy"] <= 1
    ([(3, 1, 2, 2), (3,), ()], True)
    """

    name = "classifier"

    def __init__(
        self,
        model: nn.Module,
        spec: ImageSpec,
        train: Cache,
        held_out: Cache,
        *,
        batch_size: int,
        steps: int,
        seed: int,
    ) -> None:
        self.module = ClassifierLoss(model, spec)
        self._train, self._held_out, self._steps = train, held_out, steps
        self._shuffle = Shuffle(len(train), batch_size, seed)

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return cached images (B, C, H, W) uint8, labels (B,), and by how much images are evened out ()."""
        index = self._shuffle.index(step)
        first, last = EVENED
        share = min(1.0, max(0.0, (last - step / self._steps) / (last - first)))
        return self._train["images"].rows(index), self._train["labels"].rows(index), torch.tensor(share)

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Return the cross-entropy in nats, and the accuracy, on held-out images."""
        parameter = next(self.module.parameters(), None)
        device = parameter.device if parameter is not None else torch.device("cpu")
        loss, hits, count = 0.0, 0, 0
        for images, labels in self._held_out.batches(CHUNK, "images", "labels"):
            logits, labels = self.module.logits(images.to(device)), labels.to(device)
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            hits += int((logits.argmax(1) == labels).sum())
            count += len(labels)
        return {"loss": loss / count, "accuracy": hits / count}


def wake_last_layer(model: nn.Module, lift: float = 1.0) -> None:
    """Lift the bias of a fresh classifier's last layer, so that no class starts out dead behind a final ReLU.

    SqueezeNet ends with a ReLU: a class whose logit starts below zero for every image never gets a gradient. A softmax
    does not see a lift that all classes share.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> before = net[1].bias.detach().clone(); wake_last_layer(net)
    >>> torch.allclose(net[1].bias.detach() - before, torch.ones(2))
    True
    """
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if layers and layers[-1].bias is not None:
        with torch.no_grad():
            layers[-1].bias.add_(lift)


def chance(labels: Tensor) -> float:
    """Return the accuracy of always naming the most frequent class; nan without labels.

    >>> chance(torch.tensor([0, 0, 1, 2]))
    0.5
    """
    return float(labels.bincount().max() / len(labels)) if len(labels) else math.nan
