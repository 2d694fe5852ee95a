"""A lean residual autoencoder whose latent is a map: it keeps places, and details with them."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posthoc_inn.autoencoders.fused import MAX_LOG_VAR, MIN_LOG_VAR, upsampled
from posthoc_inn.autoencoders.gaussian import GaussianAutoencoder
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ConfigError
from posthoc_inn.generators import lent_generators

WIDEST = 4
"""The deepest maps have at most this many times the channels of the first."""
GROUP = 8
"""Channels of a group that is normalised together, where the width allows it."""


START = -4.0
"""Log-variance of the latent that training starts from: noise as large as the signal would hide it."""


class _Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), 3 × 3, with the second convolution starting at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_norm(width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.convs[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of `x` (B, C, H, W)."""
        out = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            out = conv(F.silu(norm(out)))
        return x + out


class _Up(nn.ConvTranspose2d):
    """Twice the side, by a 4 × 4 kernel of which each pixel sees a quarter, so that no pixel is seen more often."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 4, 2, 1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return a map of twice the sides of `x` (B, C, H, W)."""
        if x.device.type != "cpu":
            return super().forward(x, output_size)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return upsampled(x.to(dtype), self.weight.to(dtype), bias)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(width // GROUP if width % GROUP == 0 else 1, width)


class ResidualAutoencoder(GaussianAutoencoder):
    """Gaussian encoder E and decoder D of residual blocks, with a map as the latent (MSC A.1; Rombach et al. 2022).

    The encoder halves the sides until they are `reduction` times smaller, a residual block after each halving; the
    decoder is its mirror image, with one block more at the bottom. No block works at the full resolution, where most of
    the time would go. Channels-last, group norm: no statistics of batches, any size that `reduction` divides.

    Args:
        config: Image size, channels, shape of the map, width.

    Raises:
        ConfigError: The configuration is not one of a map.

    >>> autoencoder = ResidualAutoencoder(AutoencoderConfig.of_map(24, reduction=4, width=8))
    >>> mean, std = autoencoder.encode(torch.rand(2, 3, 24, 24))
    >>> autoencoder.latent_shape, mean.shape, autoencoder.decode(mean).shape
    ((4, 6, 6), torch.Size([2, 144]), torch.Size([2, 3, 24, 24]))
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        if config.latent != "map":
            raise ConfigError(
                f"The latent of autoencoders of the kind {config.kind!r} is a map, got latent={config.latent!r}. "
                "AutoencoderConfig.of_map(size, channels) makes such a configuration."
            )
        halvings = round(math.log2(config.reduction))
        widths = [config.width * min(2**k, WIDEST) for k in range(halvings)]
        pairs = list(itertools.pairwise(widths))
        with lent_generators(config.seed):
            down: list[nn.Module] = [nn.Conv2d(config.channels, widths[0], 4, 2, 1), _Block(widths[0])]
            for before, after in pairs:
                down += [nn.Conv2d(before, after, 3, 2, 1), _Block(after)]
            coded = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)
            with torch.no_grad():
                coded.bias[config.latent_channels :] += START  # type: ignore[index]
            self.encoder = nn.Sequential(*down, _norm(widths[-1]), nn.SiLU(), coded)
            up: list[nn.Module] = [
                nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1),
                _Block(widths[-1]),
                _Block(widths[-1]),
            ]
            for after, before in reversed(pairs):
                up += [_Up(before, after), _Block(after)]
            up += [_norm(widths[0]), nn.SiLU(), _Up(widths[0], config.channels)]
            self.decoder = nn.Sequential(*up)
        self.to(memory_format=torch.channels_last)

    @property
    def last_layer(self) -> nn.Module:
        """The layer whose output are the pictures."""
        return self.decoder[-1]

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of z_bar, each (B, D), for images (B, C, H, W) in [0, 1].

        D runs over the map in the order (C, h, w).

        Raises:
            ShapeError: The images do not have the configured size and channels.
        """
        self._check(images)
        out = self.encoder((images * 2 - 1).contiguous(memory_format=torch.channels_last)).to(images.dtype)
        mean, log_var = (part.flatten(1) for part in out.chunk(2, dim=1))
        return mean, (0.5 * log_var.clamp(MIN_LOG_VAR, MAX_LOG_VAR)).exp()

    def _decoded(self, z_bar: Tensor) -> Tensor:
        maps = z_bar.view(-1, *self.latent_shape).contiguous(memory_format=torch.channels_last)
        pictures: Tensor = self.decoder(maps).to(z_bar.dtype)
        return pictures
