"""Which images the layer sees as unlike those that t was fitted to: pictures made for them are not to be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posthoc_inn.analysis.results import Result
from posthoc_inn.images import BatchSource, has_length, positions, some_of
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.rows.cache import Cache

LOOKED = 256
"""Images of a data set that are looked at."""
SHOWN = 8


@dataclass(frozen=True)
class OutsideImage(Result):
    """One image.

    Attributes:
        number: Its place in what was given.
        is_outside: Whether its z lies clearly farther than that of every held-out image of the fit.
        times: Distance of its z from the mean of the training images', as a multiple of the usual held-out image's.
        rank: Share of the held-out images whose z lies as far or farther.
        clipped: Values of its z beyond 10 deviations, where t clips them.
    """

    number: int
    is_outside: bool
    times: float
    rank: float
    clipped: int


@dataclass(frozen=True)
class Outside(Result):
    """How far z of images lies from that of the images that t was fitted to.

    Attributes:
        looked_at: Images that were looked at.
        values: Of one z.
        each: One an image.
    """

    looked_at: int
    values: int
    each: tuple[OutsideImage, ...]

    @property
    def images(self) -> tuple[int, ...]:
        """Numbers of the images that are outside."""
        return tuple(image.number for image in self.each if image.is_outside)

    @property
    def told(self) -> str:
        """Those that are outside in a sentence; "" where none is."""
        return self.told_by(())

    def told_by(self, names: Sequence[str]) -> str:
        """Return the same with the images' names, one an image, in place of their numbers."""
        found = [(k, image) for k, image in enumerate(self.each) if image.is_outside]
        if not found:
            return ""
        shown = []
        for k, image in found[:SHOWN]:
            cut = f", {image.clipped:,} of {self.values:,} values clipped" if image.clipped else ""
            shown.append(f"{names[k] if names else f'image {image.number}'} ({image.times:.1f} times{cut})")
        more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return (
            f"To the layer {len(found)} of {self.looked_at} images are unlike those that t was fitted to: "
            f"{', '.join(shown)}{more} as far from their mean as the usual one. Do not trust what is made for them."
        )


@torch.no_grad()
def outside(pipeline: Pipeline, z: Tensor, numbers: Tensor | None = None) -> Outside | None:
    """Return how far representations lie from those that t was fitted to; None where that is not known.

    Args:
        pipeline: The fitted parts.
        z: Representations (B, *z_shape).
        numbers: Of the images, (B,); from 0 by default.
    """
    world = pipeline.world
    if world is None:
        return None
    columns = (
        (torch.arange(len(z)) if numbers is None else numbers).tolist(),
        world.is_outside(z).tolist(),
        world.times(z).tolist(),
        world.rank(z).tolist(),
        pipeline.flow.conditioner.clipped(z.to(pipeline.device)).tolist(),
    )
    each = tuple(OutsideImage(*row) for row in zip(*columns, strict=True))
    return Outside(len(each), math.prod(pipeline.z_shape), each)


def outside_of(pipeline: Pipeline, data: Any, *, seed: int = 0) -> Outside | None:
    """Return the same for up to 256 images of a loader, data set or tensor, chosen at random, by their place in it.

    None for a stream too, which may be gone once it was read.
    """
    if pipeline.world is None or not has_length(data):
        return None
    few = BatchSource(data).few  # a generator's draws cost much each
    limit = LOOKED if few is None else few
    chosen = some_of(data, limit, seed=seed)
    places = None if chosen is data else positions(chosen)
    parts: list[Tensor] = []
    numbers: list[Tensor] = []
    for batch in BatchSource(chosen, batch_size=128, limit=limit).batches():
        parts.append(pipeline.features(batch["images"]))
        index = batch["index"]
        count = sum(len(part) for part in numbers)
        own = torch.arange(count, count + len(batch["images"])) if index is None else index
        numbers.append(own if places is None else torch.where(own >= 0, places[own.clamp_min(0)], own))
    return outside(pipeline, torch.cat(parts), torch.cat(numbers))


@dataclass(frozen=True)
class Clipped(Result):
    """Values of z that t clips, at 10 deviations: beyond, it sees no difference.

    Attributes:
        train: Their share among training images' values.
        held_out: Among held-out images'.
        held_out_images: Share of the held-out images with any.
        images: Of each that were looked at, at the most.
    """

    train: float
    held_out: float
    held_out_images: float
    images: int


def clipped(pipeline: Pipeline, train: Cache, held_out: Cache, *, seed: int = 0) -> Clipped:
    """Count the values of z of some cached rows that t clips."""
    found = []
    for cache in (train, held_out):
        counts = [
            pipeline.flow.conditioner.clipped(cache["z"].rows(part).to(pipeline.device)).cpu()
            for part in cache.some(LOOKED, seed=seed).split(64)
        ]
        found.append(torch.cat(counts).double())
    values = math.prod(pipeline.z_shape)
    return Clipped(
        train=float(found[0].mean()) / values,
        held_out=float(found[1].mean()) / values,
        held_out_images=float((found[1] > 0).double().mean()),
        images=max(len(found[0]), len(found[1])),
    )
