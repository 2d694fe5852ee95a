"""The rows that e is trained on: latents with the encoder's noise, or a layer's z with a little noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from posthoc_inn.objectives import drawn
from posthoc_inn.rows.cache import Cache, joined_rows


class Rows:
    """Where e's inputs are drawn from: means and deviations of cached rows, of one or two caches as one.

    Args:
        caches: Each with the column `mean`, and `std` unless `noise` is given.
        mean: Name of the column: "mean" for latents, "z" for a layer's representations, which are flattened.
        noise: Deviation (D,) of the noise added to `mean` where there is no column of deviations.

    Attributes:
        shape: Of one row before it is flattened.
        dim: D.
    """

    def __init__(self, *caches: Cache, mean: str = "mean", noise: Tensor | None = None) -> None:
        self.caches = caches
        self.column, self.noise = mean, noise
        self.shape = caches[0][mean].shape
        self.dim = math.prod(self.shape)

    def __len__(self) -> int:
        return sum(len(cache) for cache in self.caches)

    def at(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of the rows `index` (B,), each (B, D)."""
        mean = joined_rows([cache[self.column] for cache in self.caches], index).float().flatten(1)
        if self.noise is not None:
            return mean, self.noise.expand_as(mean)
        return mean, joined_rows([cache["std"] for cache in self.caches], index)

    def drawn(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return one draw of each row `index` (B,): (B, D)."""
        mean, std = self.at(index)
        return drawn(mean, std, generator)
