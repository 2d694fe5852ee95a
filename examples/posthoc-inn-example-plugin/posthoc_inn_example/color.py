"""What is to be known of colours: pairs that share one, how far two are apart, and whether a layer keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from posthoc_inn.analysis import Result
from posthoc_inn.errors import DataError
from posthoc_inn.images import BatchSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def mean_color(images: Tensor) -> Tensor:
    """Return the mean colour (..., C) of images (..., C, H, W)."""
    return images.mean(dim=(-2, -1))


class SameColor:
    """A concept source: each image with another one of much the same mean colour.

    Nothing to inherit from: `names` and `pairs` make it a source.
    """

    names = ("color",)

    def __init__(self, data: Dataset[Any], *, neighbors: int = 4) -> None:
        images = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in DataLoader(data, batch_size=64)]
        colors = torch.cat([mean_color(batch) for batch in images])
        if len(colors) < 2:
            raise DataError(f"Pairs of a colour need at least 2 images, got {len(colors)}.")
        distances = torch.cdist(colors, colors)
        distances.fill_diagonal_(torch.inf)  # no image is its own neighbour
        self.nearest = distances.topk(min(neighbors, len(colors) - 1), largest=False).indices

    def pairs(self, n: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        a = torch.randint(len(self.nearest), (n,), generator=generator)
        b = self.nearest[a, torch.randint(self.nearest.shape[1], (n,), generator=generator)]
        # Columns: the residual, then each concept. These pairs share the colour and nothing else on purpose.
        return a, b, torch.tensor([[False, True]]).repeat(n, 1)


def color_distance(a: Tensor, b: Tensor) -> Tensor:
    """An image metric: the distance (B,) of the mean colours of images a and b, each (B, C, H, W) in [0, 1]."""
    return (mean_color(a) - mean_color(b)).square().sum(dim=1).sqrt()


@dataclass(frozen=True)
class ColorKept(Result):
    """What `color_kept` found; Result makes plain data of it, so there is no `to_dict` to be written.

    Attributes:
        samples: Mean distance of a sample's colour to its image's.
        others: Mean distance of another image's colour to it: what a layer that is blind to colour would give.
        images: How many images were asked about.
    """

    samples: float
    others: float
    images: int

    @property
    def caption(self) -> str:
        return (
            f"Pictures that the layer cannot tell from an image are {self.samples:.3f} away from it in mean colour, "
            f"other images {self.others:.3f}. The nearer the first is to the second, the less the layer keeps of "
            "colour. It says nothing of where in the picture a colour is."
        )

    def figure(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4, 2))
        axes = figure.subplots()
        axes.barh(["samples", "other images"], [self.samples, self.others])
        axes.set_xlabel("distance of mean colours")
        figure.tight_layout()
        return figure


def color_kept(interpreter: Any, data: Any, *, seed: int, images: int = 32, samples: int = 8) -> ColorKept:
    """An analysis: does the layer keep the mean colour of images?"""
    given = BatchSource(data, batch_size=128, seed=seed).first(images)
    if len(given) < 2:
        raise DataError(f"The analysis color-kept needs at least 2 images, got {len(given)}.")
    with torch.no_grad():
        own = mean_color(interpreter.reconstruct(given))
        found = mean_color(interpreter.sample(given, n=samples, seed=seed))
    return ColorKept(
        samples=float(torch.linalg.vector_norm(found - own[:, None], dim=-1).mean()),
        others=float(torch.linalg.vector_norm(own.roll(1, 0) - own, dim=-1).mean()),
        images=len(given),
    )
