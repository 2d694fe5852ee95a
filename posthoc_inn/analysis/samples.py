"""Images that a layer cannot tell from given ones (MSC eq. 2), and what the model predicts for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_inn import drawing
from posthoc_inn.analysis.faithfulness import compare_predictions
from posthoc_inn.analysis.refining import Refinement, check_steps, refinement
from posthoc_inn.analysis.results import Result
from posthoc_inn.errors import ConfigError
from posthoc_inn.names import without_blanks
from posthoc_inn.pipeline import Pipeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONCLUSION = (
    "What to conclude: what changes along a row hardly changes the layer's features; what stays the same, it keeps."
)
LIMITS = (
    "What not to conclude: that the model uses everything that stays (a layer may keep things that nothing after it "
    "looks at), or that a difference between input and reconstruction is an invariance (the autoencoder lost it)."
)


@dataclass(frozen=True)
class Samples(Result):
    """Images, their reconstructions, and samples that are to have the same representation at the layer.

    Attributes:
        images: B, images that were sampled for.
        samples: N, samples of each.
        seed: Of v.
        agreement: Share of samples for which the model predicts what it predicts for the image, the class or exactly
            the set of labels; None where it predicts neither.
        names: Of the images, such as their files; empty for none.
        predictions: Name of the class, or of the labels, that the model predicts for each image; empty where it
            predicts neither.
        sample_predictions: The same for each sample, B rows of N, "" where it is the image's; or empty.
        inputs: The images as the autoencoder sees them, (B, C, H, W) in [0, 1].
        reconstructions: D(E(x)), (B, C, H, W).
        pictures: The samples, (B, N, C, H, W).
        prediction_kind: What of predictions is compared: "classes", "multilabel", "embedding" or "none".
        label_overlap: Mean Jaccard index of sets of labels; None for other predictions.
        output_similarity: Mean cosine similarity of the outputs, for embeddings; None for other predictions.
        similarity: Mean cosine similarity of a sample's representation at the layer to its image's.
        similarity_between: The same between different images; None for one image.
        refinement: What gradient steps changed, where samples were refined; None where they are as t drew them.
    """

    images: int
    samples: int
    seed: int
    agreement: float | None
    names: tuple[str, ...]
    predictions: tuple[str, ...]
    sample_predictions: tuple[tuple[str, ...], ...]
    inputs: Tensor = field(repr=False, compare=False)
    reconstructions: Tensor = field(repr=False, compare=False)
    pictures: Tensor = field(repr=False, compare=False)
    prediction_kind: str = "classes"
    label_overlap: float | None = None
    output_similarity: float | None = None
    similarity: float | None = None
    similarity_between: float | None = None
    refinement: Refinement | None = None

    @property
    def row_labels(self) -> list[str]:
        """A line for each image: its name and what the model predicts, as far as there are any."""
        names = [drawing.shortened(name, 24) for name in self.names]
        classes = [drawing.shortened(name) for name in self.predictions]
        if not names:
            return [f"predicts {name}" for name in classes]
        return [f"{name}: {text}" for name, text in zip(names, classes, strict=True)] if classes else names

    @property
    def legend(self) -> str:
        """What the figure shows."""
        text = (
            "Each row: an image, its reconstruction by the autoencoder, and random samples with what the layer sees of "
            f"the image.{self.nearness}"
        )
        if self.predictions:
            text += (
                " The model's prediction for the image is on the left. A red frame marks a sample for which it "
                "predicts something else, named in the corner."
            )
        return text

    @property
    def nearness(self) -> str:
        """How near samples are to their image at the layer, in a sentence after a blank; or nothing."""
        if self.similarity is None:
            return ""
        text = f" To the layer their cosine similarity to it is {self.similarity:.2f}"
        if self.similarity_between is None:
            return f"{text} (1: the same)."
        return f"{text} (1: the same; different images here have {self.similarity_between:.2f})."

    @property
    def caption(self) -> str:
        """What it shows, what to conclude, and what not."""
        if self.output_similarity is not None:
            asked = (
                f"The model's output for these samples has a cosine similarity of {self.output_similarity:.3f} to that "
                "for their image."
            )
        elif self.agreement is None:
            asked = "The model is no classifier, so its predictions for the samples are not compared."
        else:
            asked = (
                f"{100 * (1 - self.agreement):.1f} % of these samples change the model's prediction. There, t or the "
                "autoencoder misses something that the layer holds."
            )
        told = "" if self.refinement is None else f" {self.refinement.caption}"
        return f"{self.legend} {CONCLUSION} {LIMITS} {asked}{told}"

    def figure(self) -> Figure:
        """Draw a row an image."""
        corners = [[drawing.shortened(name) for name in row] for row in self.sample_predictions]
        columns = drawing.sample_columns(self.inputs, self.reconstructions, self.pictures, corners)
        return drawing.grid(columns, row_labels=self.row_labels)


def class_names_of(origin: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of a model's classes that an interpreter's origin knows; a bundle's is anyone's JSON.

    >>> class_names_of({"classes": ["a", "b"]}), class_names_of({"classes": 3}), class_names_of({})
    (['a', 'b'], (), ())
    """
    found = origin.get("classes")
    return found if isinstance(found, (list, tuple)) else ()


