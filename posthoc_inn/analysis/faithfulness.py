"""Do samples look the same to the model? Agreement of predictions, and similarity of features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_inn.analysis.results import Result, share_with_error
from posthoc_inn.features.outputs import is_classification
from posthoc_inn.pipeline import Pipeline

PICTURES = 256
"""Pictures that are made, and that the model is asked about, at a time."""


@dataclass(frozen=True)
class Faithfulness(Result):
    """How well pictures keep what the model sees.

    Attributes:
        agreement: Share of samples for which the model predicts what it predicts for the image; nan when the model's
            output is not a row of class scores.
        agreement_error: Its standard error over images.
        similarity: Cosine similarity of Φ(sample) to z.
        similarity_error: Its standard error over images.
        similarity_between: Cosine similarity of z between different images: what no faithfulness would give.
        images: Held-out images used.
        samples: Samples per image.
    """

    agreement: float
    agreement_error: float
    similarity: float
    similarity_error: float
    similarity_between: float
    images: int
    samples: int


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), dim=1)


class Asked:
    """What the model says of pictures that come part by part, so that those of many images are never held at once.

    Args:
        pipeline: The fitted parts.
        per_image: Pictures per image.
    """

    def __init__(self, pipeline: Pipeline, per_image: int) -> None:
        self.pipeline, self.per_image = pipeline, per_image
        self._cosine: list[Tensor] = []
        self._between: list[Tensor] = []
        self._same: list[Tensor] = []
        self._first: Tensor | None = None
        self._last: Tensor | None = None

    def add(self, images: Tensor, z: Tensor, prediction: Tensor | None) -> None:
        """Ask about the pictures of the next images; see `compare_with_model` for the arguments."""
        seen_z, output = self.pipeline.ask_model(images)
        z = z.to(seen_z.device).float()
        owner = torch.arange(len(z), device=z.device).repeat_interleave(self.per_image)
        self._cosine.append(_cosine(seen_z, z[owner]).reshape(-1, self.per_image).mean(dim=1))
        before = z[:0] if self._last is None else self._last
        self._between.append(_cosine(torch.cat([before, z[:-1]]), z if len(before) else z[1:]))
        self._first, self._last = z[:1] if self._first is None else self._first, z[-1:]
        if prediction is not None and is_classification(output):
            same = (output.argmax(1).cpu() == prediction[owner.cpu()]).double()
            self._same.append(same.reshape(-1, self.per_image).mean(dim=1))

    def result(self) -> Faithfulness:
        """Return what was found of all of them."""
        if self._first is not None and self._last is not None:
            self._between.append(_cosine(self._last, self._first))
        cosine = torch.cat(self._cosine)
        similarity, similarity_error = share_with_error(cosine.tolist())
        agreement = agreement_error = math.nan
        if self._same:
            agreement, agreement_error = share_with_error(torch.cat(self._same).tolist())
        between = float(torch.cat(self._between).mean())
        return Faithfulness(
            agreement, agreement_error, similarity, similarity_error, between, len(cosine), self.per_image
        )


def compare_with_model(
    pipeline: Pipeline, images: Tensor, z: Tensor, prediction: Tensor | None, per_image: int
) -> Faithfulness:
    """Ask the model about pictures made for given images.

    Args:
        pipeline: The fitted parts.
        images: Canonical pictures (B * per_image, C, H, W), those of one image together.
        z: The images' own representations (B, *z_shape).
        prediction: The images' predicted classes (B,), or None when the model is no classifier.
        per_image: Pictures per image.
    """
    asked = Asked(pipeline, per_image)
    asked.add(images, z, prediction)
    return asked.result()


@torch.no_grad()
def faithfulness(
    pipeline: Pipeline, z: Tensor, prediction: Tensor | None, *, samples: int = 8, seed: int = 0
) -> Faithfulness:
    """Sample `samples` pictures for each z and ask the model about them.

    Args:
        pipeline: The fitted parts.
        z: Representations of held-out images (B, *z_shape).
        prediction: The model's classes for these images (B,), or None.
        samples: N, pictures per image.
        seed: Seed of v.
    """
    context = pipeline.context(z)
    v = torch.randn(len(z), samples, pipeline.latent_dim, generator=torch.Generator().manual_seed(seed))
    latents = pipeline.sample_latents(context, v).flatten(0, 1)
    asked, together = Asked(pipeline, samples), max(1, PICTURES // samples)
    for part in torch.arange(len(z)).split(together):
        pictures = pipeline.decode(latents[part[0] * samples : (part[-1] + 1) * samples])
        asked.add(pictures, z[part], None if prediction is None else prediction[part])
    return asked.result()
