"""Held-out images that are also in training, exactly or nearly: figures on them are too good.

Near means far nearer than neighbours are otherwise. Around an image, others lie like points of a Poisson process in as
many dimensions m as the data has (Levina and Bickel 2004; Facco et al. 2017), so that the distance to the nearest, as a
share r of that to the k-th, has the distribution 1 - (1 - r^m)^(k - 1), whatever the density. m comes from the median
image. A share that chance would give one image in `CHANCE` of all fits is no neighbour but a copy. On the pixels of
CIFAR-10 it finds 1.7 % of the test images (by eye 3.25 % have a copy: Barz and Denzler 2020), on those of MNIST and of
the embedded digits none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_inn.analysis.results import Result
from posthoc_inn.rows.cache import Cache

HELD_OUT_ROWS = 2000
"""Held-out images that are looked at, at the most."""
WORK = 2**34
"""Products that comparing them takes at the most: some 7 seconds on one core. Of more training rows some are taken."""
NEIGHBOURS = 10
"""k."""
CHANCE = 0.01
"""Share of fits without any copy in which one image or more is taken for one."""
FAR_BELOW = 0.5
"""Share of the median distance to the nearest image that a copy lies within: dense places are no copies."""
SAME = 1e-4
"""Share of the median distance within which images may be the same; their pixels tell."""
FEWEST = 50
"""Images of either kind that the usual distance is known from."""
PART = 4096
"""Training rows compared at a time."""


@dataclass(frozen=True)
class Duplicates(Result):
    """How many held-out images are also in training.

    Attributes:
        exact: Held-out images with the same pixels as a training image.
        near: Held-out images that are nearly a training image, besides; None where there are too few images to tell.
        compared: Held-out images that were looked at.
        train: Training images that they were compared with.
    """

    exact: int
    near: int | None
    compared: int
    train: int

    @property
    def share(self) -> float:
        """Both, as a share of the held-out images that were looked at."""
        return (self.exact + (self.near or 0)) / max(1, self.compared)


@torch.no_grad()
def duplicates(train: Cache, *held_out: Cache, draws: int = 1, seed: int = 0) -> Duplicates:
    """Look for held-out images among the training images, by their latents.

    Args:
        train: Training rows with mean, and images where these are kept; of several draws the first is looked at.
        *held_out: Held-out rows, in one part or several.
        draws: Rows of each training image, one pass after the other.
        seed: Which rows are looked at, where these are not all.
    """
    parts = [part.some(max(1, HELD_OUT_ROWS * len(part) // sum(map(len, held_out))), seed=seed) for part in held_out]
    rows = train.some(None, seed=seed)
    most = WORK // max(1, sum(map(len, parts)) * train["mean"].row_bytes // 4)
    rows = rows[rows < max(1, len(train) // draws)][: max(FEWEST, most)]
    points = torch.cat([part["mean"].rows(index) for part, index in zip(held_out, parts, strict=True)])
    # Not standardised: dimensions that the autoencoder does not use would count as much as the others.
    center = points.mean(0)
    points = points - center
    count = min(NEIGHBOURS, len(rows))
    best, place = torch.full((len(points), count), math.inf), torch.zeros(len(points), count, dtype=torch.long)
    squares = points.square().sum(1, keepdim=True)
    for part in rows.split(PART):
        others = train["mean"].rows(part) - center
        found = squares + others.square().sum(1) - 2 * points @ others.T
        near = torch.cat([best, found], 1).topk(count, dim=1, largest=False)
        place = torch.cat([place, part.expand(len(points), -1)], 1).gather(1, near.indices)
        best = near.values
    # Small distances come out of that as differences of large numbers: those of the nearest are taken anew.
    nearest = train["mean"].rows(place.flatten()) - center
    distance = (nearest.view(*place.shape, -1) - points[:, None]).double().norm(dim=2).sort(dim=1)
    place = place.gather(1, distance.indices)
    exact = _same(train, held_out, parts, place[:, 0], distance.values)
    near_ones = _near(distance.values[~exact])
    return Duplicates(int(exact.sum()), near_ones, len(points), len(rows))


def _same(train: Cache, held_out: tuple[Cache, ...], parts: list[Tensor], place: Tensor, distance: Tensor) -> Tensor:
    """Return which held-out images are the same as their nearest training image, (N,), boolean."""
    usual = float(distance[:, -1].median())
    same = distance[:, 0] <= SAME * usual
    if "images" not in train:
        return same
    start = 0
    for part, index in zip(held_out, parts, strict=True):
        inside = same[start : start + len(index)].nonzero()[:, 0]
        for some in inside.split(256):
            pixels = part["images"].rows(index[some]), train["images"].rows(place[start + some])
            same[start + some] = (pixels[0] == pixels[1]).flatten(1).all(1)
        start += len(index)
    return same


def _near(distance: Tensor) -> int | None:
    """Return how many images are nearer to a training image than chance allows, by distances (N, k), ascending."""
    k = distance.shape[1]
    if len(distance) < FEWEST or k < NEIGHBOURS:
        return None
    first, last = distance[:, 0], distance[:, -1].clamp_min(1e-300)
    share = (first / last).clamp(1e-12, 1 - 1e-12)
    usual = 1 - 0.5 ** (1 / (k - 1))
    dimension = math.log(usual) / float(share.log().median())
    chance = -torch.expm1((k - 1) * torch.log1p(-(share**dimension)))
    return int(((chance < CHANCE / len(distance)) & (first < FAR_BELOW * first.median())).sum())
