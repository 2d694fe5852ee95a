"""What t was fitted to, as the explained model sees it: how far z of an image lies from that of held-out ones."""

from __future__ import annotations

import math
import warnings

import torch
from scipy import stats
from torch import Tensor, nn

from posthoc_inn.errors import OutsideWarning
from posthoc_inn.flows.conditioner import CLIP
from posthoc_inn.rows.cache import Cache

COORDINATES = 1024
"""Values of z that are looked at."""
COMPONENTS = 256
"""Directions that have a variance of their own."""
ROWS = 4000
"""Images that the Gaussian is fitted to; of held-out ones, as many are compared at the most."""
VALUES = 2**27
"""Numbers of z that are read: of large z fewer images are."""
FLAT = 0.1
"""Deviation that a value has at the least, as a share of the mean deviation: many hardly move on training images."""
LEAST = 20
"""Training images below which no Gaussian is fitted."""
CLEAR = 4.0
"""Deviations of the held-out images' distances from their mean, which a distance must exceed to be told; of few images
the mean and the deviation are uncertain, so that it must be more."""

RARER = 3.0
"""How many times rarer than the farthest held-out image an image has to be."""


class World(nn.Module):
    """A Gaussian of z of training images: standardised, its main directions' variances, and one of all others.

    Args:
        coordinates: Values of z that are looked at, M.
        components: Main directions, K.
        draws: Held-out images, N.

    >>> rows, held_out = Cache(), Cache()
    >>> rows.append(z=torch.randn(200, 5, generator=torch.Generator().manual_seed(0)))
    >>> held_out.append(z=torch.randn(50, 5, generator=torch.Generator().manual_seed(1)))
    >>> world = World.of(rows, held_out)
    >>> world.is_outside(torch.tensor([[0.0] * 5, [20.0] * 5])).tolist()
    [False, True]
    """

    index: Tensor
    z_mean: Tensor
    z_std: Tensor
    basis: Tensor
    variance: Tensor
    rest: Tensor
    distances: Tensor

    def __init__(self, coordinates: int, components: int, draws: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.zeros(coordinates, dtype=torch.long))
        self.register_buffer("z_mean", torch.zeros(coordinates))
        self.register_buffer("z_std", torch.ones(coordinates))
        self.register_buffer("basis", torch.zeros(coordinates, components))
        self.register_buffer("variance", torch.ones(components))
        self.register_buffer("rest", torch.ones(()))
        self.register_buffer("distances", torch.zeros(draws))

    @property
    def sizes(self) -> dict[str, int]:
        """Arguments that make one of the same size."""
        return {
            "coordinates": len(self.index),
            "components": len(self.variance),
            "draws": len(self.distances),
        }

    @classmethod
    @torch.no_grad()
    def of(cls, train: Cache, held_out: Cache) -> World | None:
        """Return that of cached rows, or None where there are too few: 20 for training, and 2 held out."""
        if len(train) < LEAST or len(held_out) < 2:
            return None
        width = train["z"].shape
        count = torch.Size(width).numel()
        coordinates = min(count, COORDINATES)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        index = order[:coordinates].sort().values
        rows = _some(train, index)
        components = max(1, min(COMPONENTS, coordinates, len(rows) // 6))
        apart = _some(held_out, index)
        found = cls(coordinates, components, len(apart))
        found.index.copy_(index)
        std = rows.std(0)
        # What these never move must not count without bound.
        found.z_std.copy_(std.clamp_min(FLAT * float(std.mean()) + 1e-8))
        found.z_mean.copy_(rows.mean(0))
        x = found._standardized(rows)
        values, vectors = torch.linalg.eigh(x.T @ x / len(x))
        found.basis.copy_(vectors[:, -components:])
        floor = max(1e-8, 1e-4 * float(values.mean()))
        found.variance.copy_(values[-components:].clamp_min(floor))
        left = values[:-components]
        found.rest.fill_(max(floor, float(left.mean())) if len(left) else 1.0)
        found.distances.copy_(found._distance(apart).sort().values)
        return found

    def distance(self, z: Tensor) -> Tensor:
        """Return the Mahalanobis distance (B,) of representations z (B, *z_shape)."""
        return self._distance(z.to(self.index.device).flatten(1)[:, self.index].double())

    def _standardized(self, rows: Tensor) -> Tensor:
        # As t sees z. A unit that seldom fires must not decide alone.
        return ((rows - self.z_mean.double()) / self.z_std.double()).clamp(-CLIP, CLIP)

    def _distance(self, rows: Tensor) -> Tensor:
        x = self._standardized(rows)
        along = x @ self.basis.double()
        beyond = (x.square().sum(1) - along.square().sum(1)).clamp_min(0)
        return ((along.square() / self.variance.double()).sum(1) + beyond / self.rest.double()).sqrt()

    @property
    def limit(self) -> float:
        """The distance that tells: clearly beyond that of all held-out images, and clearly beyond that of most."""
        own = self.distances.double()
        count = len(own)
        if count < 2:
            return math.inf
        # A new distance is predicted from `count` of them (Student's t), 4 deviations off for many.
        wide = float(stats.t.isf(stats.norm.sf(CLEAR), count - 1)) * math.sqrt(1 + 1 / count)
        # One in `count` lies beyond the farthest; this far beyond, of an exponential tail, one in three times as many.
        farthest = float(own.max())
        rarer = (farthest - float(own.median())) * math.log(RARER) / math.log(max(2.0, count / 2))
        return max(farthest + rarer, float(own.mean()) + wide * float(own.std()))

    def is_outside(self, z: Tensor) -> Tensor:
        """Return which of z (B, *z_shape) lie clearly farther than all held-out images, (B,)."""
        return self.distance(z) > self.limit

    def times(self, z: Tensor) -> Tensor:
        """Return the distances of z (B, *z_shape) as multiples of the usual held-out image's, (B,)."""
        return self.distance(z) / max(float(self.distances.median()), 1e-12)

    def rank(self, z: Tensor) -> Tensor:
        """Return the share of held-out images that lie as far as each of z (B, *z_shape), or farther: (B,)."""
        far = self.distance(z)
        own = self.distances.to(far)
        return 1 - torch.searchsorted(own, far).to(far) / len(own)

    def tell(self, z: Tensor, clipped: Tensor, *, is_drawn: bool = False) -> None:
        """Warn of z (B, *z_shape) unlike what t was fitted to, each by its number.

        Args:
            z: Representations.
            clipped: How many values of each t clips, (B,).
            is_drawn: Whether t was fitted to a generator's draws.
        """
        outside = self.is_outside(z).nonzero()[:, 0].tolist()
        if not outside:
            return
        times, values = self.times(z), math.prod(z.shape[1:])
        each = []
        for i in outside[:8]:
            cut = f", {int(clipped[i]):,} of {values:,} values clipped" if int(clipped[i]) else ""
            each.append(f"{i} ({float(times[i]):.1f} times{cut})")
        told = ", ".join(each) + (f", and {len(outside) - 8} more" if len(outside) > 8 else "")
        unit = "draw" if is_drawn else "image"
        what = "anything the generator makes" if is_drawn else "the images that t was fitted to"
        warnings.warn(
            f"z of {len(outside)} of {len(z)} images is unlike that of {what}: image {told} as far from their mean as "
            f"the usual held-out {unit}, farther than all {len(self.distances):,} held-out {unit}s. Do not trust "
            "pictures made for them.",
            OutsideWarning,
            stacklevel=4,
        )


def _some(cache: Cache, index: Tensor) -> Tensor:
    """Return the coordinates `index` of z of some rows, in double precision."""
    most = min(ROWS, max(LEAST, VALUES // max(1, math.prod(cache["z"].shape))))
    # A folder comes class by class: the first rows would be another world.
    rows = cache.some(most, seed=0).sort().values
    return torch.cat([cache["z"].rows(part).flatten(1)[:, index].double() for part in rows.split(64)])
