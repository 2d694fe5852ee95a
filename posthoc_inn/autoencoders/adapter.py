"""Lets a user's own encoder and decoder serve as the autoencoder."""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn

from posthoc_inn.autoencoders.base import Autoencoder
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ConfigError, DataError, Problems, ShapeError

Range = Literal["unit", "symmetric"]


class GivenAutoencoder(Autoencoder):
    """A trained encoder and decoder of the user's, frozen.

    Args:
        encoder: Images to z_bar (B, D), to (mean, std), or to (mean, log-variance) with `second="log_var"`.
        decoder: z_bar (B, D) to images.
        size: Side of its images, in pixels.
        channels: 1 or 3.
        image_range: "unit" when both use [0, 1], "symmetric" for [-1, 1].
        noise: Deviation of z_bar when the encoder gives only a mean; t needs a strictly positive density (MSC A.1).
        second: What the second output of the encoder is.

    Raises:
        ConfigError: An argument is wrong; all problems at once.

    >>> flat = nn.Sequential(nn.Flatten(), nn.Linear(784, 4))
    >>> back = nn.Sequential(nn.Linear(4, 784), nn.Unflatten(1, (1, 28, 28)), nn.Sigmoid())
    >>> autoencoder = GivenAutoencoder(flat, back, size=28, channels=1)
    >>> [t.shape[1] for t in autoencoder.encode(torch.rand(2, 1, 28, 28))], autoencoder.latent_dim
    ([4, 4], 4)
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        size: int,
        channels: int = 3,
        image_range: Range = "unit",
        noise: float = 0.01,
        second: Literal["std", "log_var"] = "std",
    ) -> None:
        super().__init__()
        problems = Problems("GivenAutoencoder")
        problems.check(size >= 1, f"size must be a positive number of pixels, got {size}")
        problems.check(channels in (1, 3), f"channels must be 1 or 3, got {channels}")
        problems.check(
            image_range in ("unit", "symmetric"), f"image_range is 'unit' or 'symmetric', got {image_range!r}"
        )
        problems.check(noise > 0 and math.isfinite(noise), f"noise must be positive, got {noise}")
        problems.check(second in ("std", "log_var"), f"second is 'std' or 'log_var', got {second!r}")
        problems.raise_if_any()
        self.encoder, self.decoder = encoder, decoder
        self.image_range, self.noise, self.second = image_range, noise, second
        self.config = AutoencoderConfig(
            kind="given", size=size, channels=channels, latent_dim=self._probe(size, channels)
        )

    @torch.no_grad()
    def _probe(self, size: int, channels: int) -> int:
        parameter = next(self.encoder.parameters(), torch.zeros(()))
        images = torch.full((2, channels, size, size), 0.5, device=parameter.device)
        was_training = self.encoder.training, self.decoder.training
        self.encoder.eval(), self.decoder.eval()
        try:
            mean, _ = self.encode(images)
            if mean.ndim != 2:
                raise ShapeError(f"The encoder must give latents (B, D), got {tuple(mean.shape)}: flatten them.")
            decoded = self.decode(mean)
        finally:
            self.encoder.train(was_training[0]), self.decoder.train(was_training[1])
        if decoded.shape != images.shape:
            raise ShapeError(
                f"The decoder must give images {tuple(images.shape)} for latents {tuple(mean.shape)}, got "
                f"{tuple(decoded.shape)}."
            )
        return int(mean.shape[1])

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of z_bar, each (B, D), for images (B, C, H, W) in [0, 1]."""
        out = self.encoder(images * 2 - 1 if self.image_range == "symmetric" else images)
        if isinstance(out, Tensor):
            return out.float(), torch.full_like(out, self.noise, dtype=torch.float32)
        if not (isinstance(out, (tuple, list)) and len(out) == 2 and all(isinstance(o, Tensor) for o in out)):
            raise DataError(f"The encoder must return a tensor or two, got {type(out).__name__}.")
        mean, spread = (o.float() for o in out)
        return mean, (0.5 * spread).exp() if self.second == "log_var" else spread

    def decode(self, z_bar: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] for latents (B, D)."""
        return self.decode_unclamped(z_bar).clamp(0, 1)

    def decode_unclamped(self, z_bar: Tensor) -> Tensor:
        """Return the same before it is clamped to [0, 1], where values outside still have a gradient."""
        images: Tensor = self.decoder(z_bar).float()
        return images * 0.5 + 0.5 if self.image_range == "symmetric" else images


def as_autoencoder(given: object) -> Autoencoder:
    """Return `given` when it can serve as an autoencoder.

    Raises:
        ConfigError: It lacks `encode`, `decode` or `config`.
    """
    missing = [name for name in ("encode", "decode", "config", "latent_dim") if not hasattr(given, name)]
    if not isinstance(given, nn.Module) or missing:
        raise ConfigError(
            f"An autoencoder is a module with encode, decode, config and latent_dim; {type(given).__name__} lacks "
            f"{', '.join(missing) or 'being a module'}. Wrap your own in GivenAutoencoder(encoder, decoder, size=...)."
        )
    return cast(Autoencoder, given)
