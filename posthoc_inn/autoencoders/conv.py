"""The built-in convolutional Gaussian autoencoder: MSC tab. S1 for 28 and 32 pixels, and its family for more."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from posthoc_inn.autoencoders.fused import (
    MAX_LOG_VAR,
    MIN_LOG_VAR,
    SLOPE,
    SPREAD_FLOOR,
    VARIANCE_FLOOR,
    FusedLoss,
)
from posthoc_inn.autoencoders.gaussian import GaussianAutoencoder, Metric
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ConfigError
from posthoc_inn.generators import lent_generators

SIZES = (28, 32, 64, 128)
"""Image sides, in pixels, that the built-in autoencoder is made for."""


class ConvAutoencoder(GaussianAutoencoder):
    """Gaussian encoder E and decoder D with a learned output variance γ (MSC A.1, tab. S1).

    Two kinds share the table's convolutions. "msc" is the table: batch norm, leaky ReLU, tanh. "conv", the default,
    leaves batch norm out and codes each channel's mean and deviation apart from its standardised content: colour and
    contrast multiply shape, which convolutions alone are slow to learn (benchmarks/autoencoders.py measures it).

    Args:
        config: Image size, channels, latent width, kind "conv" or "msc".

    Raises:
        ConfigError: The size is none of 28, 32, 64 and 128 pixels.

    >>> autoencoder = ConvAutoencoder(AutoencoderConfig(size=28, latent_dim=8, width=8))
    >>> mean, std = autoencoder.encode(torch.rand(2, 3, 28, 28))
    >>> mean.shape, bool((std > 0).all()), autoencoder.decode(mean).shape
    (torch.Size([2, 8]), True, torch.Size([2, 3, 28, 28]))
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        if config.size not in SIZES:
            raise ConfigError(
                f"The built-in autoencoder takes images of {', '.join(map(str, SIZES))} pixels, got {config.size}."
            )
        if config.latent != "vector":
            raise ConfigError(
                f"The latent of autoencoders of the kind {config.kind!r} is a vector, got latent={config.latent!r}; "
                "kind='residual' has a map."
            )
        self._is_table = config.kind == "msc"
        halvings = round(math.log2(config.size / (7 if config.size == 28 else 8)))
        widths = [min(config.width * 2**k, 512) for k in range(halvings)]
        side = config.size // 2**halvings
        flat = widths[-1] * side * side
        with lent_generators(config.seed):
            down: list[nn.Module] = []
            for before, after in zip([config.channels, *widths[:-1]], widths, strict=True):
                down += [nn.Conv2d(before, after, 4, 2, 1), *self._nonlinearity(after)]
            self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, 2 * config.latent_dim))
            up: list[nn.Module] = [
                nn.Linear(config.latent_dim, flat),
                nn.Unflatten(1, (widths[-1], side, side)),
            ]
            for before, after in zip(widths[:0:-1], widths[-2::-1], strict=True):
                up += [nn.ConvTranspose2d(before, after, 4, 2, 1), *self._nonlinearity(after)]
            up += [nn.ConvTranspose2d(widths[0], config.channels, 4, 2, 1)]
            self.decoder = nn.Sequential(*up)
            if not self._is_table:
                self.encoder_statistics = nn.Linear(2 * config.channels, 2 * config.latent_dim)
                self.decoder_statistics = nn.Linear(config.latent_dim, 2 * config.channels)
                with torch.no_grad():
                    self.decoder_statistics.weight.mul_(0.1)
                    self.decoder_statistics.bias.copy_(torch.tensor([0.0, 0.3]).repeat_interleave(config.channels))
        self.to(memory_format=torch.channels_last)

    @property
    def last_layer(self) -> nn.Module:
        """The layer whose output are the pictures."""
        return self.decoder[-1]

    def _nonlinearity(self, width: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(width), nn.LeakyReLU(SLOPE)] if self._is_table else [nn.LeakyReLU(SLOPE)]

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of z_bar, each (B, D), for images (B, C, H, W) in [0, 1].

        Raises:
            ShapeError: The images do not have the configured size and channels.
        """
        self._check(images)
        x = images * 2 - 1
        if self._is_table:
            out = self.encoder(x.contiguous(memory_format=torch.channels_last)).to(x.dtype)
        else:
            mean, spread = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)
            content = ((x - mean) / (spread + SPREAD_FLOOR)).contiguous(memory_format=torch.channels_last)
            statistics = torch.cat([mean, spread], dim=1).flatten(1)
            out = self.encoder(content).to(x.dtype) + self.encoder_statistics(statistics).to(x.dtype)
        mean, log_var = out.chunk(2, dim=1)
        return mean, (0.5 * log_var.clamp(MIN_LOG_VAR, MAX_LOG_VAR)).exp()

    def _decoded(self, z_bar: Tensor) -> Tensor:
        """Return images in units of [-1, 1], not clamped, so that gradients reach values outside."""
        content: Tensor = self.decoder(z_bar).to(z_bar.dtype)
        if self._is_table:
            return torch.tanh(content)
        # Standardised, so that what the statistics say is what the picture has, whatever its content.
        centred = content - content.mean((2, 3), keepdim=True)
        content = centred / (centred.square().mean((2, 3), keepdim=True) + VARIANCE_FLOOR).sqrt()
        statistics: Tensor = self.decoder_statistics(z_bar).to(z_bar.dtype)[:, :, None, None]
        shift, scale = statistics.chunk(2, dim=1)
        return shift + scale * content

    def loss(self, images: Tensor, noise: Tensor, metric: Metric | None = None) -> Tensor:
        """Return the training loss of `loss_figures`, and keep γ up to date.

        In training on a CPU, kind "conv" without a metric computes the same numbers in fewer passes; under autocast, in
        its precision.
        """
        is_fused = images.device.type == "cpu" and torch.is_grad_enabled() and not images.requires_grad
        if not is_fused or self._is_table or metric is not None:
            return super().loss(images, noise, metric)
        return self.remembered(self._fused_figures(images, noise))["loss"]

    def _fused_figures(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        self._check(images)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
        down = [m for m in self.encoder if isinstance(m, nn.Conv2d)]
        up = [m for m in self.decoder if isinstance(m, nn.ConvTranspose2d)]
        layers = [*down, self.encoder[-1], self.encoder_statistics, self.decoder_statistics, self.decoder[0], *up]
        parameters = [p for layer in layers for p in layer.parameters()]  # weight, bias
        with torch.autocast("cpu", enabled=False):
            loss, error, kl = FusedLoss.apply(images, noise, self.least_gamma, len(down), dtype, *parameters)
        return {"loss": loss, "error": error, "kl": kl}