@torch.no_grad()
def samples(
    pipeline: Pipeline,
    images: Tensor,
    n: int = 8,
    seed: int = 0,
    class_names: Sequence[str] = (),
    *,
    names: Sequence[str] = (),
    refine: int = 0,
) -> Samples:
    """Sample D(t⁻¹(v given Φ(x))) for each image, and ask the model about the samples.

    Args:
        pipeline: The fitted parts.
        images: As given to `fit`, (B, C, H, W).
        n: N, samples of each.
        seed: Of v.
        class_names: Of the model's classes; numbers are shown where they are not as many as the classes.
        names: Of the images, such as their files; empty for none.
        refine: Gradient steps that bring each sample nearer to z, see `moved`.

    Raises:
        ConfigError: n is less than 1, there are not as many names as images, or samples are to be refined where there
            are no gradients.
        ShapeError: `images` are no batch of images.
        DataError: They cannot be used as images of the fit.
    """
    images = pipeline.adapter.read(images)
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n}.")
    check_steps(refine)
    if names and len(names) != len(images):
        raise ConfigError(f"Give a name for each image or none, got {len(names)} for {len(images)} images.")
    v = torch.randn(len(images), n, pipeline.latent_dim, generator=torch.Generator().manual_seed(seed))
    z = pipeline.told(pipeline.features(images))
    latents = pipeline.sample_latents(pipeline.context(z), v)
    output = pipeline.ask(images)
    predictions: tuple[str, ...] = ()
    differing: tuple[tuple[str, ...], ...] = ()
    compared: dict[str, float] = {}
    own = pipeline.extractor.said(output)
    refined = refinement(pipeline, latents, z, own, refine) if refine else None
    drawn = pipeline.pictures(latents if refined is None else refined.latents).cpu()
    seen, answer = pipeline.ask_model(drawn.flatten(0, 1))
    similarity, between = nearness(seen, z, n)
    if own is not None:
        asked = pipeline.extractor.said(answer)
        compared = {} if asked is None else compare_predictions(own, asked, n)
        if asked is not None and not own.is_floating_point():
            count = output.shape[1]
            # Blank means "the same" below.
            known = without_blanks(str(k) for k in (class_names if len(class_names) == count else range(count)))
            predictions = tuple(_named(row, known) for row in own)
            named = [_named(row, known) for row in asked]
            rows = (zip(named[k * n : k * n + n], [name] * n, strict=True) for k, name in enumerate(predictions))
            differing = tuple(tuple("" if text == name else text for text, name in row) for row in rows)
    return Samples(
        images=len(images),
        samples=n,
        seed=seed,
        agreement=compared.get("agreement"),
        names=tuple(map(str, names)),
        predictions=predictions,
        sample_predictions=differing,
        inputs=pipeline.adapter.to_images(images.to(pipeline.device)).cpu(),
        reconstructions=pipeline.reconstructions(images).cpu(),
        pictures=drawn,
        prediction_kind=pipeline.extractor.kind_of(output),
        label_overlap=compared.get("label_overlap"),
        output_similarity=compared.get("output_similarity"),
        similarity=similarity,
        similarity_between=between,
        refinement=refined,
    )


def nearness(seen: Tensor, z: Tensor, n: int) -> tuple[float, float | None]:
    """Return the mean cosine similarity of samples to their image at the layer, and that of different images.

    Args:
        seen: Representations of the samples, (B * n, *z_shape), those of one image together.
        z: Of the images, (B, *z_shape).
        n: Samples of each.

    >>> nearness(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0]]), 2)
    (0.5, None)
    """
    own = F.normalize(z.flatten(1).double(), dim=1)
    there = F.normalize(seen.flatten(1).double().to(own.device), dim=1)
    similarity = float((there * own.repeat_interleave(n, 0)).sum(1).mean())
    count = len(own)
    if count < 2:
        return similarity, None
    # The mean over all pairs, without each with itself.
    pairs = (own.sum(0).square().sum() - own.square().sum()) / (count * (count - 1))
    return similarity, float(pairs)


def _named(said: Tensor, names: Sequence[str]) -> str:
    """Return the name of a class, or the names of a set of labels (L,), boolean."""
    if said.ndim == 0:
        return names[int(said)]
    return ", ".join(names[k] for k in said.nonzero().flatten().tolist()) or "no label"
