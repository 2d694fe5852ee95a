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
    seen_z, output = pipeline.ask_model(images)
    z = z.to(seen_z.device)
    owner = torch.arange(len(z), device=z.device).repeat_interleave(per_image)
    cosine = _cosine(seen_z, z.float()[owner]).reshape(-1, per_image).mean(dim=1)
    similarity, similarity_error = share_with_error(cosine.tolist())
    between = _cosine(z.float(), z.float().roll(1, 0))
    agreement = agreement_error = math.nan
    if prediction is not None and is_classification(output):
        same = (output.argmax(1).cpu() == prediction[owner.cpu()]).double()
        agreement, agreement_error = share_with_error(same.reshape(-1, per_image).mean(dim=1).tolist())
    return Faithfulness(
        agreement, agreement_error, similarity, similarity_error, float(between.mean()), len(z), per_image
    )


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
    return compare_with_model(pipeline, pipeline.decode(latents), z, prediction, samples)
