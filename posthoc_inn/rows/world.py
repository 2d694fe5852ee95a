"""What a generator can make, as the explained model sees it: how far z of a photograph lies from that of draws."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from posthoc_inn.errors import PosthocInnWarning
from posthoc_inn.rows.cache import Cache

COORDINATES = 1024
"""Values of z that are looked at."""
COMPONENTS = 32
"""Directions that have a variance of their own."""
ROWS = 4000
"""Draws that the Gaussian is fitted to; of held-out ones, as many are compared at the most."""
CLEAR = 4.0
"""Deviations of the held-out draws' distances from their mean, which a distance must exceed to be told."""


class World(nn.Module):
    """A Gaussian of z of draws: standardised, with the variance of its main directions, and one of all others.

    Args:
        coordinates: Values of z that are looked at, M.
        components: Main directions, K.
        draws: Held-out draws, N.

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
    def of(cls, train: Cache, held_out: Cache) -> World:
        """Return that of cached rows of draws."""
        width = train["z"].shape
        count = torch.Size(width).numel()
        coordinates = min(count, COORDINATES)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        index = order[:coordinates].sort().values
        rows = _some(train, index)
        components = max(1, min(COMPONENTS, coordinates, len(rows) // 20))
        found = cls(coordinates, components, min(len(held_out), ROWS))
        found.index.copy_(index)
        std = rows.std(0)
        # What draws never move must not count without bound.
        found.z_std.copy_(std.clamp_min(0.01 * float(std.mean()) + 1e-8))
        found.z_mean.copy_(rows.mean(0))
        x = (rows - found.z_mean.double()) / found.z_std.double()
        values, vectors = torch.linalg.eigh(x.T @ x / len(x))
        found.basis.copy_(vectors[:, -components:])
        floor = max(1e-8, 1e-4 * float(values.mean()))
        found.variance.copy_(values[-components:].clamp_min(floor))
        left = values[:-components]
        found.rest.fill_(max(floor, float(left.mean())) if len(left) else 1.0)
        found.distances.copy_(found._distance(_some(held_out, index)).sort().values)
        return found

    def distance(self, z: Tensor) -> Tensor:
        """Return the Mahalanobis distance (B,) of representations z (B, *z_shape)."""
        return self._distance(z.to(self.index.device).flatten(1)[:, self.index].double())

    def _distance(self, rows: Tensor) -> Tensor:
        x = (rows - self.z_mean.double()) / self.z_std.double()
        along = x @ self.basis.double()
        beyond = (x.square().sum(1) - along.square().sum(1)).clamp_min(0)
        return ((along.square() / self.variance.double()).sum(1) + beyond / self.rest.double()).sqrt()

    def is_outside(self, z: Tensor) -> Tensor:
        """Return which of z (B, *z_shape) lie clearly farther than all held-out draws, (B,)."""
        own = self.distances.double()
        spread = float(own.std()) if len(own) > 1 else 0.0
        return self.distance(z) > max(float(own.max()), float(own.mean()) + CLEAR * spread)

    def tell(self, z: Tensor) -> None:
        """Warn of z (B, *z_shape) that no draw resembles, each by its number."""
        outside = self.is_outside(z).nonzero()[:, 0].tolist()
        if not outside:
            return
        usual, far = float(self.distances.median()), self.distance(z)
        told = ", ".join(f"{i} ({float(far[i]) / max(usual, 1e-12):.1f} times)" for i in outside[:8])
        told += f", and {len(outside) - 8} more" if len(outside) > 8 else ""
        warnings.warn(
            f"z of {len(outside)} of {len(z)} images is unlike that of anything the generator makes: image {told} "
            f"as far from the draws' mean as the usual draw, farther than all {len(self.distances):,} held-out draws. "
            "Do not trust pictures made for them.",
            PosthocInnWarning,
            stacklevel=4,
        )


def _some(cache: Cache, index: Tensor) -> Tensor:
    """Return the coordinates `index` of z of the first rows, in double precision."""
    parts = []
    for start in range(0, min(len(cache), ROWS), 256):
        parts.append(cache["z"].span(start, min(start + 256, ROWS)).flatten(1)[:, index].double())
    return torch.cat(parts)
