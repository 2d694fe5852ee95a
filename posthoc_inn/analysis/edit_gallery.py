"""Swapping each concept between images (MSC eq. 7, IIN fig. 2), and what the model says of the results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posthoc_inn import drawing
from posthoc_inn.analysis.editing import Names, listed_factors, swap
from posthoc_inn.analysis.results import Result, share_with_error
from posthoc_inn.concepts import RANDOM, ConceptModel
from posthoc_inn.errors import ConfigError, ShapeError
from posthoc_inn.features.outputs import same
from posthoc_inn.pipeline import Pipeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 8


@dataclass(frozen=True)
class EditedConcept(Result):
    """What the model predicts after one concept was taken from another image.

    Attributes:
        name: The concept.
        kept: Share of edits for which it predicts what it predicts for the image's reconstruction, the class or the
            set of labels; None where it predicts neither.
        kept_error: Its standard error over images.
        taken: Share, of pairs with different predictions, for which it predicts what it predicts for the source.
        taken_error: Its standard error.
        change: Mean squared difference of pixels in [0, 1] between edit and reconstruction.
    """

    name: str
    kept: float | None
    kept_error: float | None
    taken: float | None
    taken_error: float | None
    change: float


@dataclass(frozen=True)
class EditGallery(Result):
    """Edits of images, each concept taken from a source image.

    Attributes:
        concepts: One a concept.
        images: Images edited.
        pictures: Image, reconstruction, source's reconstruction and the edits (R, 3 + K, C, H, W), of the first images.
    """

    concepts: tuple[EditedConcept, ...]
    images: int
    pictures: Tensor = field(repr=False)

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        changes = "; ".join(
            f"{c.name}: the prediction becomes the source's in {100 * c.taken:.0f} %, and stays in {100 * c.kept:.0f} %"
            for c in self.concepts
            if c.kept is not None and c.taken is not None
        )
        return (
            "Each row: an image, its reconstruction, the source, and the image with one concept taken from the source, "
            "all else kept. What to conclude: what comes over with a factor of e, it holds; what does not, it does "
            "not. What not to conclude: that the edit is the only picture with that concept, or that the model's "
            "prediction for it is right." + (f" The model's predictions after the edits: {changes}." if changes else "")
        )

    def figure(self) -> Figure:
        """Draw the grid."""
        changed = [f"{drawing.shortened(c.name)}\nof source" for c in self.concepts]
        labels = ["image", "recon-\nstructed", "source", *changed]
        return drawing.grid(drawing.columns_of(self.pictures, headings=labels, gaps=(2, 3)))


@torch.no_grad()
def edit_gallery(
    pipeline: Pipeline,
    concepts: ConceptModel,
    images: Tensor,
    sources: Tensor | None = None,
    *,
    names: Names | None = None,
    shown: int = SHOWN,
) -> EditGallery:
    """Take each concept of images from others, decode, and ask the model.

    Args:
        pipeline: The fitted parts.
        concepts: e over z_bar.
        images: As given to `fit`, (B, C, H, W).
        sources: Images that concepts are taken from, (B, C, H, W); the images in another order by default.
        names: Concepts; all but the random one, residual first, by default.
        shown: Rows of pictures that are kept for the figure.

    Raises:
        ConfigError: e is over a layer's z.
        ShapeError: There are fewer than two images, or not as many sources.
    """
    if concepts.space != "z_bar":
        raise ConfigError("Edits are decoded to pictures: they need an e over the autoencoder's latents.")
    if len(images) < 2 or (sources is not None and len(sources) != len(images)):
        raise ShapeError(f"Edits need at least 2 images, and a source each; got {len(images)} images.")
    chosen = [n for n in concepts.factor_names if n != RANDOM] if names is None else _named(concepts, names)
    latents = pipeline.encode(images)[0]
    origin = latents.roll(-1, 0) if sources is None else pipeline.encode(sources)[0]
    plain, plain_source = _asked(pipeline, latents), _asked(pipeline, origin)
    found, columns = [], []
    for name in chosen:
        edited = swap(concepts, latents, origin, name)
        pictures, classes = _asked(pipeline, edited)
        found.append(_verdict(name, pictures, classes, plain, plain_source[1]))
        columns.append(pictures[:shown])
    given = pipeline.adapter.to_images(images[:shown].to(pipeline.device)).cpu()
    rows = torch.stack([given, plain[0][:shown], plain_source[0][:shown], *columns], dim=1)
    return EditGallery(tuple(found), len(images), rows)


def _named(concepts: ConceptModel, names: Names) -> list[str]:
    return [concepts.factor_names[k] for k in listed_factors(concepts, names)]


def _asked(pipeline: Pipeline, latents: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the pictures of latents, and the model's class, or set of labels, for each."""
    pictures = pipeline.decode(latents)
    output = pipeline.ask_model(pictures)[1]
    said = pipeline.extractor.said(output)
    return pictures.cpu(), None if said is None or said.is_floating_point() else said


def _verdict(
    name: str,
    pictures: Tensor,
    classes: Tensor | None,
    plain: tuple[Tensor, Tensor | None],
    source: Tensor | None,
) -> EditedConcept:
    change = float((pictures - plain[0]).square().mean())
    if classes is None or plain[1] is None or source is None:
        return EditedConcept(name, None, None, None, None, change)
    kept = share_with_error(same(classes, plain[1]).double().tolist())
    differ = ~same(plain[1], source)
    taken: tuple[float | None, float | None] = (None, None)
    if int(differ.sum()) >= 2:
        taken = share_with_error(same(classes, source)[differ].double().tolist())
    return EditedConcept(name, kept[0], kept[1], taken[0], taken[1], change)
