"""Noise that is added to codes besides the encoder's own, before t sees them: a share of each channel's deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from posthoc_inn.autoencoders import Autoencoder
from posthoc_inn.autoencoders.base import CHUNK
from posthoc_inn.errors import BundleError, shown
from posthoc_inn.rows.cache import Cache, unit

ROWS = 5000
"""Training rows that deviations are measured on at the most."""


@dataclass(frozen=True)
class CodeNoise:
    """Normal noise, independent of the encoder's: z_bar ~ N(μ, σ² + d²), with d the same at every place of a channel.

    Attributes:
        share: d as a share of the standard deviation of the channel's codes over the training images.
        deviations: d of each channel of a map, or of each number of a vector.

    >>> noise = CodeNoise.of(torch.tensor([[0.0, 2.0, 1.0, 1.0], [2.0, 0.0, 5.0, 5.0]]), (2, 1, 2), share=0.5)
    >>> noise.deviations
    (0.5, 1.0)
    >>> noise.added(torch.zeros(1, 4)).tolist()
    [[0.5, 0.5, 1.0, 1.0]]
    """

    share: float
    deviations: tuple[float, ...]

    @classmethod
    def of(cls, codes: Tensor, shape: Sequence[int], *, share: float) -> CodeNoise:
        """Return the noise for codes (N, D) of `shape`, (D,) or (C, h, w)."""
        channels = codes.double().unflatten(1, (shape[0], -1))
        return cls(share, tuple((share * channels.std(dim=(0, 2), correction=0)).tolist()))

    def added(self, std: Tensor) -> Tensor:
        """Return the deviation of codes with this noise, (B, D), for the encoder's own `std` (B, D)."""
        own = torch.tensor(self.deviations, dtype=std.dtype, device=std.device)
        return torch.hypot(std, own.repeat_interleave(std.shape[1] // len(own)))

    def to_dict(self) -> dict[str, Any]:
        """Return its attributes as plain data."""
        return asdict(self) | {"deviations": list(self.deviations)}

    @classmethod
    def read(cls, given: Mapping[str, Any] | None, shape: Sequence[int]) -> CodeNoise | None:
        """Return what `to_dict` wrote, for codes of `shape`; None for none.

        Raises:
            BundleError: It is no noise for such codes.
        """
        if given is None:
            return None
        try:
            found = cls(float(given["share"]), tuple(map(float, given["deviations"])))
            is_right = len(found.deviations) == shape[0] and all(
                math.isfinite(x) and x >= 0 for x in (found.share, *found.deviations)
            )
        except (TypeError, KeyError, ValueError, AttributeError):
            is_right = False
        if not is_right:
            raise BundleError(
                f"The bundle's metrics name a code_noise that is none for codes of shape {tuple(shape)}: expected a "
                f"share and {shape[0]} deviations, at least 0; got {shown(given, 120)}. The file was changed: save it "
                "anew."
            )
        return found


@torch.no_grad()
def measured_noise(
    autoencoder: Autoencoder, rows: Cache, shape: Sequence[int], *, share: float, device: torch.device
) -> CodeNoise:
    """Return the noise of a share of each channel's deviation over cached training images, or a generator's latents.

    Args:
        autoencoder: Encodes the images.
        rows: With the column "images", or "latents".
        shape: Of a code, (D,) or (C, h, w).
        share: Of the deviation.
        device: Of the autoencoder.
    """
    index = rows.some(ROWS, seed=0)
    if "latents" in rows:
        return CodeNoise.of(rows["latents"].rows(index).float(), shape, share=share)
    images = rows["images"]
    codes = [autoencoder.encode(unit(images.rows(part).to(device)))[0].float().cpu() for part in index.split(CHUNK)]
    return CodeNoise.of(torch.cat(codes), shape, share=share)
