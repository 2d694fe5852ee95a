"""Autoencoders of diffusers as E and D: latents flattened and standardised, with noise that t can learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from posthoc_inn.autoencoders import Autoencoder
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ConfigError, DataError, Problems, shown

MAX_LATENT = 65536
"""Widest z_bar that posthoc_inn takes."""
_CHUNK = 16
"""Images that go through the encoder at a time where statistics are measured."""


class DiffusersAutoencoder(Autoencoder):
    """An AutoencoderKL, AutoencoderTiny or AutoencoderDC, frozen.

    z_bar is (latent - shift) · scale for each channel, flattened. Such encoders have deviations of almost nothing, or
    none: t cannot learn a density that thin, and flows on such latents are trained with noise of about 0.3.

    Args:
        model: The network.
        kind: "kl", "tiny" or "dc".
        size: Side of its images, in pixels.
        noise: Least deviation of z_bar.
        channels: Image channels that it has to have, or None for its own.

    Raises:
        ConfigError: An argument is wrong; all problems at once.
        DataError: The network's configuration makes no sense.
    """

    model: Any
    shift: Tensor
    scale: Tensor

    def __init__(
        self, model: nn.Module, kind: str, *, size: int, noise: float = 0.3, channels: int | None = None
    ) -> None:
        super().__init__()
        settings: Any = model.config
        own = settings.in_channels
        problems = Problems("a diffusers autoencoder")
        problems.check(type(size) is int and 8 <= size <= 1024, f"size must be 8 to 1024 pixels, got {size}")
        problems.check(noise > 0 and math.isfinite(noise), f"noise must be positive, got {noise}")
        problems.check(
            channels in (None, own), f"the network takes images of {own} channels, the images have {channels}"
        )
        problems.raise_if_any()
        self.model, self.kind, self.noise = model, kind, float(noise)
        self._map = self._probe(size, own)
        shift, scale = _standards(settings, self.latent_shape[0])
        self.register_buffer("shift", shift.view(-1, 1, 1))
        self.register_buffer("scale", scale.view(-1, 1, 1))
        # "given": a bundle holds none of its weights, and neither path nor name.
        self.config = AutoencoderConfig(kind="given", size=size, channels=own, latent_dim=math.prod(self.latent_shape))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the network's own latent without the batch, (C, H, W); z_bar is it, flattened."""
        return self._map

    @torch.no_grad()
    def _probe(self, size: int, channels: int) -> tuple[int, int, int]:
        images = torch.zeros(1, channels, size, size, device=next(self.model.parameters()).device)
        try:
            latent, _ = self._raw(images)
            decoded = self.model.decode(latent).sample
        except Exception as error:
            raise ConfigError(
                f"The network cannot take images of {size} px: choose a size that its halvings divide "
                f"({type(error).__name__}: {shown(' '.join(str(error).split()), 160)})."
            ) from error
        if decoded.shape != images.shape:
            raise ConfigError(
                f"The network makes images {tuple(decoded.shape)} from {tuple(images.shape)}: choose a size that its "
                "halvings divide."
            )
        width = math.prod(latent.shape[1:])
        if width > MAX_LATENT:
            raise ConfigError(
                f"At {size} px the latent has {width} dimensions; at most {MAX_LATENT} are taken. Choose a "
                "smaller size."
            )
        return cast(tuple[int, int, int], tuple(latent.shape[1:]))

    def _raw(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the network's own latent (B, C, H, W) and its deviation, where it has one; images in [-1, 1]."""
        out = self.model.encode(images)
        if self.kind == "kl":
            return out.latent_dist.mean, out.latent_dist.std
        return (out.latents if self.kind == "tiny" else out.latent), None

    @torch.no_grad()
    def measure(self, images: Tensor) -> None:
        """Set shift and scale so that each channel of z_bar has mean 0 and deviation 1 over images (B, C, H, W).

        Raises:
            DataError: They are no images of this size, or a channel does not vary over them.
        """
        expected = (self.config.channels, self.config.size, self.config.size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected or len(images) < 2:
            raise DataError(f"measure takes at least 2 images {('B', *expected)}, got {tuple(images.shape)}.")
        images = images.to(self.shift)
        latents = torch.cat([self._raw(part * 2 - 1)[0] for part in images.split(_CHUNK)]).double()
        mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
        if not bool((std > 1e-6).all() and mean.isfinite().all()):
            raise DataError("A channel of the latent does not vary over the images to measure it on: pass others.")
        self.shift.copy_(mean.view(-1, 1, 1))
        self.scale.copy_(1 / std.view(-1, 1, 1))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of z_bar, each (B, D), for images (B, C, H, W) in [0, 1]."""
        latent, spread = self._raw(images * 2 - 1)
        mean = ((latent.float() - self.shift) * self.scale).flatten(1)
        if spread is None:
            return mean, torch.full_like(mean, self.noise)
        return mean, (spread.float() * self.scale).flatten(1).clamp_min(self.noise)

    def decode(self, z_bar: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] for latents (B, D)."""
        latent = z_bar.view(-1, *self.latent_shape) / self.scale + self.shift
        images: Tensor = self.model.decode(latent).sample.float()
        return (images * 0.5 + 0.5).clamp(0, 1)


def _standards(settings: Any, channels: int) -> tuple[Tensor, Tensor]:
    """Return shift and scale (C,) of the latent's channels by the network's configuration.

    Raises:
        DataError: They are no numbers, too many or too few, or not positive.
    """

    def read(name: str, otherwise: float) -> Tensor:
        value: Any = getattr(settings, name, None)
        value = otherwise if value is None else value
        many: list[Any] = (
            list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * channels
        )
        fits = len(many) == channels and all(isinstance(n, (int, float)) and math.isfinite(n) for n in many)
        if not fits or (otherwise == 1 and min(many) <= 0):
            raise DataError(f"{name} of config.json is {shown(value, 80)}, for a latent of {channels} channels.")
        return torch.tensor([float(n) for n in many])

    scale = read("scaling_factor", 1.0) / read("latents_std", 1.0)
    return read("shift_factor", 0.0) + read("latents_mean", 0.0), scale
