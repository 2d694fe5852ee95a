"""The built-in analyses as the plugin hook wants them: an interpreter and data in, a result out."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from posthoc_inn import analysis
from posthoc_inn.concepts import RANDOM, ConceptModel
from posthoc_inn.errors import DataError
from posthoc_inn.features.outputs import is_classification
from posthoc_inn.images import BatchSource
from posthoc_inn.pipeline import Pipeline

WALKS = 3
"""Concepts that the map of a response shows walks in."""


class Fitted(Protocol):
    """What an analysis asks of a fitted Interpreter."""

    layer: str

    @property
    def pipeline(self) -> Pipeline:
        """The fitted parts."""

    @property
    def concepts(self) -> ConceptModel:
        """The fitted e."""

    def explained_by_invariances(self, data: Any, *, samples: int, seed: int) -> analysis.ExplainedByInvariances:
        """MSC eq. 19."""

    def concept_relevance(self, data: Any, *, samples: int, seed: int) -> analysis.ConceptRelevance:
        """MSC eq. 20."""


def images_of(data: Any, count: int, *, seed: int, least: int = 2) -> Tensor:
    """Return the first `count` images of data, as the interpreter takes them.

    Raises:
        DataError: There are too few.
    """
    images = BatchSource(data, batch_size=128, seed=seed).first(count)
    if len(images) < least:
        raise DataError(f"At least {least} images are needed, got {len(images)}.")
    return images


def _layer(interpreter: Fitted) -> dict[str, Any]:
    return {interpreter.layer or "output": interpreter.pipeline}


def explained(interpreter: Fitted, data: Any, *, seed: int, samples: int = 10_000) -> Any:
    """MSC eq. 19."""
    return interpreter.explained_by_invariances(data, samples=samples, seed=seed)


def relevance(interpreter: Fitted, data: Any, *, seed: int, samples: int = 10_000) -> Any:
    """MSC eq. 20, with the first-order share."""
    return interpreter.concept_relevance(data, samples=samples, seed=seed)


def edits(interpreter: Fitted, data: Any, *, seed: int, images: int = 200) -> Any:
    """MSC eq. 7: each concept taken from another image."""
    return analysis.edit_gallery(interpreter.pipeline, interpreter.concepts, images_of(data, images, seed=seed))


def maps(interpreter: Fitted, data: Any, *, seed: int, images: int = 32, samples: int = 32) -> Any:
    """MSC fig. 3: where pictures vary."""
    return analysis.invariance_maps(
        _layer(interpreter), images_of(data, images, seed=seed), samples=samples, seed=seed
    )  # fmt: skip


def recombination(interpreter: Fitted, data: Any, *, seed: int, images: int = 6) -> Any:
    """What one image loses (v) with what the layer keeps of another (z)."""
    return analysis.recombine(interpreter.pipeline, images_of(data, images, seed=seed))


def attack(
    interpreter: Fitted, data: Any, *, seed: int, images: int = 64, method: str = "fgsm", epsilon: float = 8 / 255
) -> Any:
    """MSC fig. 5: what an attack changes of z."""
    given = images_of(data, images, seed=seed)
    return analysis.attack_view(_layer(interpreter), given, method=method, epsilon=epsilon, seed=seed)  # type: ignore[arg-type]


def response(interpreter: Fitted, data: Any, *, seed: int, images: int = 60, steps: int = 60) -> Any:
    """IIN 4.2: walks in one factor, through the decoder."""
    given = images_of(data, images, seed=seed)
    return analysis.response(
        interpreter.pipeline, interpreter.concepts, given, images=len(given), steps=steps, seed=seed
    )  # fmt: skip


def response_map(interpreter: Fitted, data: Any, *, seed: int, images: int = 500, steps: int = 50) -> Any:
    """IIN fig. 10: walks in the first concepts among the latents of images, coloured by the model's prediction."""
    given = images_of(data, images, seed=seed, least=4)
    pipeline, concepts = interpreter.pipeline, interpreter.concepts
    output = pipeline.predict(given)
    if not is_classification(output):
        raise DataError(
            "The map of a response is coloured by the model's classes, and this model gives no class scores."
        )
    names = [name for name in concepts.names if name != RANDOM][:WALKS]
    return analysis.response_embedding(
        concepts, pipeline.encode(given)[0], output.argmax(1).cpu(), names, steps=steps,
        neighbors=min(15, len(given) - 1), seed=seed,
    )  # fmt: skip


def sensitivity(interpreter: Fitted, data: Any, *, seed: int, images: int = 200) -> Any:
    """MSC fig. 7, last row: how far an edit moves the representation."""
    latents = interpreter.pipeline.encode(images_of(data, images, seed=seed))[0]
    return analysis.concept_sensitivity(interpreter.pipeline, interpreter.concepts, latents, seed=seed)


def generative(interpreter: Fitted, data: Any, *, seed: int, images: int = 1000) -> Any:
    """IIN tab. 2: samples of e beside reconstructions, by their Fréchet distance."""
    with torch.no_grad():
        return analysis.generative_quality(
            interpreter.pipeline, interpreter.concepts, images_of(data, images, seed=seed), seed=seed
        )  # fmt: skip
