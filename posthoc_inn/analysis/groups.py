"""What models still recognise when images change their kind: photographs, stylised, textures, drawings (MSC 4.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posthoc_inn.analysis.comparable import as_given, classify
from posthoc_inn.analysis.results import Result, by_name, share_with_error
from posthoc_inn.errors import ConfigError, Problems, ShapeError
from posthoc_inn.images import fit_canonical
from posthoc_inn.images.spec import check_canonical
from posthoc_inn.pipeline import Pipeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = 256
"""Pictures that the judge sees at a time."""

Judge = Callable[[Tensor], Tensor]
"""Canonical pictures (B, C, H, W) in, class scores (B, classes) out."""


@dataclass(frozen=True)
class GroupOfImages(Result):
    """What one model makes of one group of images.

    Attributes:
        name: `model / group`.
        model: Which model.
        group: Which images.
        images: How many.
        kept: Share of samples whose class, to the judge, is the image's.
        kept_error: Its standard error over images.
        kept_by_chance: The same for the class of another image of the group: what samples that know nothing reach.
        seen: Share of the images themselves whose class, to the judge, is theirs; nan where the judge's own word is
            their class.
    """

    name: str
    model: str
    group: str
    images: int
    kept: float
    kept_error: float
    kept_by_chance: float
    seen: float


@dataclass(frozen=True)
class GroupComparison(Result):
    """Samples from the representations that several models have of the same groups of images.

    Attributes:
        parts: One of each model and group, models in the outer order.
        samples: Drawn for each image and model.
        models: Names of the models.
        groups: Names of the groups.
        shown: Images shown of each group.
        images: Those images, (G * shown, C, H, W).
        pictures: Their samples by model, (models, G * shown, N, C, H, W).
    """

    parts: tuple[GroupOfImages, ...]
    samples: int
    models: tuple[str, ...]
    groups: tuple[str, ...]
    shown: int
    images: Tensor = field(repr=False, compare=False)
    pictures: Tensor = field(repr=False, compare=False)

    def of(self, model: str, group: str) -> GroupOfImages:
        """Return what a model makes of a group.

        Raises:
            KeyError: There is no such pair; the message lists all.
        """
        return by_name(self.parts, f"{model} / {group}", "pair of model and group")

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        told = [
            f"{p.model}, {p.group}: {100 * p.kept:.0f} ± {100 * p.kept_error:.0f} % "
            f"(chance {100 * p.kept_by_chance:.0f} %)"
            for p in self.parts
        ]
        return (
            "Each row is an image; beside it what each model's representation of it stands for, drawn with new "
            "invariances. A model that goes by texture draws something else once texture is changed, one that goes by "
            "shape does so once shape is. Share of samples that an independent classifier takes for the image's class: "
            f"{'; '.join(told)}. What not to conclude: that a low share is a fault of the model alone. The judge may "
            "not know such images, and t may never have seen their like."
        )

    def figure(self, samples: int = 4) -> Figure:
        """Draw the images of each group, with the first samples of each model beside them."""
        from posthoc_inn.drawing import columns_of, grid

        count = min(samples, self.samples)
        cells = torch.cat([self.images[:, None], *(p[:, :count] for p in self.pictures)], 1)
        headings = ["image"] + [name if k == 0 else "" for name in self.models for k in range(count)]
        gaps = [1 + m * count for m in range(len(self.models))]
        labels = [name if k == 0 else "" for name in self.groups for k in range(self.shown)]
        return grid(columns_of(cells, headings=headings, gaps=gaps), row_labels=labels)


@torch.no_grad()
def compare_groups(
    pipelines: Mapping[str, Pipeline],
    groups: Mapping[str, Tensor],
    judge: Judge,
    *,
    labels: Mapping[str, Tensor] | None = None,
    samples: int = 8,
    shown: int = 3,
    seed: int = 0,
) -> GroupComparison:
    """Draw samples for the same images from several models, and let an independent classifier say what they show.

    The texture bias of MSC 4.3 and fig. 6: photographs, the same stylised, textures and drawings through a network that
    was trained on photographs and through one that was trained on stylised ones. The same serves for domain shift (MSC
    B.6): groups that t was never trained on.

    Args:
        pipelines: Model's name -> its fitted parts (`interpreter.pipeline`); they need not share anything.
        groups: Group's name -> canonical images (B, C, H, W) in [0, 1], at least two each.
        judge: The independent classifier, on canonical pictures of each autoencoder's size.
        labels: Group's name -> classes (B,) in the judge's numbering; where a group has none, the judge's class of each
            image itself is taken.
        samples: N, drawn for each image.
        shown: Images of each group that are kept for the figure.
        seed: Of v. The same v for all models whose latents have one width.

    Raises:
        ConfigError: Nothing to compare, or the judge gives no class scores.
        ShapeError: A group is no batch of images, or has other labels than images.
        DataError: Images lie outside [0, 1].
    """
    given = dict(labels or {})
    _check(pipelines, groups, given, samples, shown)
    parts: list[GroupOfImages] = []
    pictures: list[Tensor] = []
    first = next(iter(pipelines.values())).adapter
    for name, pipeline in pipelines.items():
        kept_pictures = []
        for group, images in groups.items():
            part, drawn = _one(name, pipeline, group, images, judge, given.get(group), samples, seed)
            parts.append(part)
            kept_pictures.append(fit_canonical(drawn[:shown].flatten(0, 1), first.picture_shape, first.channels))
        pictures.append(torch.cat(kept_pictures).unflatten(0, (-1, samples)))
    seen = torch.cat([first.from_pictures(images[:shown]) for images in groups.values()])
    return GroupComparison(
        tuple(parts), samples, tuple(pipelines), tuple(groups), shown, images=seen, pictures=torch.stack(pictures)
    )


def _check(
    pipelines: Mapping[str, Pipeline],
    groups: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    samples: int,
    shown: int,
) -> None:
    problems = Problems("compare_groups")
    problems.check(len(pipelines) > 0, "pipelines must name at least one model")
    problems.check(len(groups) > 0, "groups must name at least one group of images")
    problems.check(samples >= 1, f"samples must be at least 1, got {samples}")
    problems.check(shown >= 1, f"shown must be at least 1, got {shown}")
    unknown = sorted(set(labels) - set(groups))
    problems.check(not unknown, f"labels are given for {', '.join(unknown)}, which is no group")
    problems.raise_if_any()
    for name, images in groups.items():
        check_canonical(images)
        if len(images) < max(2, shown):
            raise ShapeError(f"The group {name!r} has {len(images)} images; at least {max(2, shown)} are needed.")
        if name in labels and labels[name].shape != (len(images),):
            raise ShapeError(
                f"The group {name!r} has {len(images)} images and labels of shape {tuple(labels[name].shape)}; one "
                "class an image is needed."
            )


def _one(
    model: str,
    pipeline: Pipeline,
    group: str,
    images: Tensor,
    judge: Judge,
    labels: Tensor | None,
    samples: int,
    seed: int,
) -> tuple[GroupOfImages, Tensor]:
    """Return what one model makes of one group, and the samples (B, N, C, H, W)."""
    adapter = pipeline.adapter
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(len(images), samples, pipeline.latent_dim, generator=generator)
    context = pipeline.context(pipeline.z_of(as_given(adapter, images)))
    drawn = pipeline.pictures(pipeline.sample_latents(context, v)).cpu()
    own = _classes(judge, adapter.from_pictures(images))
    wanted = own if labels is None else labels.cpu().long()
    said = _classes(judge, drawn.flatten(0, 1)).reshape(len(images), samples)
    kept, error = share_with_error((said == wanted[:, None]).double().mean(1).tolist())
    # Samples against the classes of all other images of the group: what is reached without a look at the image.
    alike = (said[:, :, None] == wanted).double().mean(1)
    others = alike.masked_fill(torch.eye(len(images), dtype=torch.bool), 0).sum() / (len(images) * (len(images) - 1))
    seen = math.nan if labels is None else float((own == wanted).double().mean())
    name = f"{model} / {group}"
    return GroupOfImages(name, model, group, len(images), kept, error, float(others), seen), drawn


def _classes(judge: Judge, pictures: Tensor) -> Tensor:
    found: list[Tensor] = []
    for part in pictures.split(PICTURES):
        scores = judge(part)
        if not isinstance(scores, Tensor):
            raise ConfigError(f"judge must return a tensor of class scores (B, classes), got {type(scores).__name__}.")
        found.append(classify(scores, "compare_groups, for its judge,")[0])
    return torch.cat(found)
