"""What analyses of several layers side by side share: checks that they can be compared, and questions to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from posthoc_inn.drawing import shortened
from posthoc_inn.errors import ConfigError, DataError, Problems
from posthoc_inn.features.isolation import unwrap
from posthoc_inn.features.outputs import is_classification
from posthoc_inn.images.adapter import InputAdapter
from posthoc_inn.images.normalization import ROUNDING
from posthoc_inn.images.spec import check_canonical
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.weights import fingerprint

ROWS = 64
"""Images that go through the explained model at a time."""


def check_comparable(pipelines: Mapping[str, Pipeline], subject: str) -> Pipeline:
    """Return the first of `pipelines` (layer -> fitted parts) when all explain one model through one autoencoder.

    Raises:
        ConfigError: There is none, or models, autoencoders or treatment of images differ.
    """
    problems = Problems(subject)
    problems.check(
        isinstance(pipelines, Mapping) and len(pipelines) > 0,
        f"pipelines must be a mapping of at least one layer's name to its fitted Pipeline, got {_shown(pipelines)}",
    )
    problems.raise_if_any()
    for name, pipeline in pipelines.items():
        problems.check(
            isinstance(pipeline, Pipeline),
            f"pipelines[{name!r}] must be a Pipeline (interpreter.pipeline), got {type(pipeline).__name__}",
        )
    problems.raise_if_any()
    first_name, first = next(iter(pipelines.items()))
    for name, pipeline in pipelines.items():
        what = f"{name!r} and {first_name!r}"
        problems.check(
            _same_weights(unwrap(first.extractor.model), unwrap(pipeline.extractor.model)),
            f"{what} explain different models; fit them to the same one",
        )
        problems.check(
            _same_weights(first.autoencoder, pipeline.autoencoder),
            f"{what} have different autoencoders; share one: Interpreter(model, layer, autoencoder=first.autoencoder_)",
        )
        problems.check(
            _treatment(first.adapter) == _treatment(pipeline.adapter),
            f"{what} take images differently (normalisation or size); fit them to data that come alike",
        )
    problems.raise_if_any()
    return first


def _shown(value: Any) -> str:
    return "an empty one" if isinstance(value, Mapping) else type(value).__name__


def _same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    # Two bundles hold a copy each of one autoencoder.
    return a is b or fingerprint(a) == fingerprint(b)


def _treatment(adapter: InputAdapter) -> tuple[Any, ...]:
    undone = adapter.normalization
    # Without a crop, and square, both frames show the same.
    size = adapter.spec.size
    frame = adapter.frame if adapter.spec.crop < 1 or (size is not None and size[0] != size[1]) else "view"
    return adapter.spec, undone and (undone.mean, undone.std), adapter.image_size, adapter.channels, frame


def to_canonical(adapter: InputAdapter, images: Tensor) -> Tensor:
    """Return images in [0, 1] at their own size for the user's tensors (B, C, H, W).

    Raises:
        ShapeError: They are no batch of floating-point images.
        DataError: They hold NaN, lie outside [0, 1] once normalisation is undone, or there is none.
    """
    check_canonical(images)
    if not len(images):
        raise DataError("images holds no image; pass at least one.")
    undone = adapter.normalization
    canonical = images.detach() if undone is None else undone.undo(images.detach())
    low, high = float(canonical.min()), float(canonical.max())
    slack = 0.0 if undone is None else ROUNDING
    if not (low >= -slack and high <= 1 + slack):
        how = "" if undone is None else f" (after undoing mean {undone.mean} and std {undone.std})"
        raise DataError(
            f"images must lie in [0, 1]{how}, got values from {low:.4g} to {high:.4g}; pass images as given to fit."
        )
    return canonical.clamp(0, 1)


def as_given(adapter: InputAdapter, canonical: Tensor) -> Tensor:
    """Return the user's tensors for canonical images (B, C, H, W), differentiably: the way back of `to_canonical`."""
    return canonical if adapter.normalization is None else adapter.normalization.apply(canonical)


def log_probabilities(output: Tensor) -> Tensor:
    """Return log-probabilities (B, classes), float64 on the CPU, for logits, log-probabilities or probabilities.

    Rows that are not negative and sum to 1 are taken as probabilities.
    """
    scores = output.cpu().double()
    if bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < 1e-3).all()):
        return scores.clamp_min(torch.finfo(torch.float32).tiny).log()
    return scores.log_softmax(1)


def check_gives_classes(pipeline: Pipeline, subject: str) -> None:
    """Check that nothing is known of the model's prediction but that it is scores of classes.

    Raises:
        ConfigError: It is something else.
    """
    kind = pipeline.extractor.kind
    if kind not in ("auto", "classes"):
        raise ConfigError(
            f"{subject} needs a model that gives class scores, and this one's prediction is taken as {kind!r}. Fit it "
            "with prediction_kind='classes' if that is wrong, or use an analysis that needs no classes."
        )


def classify(output: Tensor, subject: str) -> tuple[Tensor, Tensor]:
    """Return the predicted class (B,) and its probability (B,) of a model's output, on the CPU.

    Raises:
        ConfigError: The output is not one row of class scores per image.
    """
    if not is_classification(output):
        raise ConfigError(
            f"{subject} needs a model that gives one row of class scores per image, (B, classes); this one gives "
            f"{tuple(output.shape)}. Name the right tensor with prediction=, or use an analysis that needs no classes."
        )
    probability, label = log_probabilities(output.detach()).exp().max(1)
    return label, probability


@torch.no_grad()
def contexts(pipeline: Pipeline, given: Tensor) -> Tensor:
    """Return H(Φ(x)), shape (B, context_dim), for the user's tensors: z of all images is never held at once."""
    return torch.cat([pipeline.context(pipeline.features(part)) for part in given.split(ROWS)])


def class_name(label: int, names: Sequence[str]) -> str:
    """Return a class's name, shortened, or its number where no names are known."""
    return shortened(str(names[label])) if label < len(names) else str(label)
