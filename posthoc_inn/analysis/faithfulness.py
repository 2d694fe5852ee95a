"""Do samples look the same to the model? Agreement of predictions, and similarity of features.

What is compared of predictions depends on their kind: classes, sets of labels, or embeddings by their cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_inn.analysis.intervals import agreement_interval
from posthoc_inn.analysis.results import Result, share_with_error
from posthoc_inn.features.outputs import overlap, same
from posthoc_inn.pipeline import Pipeline

PICTURES = 256
"""Pictures that are made, and that the model is asked about, at a time."""


@dataclass(frozen=True)
class Faithfulness(Result):
    """How well pictures keep what the model sees.

    Attributes:
        agreement: Share of samples for which the model predicts what it predicts for the image: the same class, or
            exactly the same set of labels; nan for predictions that are neither.
        agreement_error: Its standard error over images.
        similarity: Cosine similarity of Φ(sample) to z.
        similarity_error: Its standard error over images.
        similarity_between: Cosine similarity of z between different images: what no faithfulness would give.
        images: Held-out images used.
        samples: Samples per image.
        agreement_between: Agreement of predictions for different images, over all pairs: 1 where the model says the
            same of all, so that agreement tells nothing.
        agreement_interval: Of the agreement, at 95 %, over images (`agreement_interval`).
        agreement_chance: Agreement that samples would have which do not depend on their image, and are predicted to be
            of each class as often as they are: the sum over classes of p(image) p(sample). A set of labels is a class.
        kappa: Cohen's kappa, (agreement - chance) / (1 - chance): 1 is perfect, 0 what chance gives; nan where chance
            is 1.
        kappa_error: Its standard error over images.
        label_overlap: Of sets of labels: their mean Jaccard index; nan for other predictions.
        label_overlap_between: The same between different images.
        output_similarity: Of embeddings: cosine similarity of the output for a sample to that for its image; nan for
            other predictions.
        output_similarity_error: Its standard error over images.
        output_similarity_between: The same between different images.
    """

    agreement: float
    agreement_error: float
    similarity: float
    similarity_error: float
    similarity_between: float
    images: int
    samples: int
    agreement_between: float = math.nan
    agreement_interval: tuple[float, float] = (math.nan, math.nan)
    agreement_chance: float = math.nan
    kappa: float = math.nan
    kappa_error: float = math.nan
    label_overlap: float = math.nan
    label_overlap_between: float = math.nan
    output_similarity: float = math.nan
    output_similarity_error: float = math.nan
    output_similarity_between: float = math.nan


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
        self._own: list[Tensor] = []
        self._said: list[Tensor] = []
        self._first: Tensor | None = None
        self._last: Tensor | None = None

    def add(self, images: Tensor, z: Tensor, prediction: Tensor | None) -> None:
        """Ask about the pictures of the next images; see `compare_with_model` for the arguments."""
        self.add_answers(*self.pipeline.ask_model(images), z, prediction)

    def add_answers(self, seen_z: Tensor, output: Tensor, z: Tensor, prediction: Tensor | None) -> None:
        """Take what the model has said of the pictures of the next images: z (B * per_image, *z_shape), output."""
        z = z.to(seen_z.device).float()
        owner = torch.arange(len(z), device=z.device).repeat_interleave(self.per_image)
        self._cosine.append(_cosine(seen_z, z[owner]).reshape(-1, self.per_image).mean(dim=1))
        before = z[:0] if self._last is None else self._last
        self._between.append(_cosine(torch.cat([before, z[:-1]]), z if len(before) else z[1:]))
        self._first, self._last = z[:1] if self._first is None else self._first, z[-1:]
        said = None if prediction is None else self.pipeline.extractor.said(output)
        if prediction is not None and said is not None:
            self._own.append(prediction)
            self._said.append(said)

    def result(self) -> Faithfulness:
        """Return what was found of all of them."""
        if self._first is not None and self._last is not None:
            self._between.append(_cosine(self._last, self._first))
        cosine = torch.cat(self._cosine)
        similarity, similarity_error = share_with_error(cosine.tolist())
        compared: dict[str, Any] = {}
        if self._own:
            compared = compare_predictions(torch.cat(self._own), torch.cat(self._said), self.per_image)
        return Faithfulness(
            similarity=similarity,
            similarity_error=similarity_error,
            similarity_between=float(torch.cat(self._between).mean()),
            images=len(cosine),
            samples=self.per_image,
            **{"agreement": math.nan, "agreement_error": math.nan, **compared},
        )


def compare_with_model(
    pipeline: Pipeline, images: Tensor, z: Tensor, prediction: Tensor | None, per_image: int
) -> Faithfulness:
    """Ask the model about pictures made for given images.

    Args:
        pipeline: The fitted parts.
        images: Canonical pictures (B * per_image, C, H, W), those of one image together.
        z: The images' own representations (B, *z_shape).
        prediction: What is compared of the model's predictions for the images: classes (B,), sets of labels (B, L),
            embeddings (B, ...); None for nothing.
        per_image: Pictures per image.
    """
    asked = Asked(pipeline, per_image)
    asked.add(images, z, prediction)
    return asked.result()


def compare_predictions(own: Tensor, said: Tensor, per_image: int) -> dict[str, Any]:
    """Compare what the model says of pictures with what it says of the images they were made for.

    Args:
        own: Of the images: classes (B,), sets of labels (B, L), boolean, or embeddings (B, ...).
        said: The same of the pictures, B * per_image rows, those of one image together.
        per_image: Pictures per image.

    Returns:
        Fields of `Faithfulness`, those of different images included where there are two.

    >>> compare_predictions(torch.tensor([1, 2]), torch.tensor([1, 1, 2, 0]), 2)["agreement"]
    0.75
    """
    owner = own.repeat_interleave(per_image, 0)

    def by_image(compare: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
        rows: list[float] = compare(said, owner).double().reshape(-1, per_image).mean(dim=1).tolist()
        return rows

    def between(compare: Callable[[Tensor, Tensor], Tensor]) -> float:
        return float(compare(own, own.roll(1, 0)).double().mean()) if len(own) > 1 else math.nan

    if own.is_floating_point():
        value, error = share_with_error(by_image(_cosine))
        return {
            "output_similarity": value,
            "output_similarity_error": error,
            "output_similarity_between": between(_cosine),
        }
    shares = by_image(same)
    value, error = share_with_error(shares)
    found: dict[str, Any] = {
        "agreement": value,
        "agreement_error": error,
        "agreement_interval": agreement_interval(shares, per_image),
        **_beside_chance(own, said, torch.tensor(shares, dtype=torch.float64)),
    }
    if own.ndim > 1:
        found["label_overlap"] = share_with_error(by_image(overlap))[0]
        found["label_overlap_between"] = between(overlap)
    return found


def _beside_chance(own: Tensor, said: Tensor, shares: Tensor) -> dict[str, float]:
    """Return what an agreement is to be seen beside: that of different images, that by chance, and Cohen's kappa.

    Args:
        own: Of the images, classes (B,) or sets of labels (B, L).
        said: Of the pictures, those of one image together.
        shares: Of each image's pictures, those that agree, (B,), float64.
    """
    # A set of labels is a class of its own: agreement asks for exactly the same set.
    names = torch.unique(torch.cat([own, said]), dim=0, return_inverse=True)[1]
    count, n = int(names.max()) + 1, len(own)
    image, picture = names[:n], names[n:].reshape(n, -1)
    of_image = torch.bincount(image, minlength=count).double()
    p, q = of_image / n, torch.bincount(picture.flatten(), minlength=count).double() / picture.numel()
    chance = float(p @ q)
    found = {
        "agreement_between": float((of_image * (of_image - 1)).sum() / (n * (n - 1))) if n > 1 else math.nan,
        "agreement_chance": chance,
        "kappa": math.nan,
        "kappa_error": math.nan,
    }
    if 1 - chance > 1e-12:
        agreement = float(shares.mean())
        found["kappa"] = (agreement - chance) / (1 - chance)
        # By the delta method: what each image contributes to agreement and to chance, both sides of which it is in.
        to_chance = q[image] + p[picture].mean(1) - 2 * chance
        each = (shares - agreement) / (1 - chance) - (1 - agreement) / (1 - chance) ** 2 * to_chance
        if n > 1:
            found["kappa_error"] = float(each.std() / math.sqrt(n))
    return found


@torch.no_grad()
def faithfulness(
    pipeline: Pipeline, z: Tensor, prediction: Tensor | None, *, samples: int = 8, seed: int = 0
) -> Faithfulness:
    """Sample `samples` pictures for each z and ask the model about them.

    Args:
        pipeline: The fitted parts.
        z: Representations of held-out images (B, *z_shape).
        prediction: What is compared of the model's predictions for these images, see `compare_with_model`; or None.
        samples: N, pictures per image.
        seed: Seed of v.
    """
    context = pipeline.context(z)
    v = torch.randn(len(z), samples, pipeline.latent_dim, generator=torch.Generator().manual_seed(seed))
    latents = pipeline.sample_latents(context, v).flatten(0, 1)
    asked, together = Asked(pipeline, samples), max(1, PICTURES // samples)
    for part in torch.arange(len(z)).split(together):
        answers = pipeline.ask_about(latents[part[0] * samples : (part[-1] + 1) * samples])
        asked.add_answers(*answers, z[part], None if prediction is None else prediction[part])
    return asked.result()
