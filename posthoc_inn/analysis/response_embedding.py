"""Where a walk in one factor goes among the representations of many images: a UMAP picture (IIN fig. 10)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from posthoc_inn.analysis.editing import Names, factor_columns, listed_factors
from posthoc_inn.analysis.optional import require
from posthoc_inn.analysis.response import ornstein_uhlenbeck
from posthoc_inn.analysis.results import Result
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.drawing import INK, PALETTE, SOFT, as_label, new_figure, plain
from posthoc_inn.errors import ConfigError, Problems, ShapeError
from posthoc_inn.seeds import derived
from posthoc_inn.training.threads import using_threads

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class WalkInEmbedding(Result):
    """One factor's walk among the images.

    Attributes:
        name: The factor.
        stays: Share of steps whose nearest images, by majority, have the label of the start.
        labels: Labels that the walk's nearest images have, the start's included.
    """

    name: str
    stays: float
    labels: int


@dataclass(frozen=True)
class ResponseEmbedding(Result):
    """IIN fig. 10.

    Attributes:
        walks: One result a factor.
        space: What e works on: "z" or "z_bar".
        images: Images embedded.
        steps: Steps of a walk.
        start: The image that walks start from, a row of what was given.
        neighbors: Neighbours, of UMAP and of the majority.
        class_names: Of the labels.
        points: The images' places (B, 2).
        labels: Their labels (B,).
        paths: The walks' places (F, steps + 1, 2).
    """

    walks: tuple[WalkInEmbedding, ...]
    space: str
    images: int
    steps: int
    start: int
    neighbors: int
    class_names: tuple[str, ...] = field(repr=False)
    points: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    paths: Tensor = field(repr=False)

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        walks = "; ".join(
            f"the walk in {w.name} stays among images of its own label at {100 * w.stays:.0f} % of steps and meets "
            f"{w.labels} label{'s' * (w.labels > 1)}"
            for w in self.walks
        )
        return (
            f"UMAP of the {self.space} of {self.images} images, coloured by label, with random walks of {self.steps} "
            f"steps in one factor from one image: {walks}. The shares are counted among the {self.neighbors} nearest "
            f"images in {self.space} itself. Distances and densities in such a picture mean little, and it shows one "
            "start only. Conclude from the response analysis; this picture illustrates it."
        )

    def figure(self) -> Figure:
        """Draw one panel a factor: the images as dots, the walk as crosses joined by lines."""
        count = len(self.walks)
        figure = new_figure(4.3 * count + 0.9, 4.2)
        panels: list[Axes] = figure.subplots(1, count, squeeze=False, sharex=True, sharey=True)[0].tolist()
        colors = [*PALETTE, "#e39bb4", "#b5c04a"]
        labels = self.labels.tolist()
        for ax, found, path in zip(panels, self.walks, self.paths, strict=True):
            dots = [colors[label % len(colors)] for label in labels]
            ax.scatter(self.points[:, 0].numpy(), self.points[:, 1].numpy(), s=5, c=dots, alpha=0.55, linewidths=0)
            ax.plot(*path.T.numpy(), color=SOFT, linewidth=0.8)
            ax.plot(*path[1:].T.numpy(), "x", color="black", markersize=4)
            ax.plot(*path[:1].T.numpy(), "o", color="white", markeredgecolor="black", markersize=8)
            title = f"walk in {as_label(found.name, 24)}: {100 * found.stays:.0f} % of steps keep the label"
            ax.set_title(title, size=9, color=INK)
            plain(ax)
            ax.set_xticks([])
            ax.set_yticks([])
        from matplotlib.lines import Line2D

        shown = [
            Line2D([], [], marker="o", linestyle="", color=colors[k % len(colors)], label=as_label(name))
            for k, name in enumerate(self.class_names[:24])
        ]
        shown.append(Line2D([], [], marker="x", linestyle="", color="black", label="walk"))
        shown.append(Line2D([], [], marker="o", linestyle="", markerfacecolor="white", color="black", label="start"))
        figure.legend(handles=shown, loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
        return figure


@torch.no_grad()
def response_embedding(
    concepts: ConceptModel,
    x: Tensor,
    labels: Tensor,
    names: Names,
    *,
    start: int = 0,
    steps: int = 50,
    correlation: float = 0.9,
    neighbors: int = 15,
    seed: int = 0,
    class_names: Sequence[str] = (),
) -> ResponseEmbedding:
    """Embed the representations of many images with UMAP, and walks in one factor among them.

    UMAP is fitted to the images alone; a walk's points are placed afterwards, each by itself, so that they cannot form
    a cluster of their own.

    Args:
        concepts: e.
        x: Representations (or latents) of some hundred images or more, (B, *shape); a few thousand take a minute.
        labels: A whole number an image, from 0, (B,).
        names: The factors to walk in, one panel each, two as a rule.
        start: Row of `x` that walks start from.
        steps: Steps of a walk.
        correlation: Of successive points.
        neighbors: Of UMAP, and of the majority that gives a point its label.
        seed: Of UMAP and of the walks.
        class_names: Of the labels; their numbers when left out.

    Raises:
        PluginError: umap-learn is not installed.
        ShapeError: `labels` is not one whole number an image, or `x` has another shape than e takes.
        ConfigError: `start`, `steps`, `neighbors` or `class_names` is out of range.
        UnknownNameError: There is no such factor.
    """
    classes = _check(x, labels, start, neighbors, class_names)
    numbers = listed_factors(concepts, names)
    umap = require("umap", "umap", "The embedding of representations")
    own = concepts.joined(x[start : start + 1])
    walks = []
    for number in numbers:
        columns = factor_columns(concepts, number)
        generator = torch.Generator().manual_seed(derived(seed, "walk", number))
        factors = own.repeat(steps + 1, 1)
        scale = concepts.deviation[columns]
        factors[:, columns] = ornstein_uhlenbeck(own[:, columns] / scale, steps, correlation, generator)[0] * scale
        walks.append(concepts.inverse(factors).flatten(1).float().cpu())
    rows = x.flatten(1).float().cpu()
    points, placed = _placed(umap, rows, walks, neighbors, seed)
    home = int(labels[start])
    found = []
    for number, path in zip(numbers, walks, strict=True):
        met = nearest_labels(rows, labels, path[1:], neighbors)
        stays = float((met == home).double().mean())
        found.append(WalkInEmbedding(concepts.factor_names[number], stays, len({*met.tolist(), home})))
    return ResponseEmbedding(
        walks=tuple(found),
        space=concepts.space,
        images=len(x),
        steps=steps,
        start=start,
        neighbors=neighbors,
        class_names=tuple(class_names) or tuple(str(k) for k in range(classes)),
        points=torch.from_numpy(np.asarray(points, dtype=np.float32)),
        labels=labels.cpu(),
        paths=torch.from_numpy(np.asarray(placed, dtype=np.float32)),
    )


def _check(x: Tensor, labels: Tensor, start: int, neighbors: int, class_names: Sequence[str]) -> int:
    """Check what `response_embedding` is asked for, and return the number of classes."""
    if labels.shape != x.shape[:1] or labels.is_floating_point() or labels.is_complex() or bool((labels < 0).any()):
        raise ShapeError(f"labels must be whole numbers from 0, ({len(x)},), got {labels.dtype} {tuple(labels.shape)}.")
    classes = int(labels.max()) + 1 if len(labels) else 0
    problems = Problems("response_embedding")
    problems.check(0 <= start < len(x), f"start must be a row of x, 0 to {len(x) - 1}, got {start}")
    problems.check(
        2 <= neighbors < len(x), f"neighbors must be 2 to {len(x) - 1}, one less than images, got {neighbors}"
    )
    problems.check(len(class_names) in (0, classes), f"{len(class_names)} class_names were given for {classes} labels")
    problems.raise_if_any(ConfigError)
    return classes


def _placed(umap: Any, rows: Tensor, walks: Sequence[Tensor], neighbors: int, seed: int) -> tuple[Any, Any]:
    """Fit UMAP to images (B, N), and return them (B, 2) and the points of walks (W, S, 2) in it, as arrays."""
    reducer = umap.UMAP(n_neighbors=neighbors, random_state=seed, n_jobs=1)
    # Its compiled loops set the number of OpenMP threads, which torch shares.
    with using_threads(torch.get_num_threads()), warnings.catch_warnings():
        # It warns of its own choices (one job because of the seed, spectral start replaced) and of its dependencies.
        warnings.simplefilter("ignore")
        points = reducer.fit_transform(rows.numpy())
        placed = reducer.transform(torch.cat(list(walks)).numpy())
    return points, placed.reshape(len(walks), -1, 2)


def nearest_labels(images: Tensor, labels: Tensor, points: Tensor, neighbors: int) -> Tensor:
    """Return the label that most of the nearest images of each point have, (P,); of equals the smallest.

    Args:
        images: Where the images lie, (B, N).
        labels: Their labels, whole numbers from 0, (B,).
        points: (P, N).
        neighbors: How many images vote.
    """
    search = NearestNeighbors(n_neighbors=neighbors).fit(images.numpy())
    near = labels.cpu().numpy()[search.kneighbors(points.numpy(), return_distance=False)]
    return torch.tensor([int(np.bincount(row).argmax()) for row in near])
