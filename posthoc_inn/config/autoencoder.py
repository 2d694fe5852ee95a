"""The autoencoder: its shape, and by which image metric it is trained (MSC A.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from posthoc_inn.config.base import Config
from posthoc_inn.errors import Problems


@dataclass(frozen=True)
class AutoencoderConfig(Config):
    """Shape of an autoencoder: of the built-in ones (MSC tab. S1 and the same family), and of a plugin's.

    Attributes:
        kind: Registered autoencoder.
        size: Image size in pixels: 28, 32, 64 or 128 for "conv", any that `reduction` divides for "residual".
        channels: Image channels, 1 or 3.
        latent_dim: D, width of z_bar; of a map, all its values.
        width: Channels after the first halving (64 in tab. S1), doubled at each further one.
        min_gamma: Lower bound of the output variance γ, images in [-1, 1]: errors below it are not worth bits of the
            latent. Finer latents are denser, and harder for t to learn.
        seed: Seed of the initial weights.
        latent: "vector", or "map": a code that keeps places. Either is handed around as (B, D); a map is flattened in
            the order (C, h, w). `of_map` makes a configuration with the right `latent_dim`.
        latent_channels: C of a map.
        reduction: How many times a map's sides are smaller than the image's: 2, 4, 8, 16 or 32.
        perceptual: Network whose features add a perceptual distance to the squared error in training: "" for none,
            "model" for the explained model itself, a registered backbone, or a registered image metric that passes
            gradients on ("lpips-squeeze", with posthoc-inn-lpips), whose networks and layers are its own matter.
            "auto", which `of_map` sets: the explained model where its features can be trained by, and none elsewhere.
        perceptual_weights: Of a backbone, or a metric's network: a file, or a name that its plugin knows. Of a file, a
            bundle keeps the name without its directory.
        perceptual_layers: Layers whose features are compared; early ones are chosen when none are named.
        perceptual_weight: How much the logarithm of the distance counts beside that of the squared error, so that units
            do not matter (`GaussianAutoencoder.loss_figures`).
        perceptual_share: Share of a batch that the distance is taken over in training: most networks are larger than an
            autoencoder, and fewer pictures a step are more steps. 0 for as many as cost half of what the autoencoder
            itself does in a step, by counted operations, and a quarter at the most.
        discriminator: Weight of the patch discriminator of MSC tab. S6, as a share of the gradient of all else at the
            last layer of D; 0 for none.
        discriminator_start: Share of the steps after which it is switched on.
        discriminator_width: Its channels after the first halving; 64 in tab. S6.

    >>> AutoencoderConfig().latent_shape, AutoencoderConfig.of_map(96, reduction=8).latent_shape
    ((64,), (4, 12, 12))
    """

    kind: str = "conv"
    size: int = 28
    channels: int = 3
    latent_dim: int = 64
    width: int = 64
    min_gamma: float = 0.004
    seed: int = 0
    latent: Literal["vector", "map"] = "vector"
    latent_channels: int = 4
    reduction: int = 8
    perceptual: str = ""
    perceptual_weights: str = ""
    perceptual_layers: tuple[str, ...] = ()
    perceptual_weight: float = 1.0
    perceptual_share: float = 0.0
    discriminator: float = 0.0
    discriminator_start: float = 0.5
    discriminator_width: int = 64

    @classmethod
    def of_map(
        cls, size: int, channels: int = 3, *, latent_channels: int = 4, reduction: int | None = None, **more: Any
    ) -> AutoencoderConfig:
        """Return the configuration of a map of `latent_channels` for images of `size` pixels, of kind "residual".

        `reduction` is by default 4 below 48 pixels, and 8 from there on: 4 × 8 × 8 for 32 and 64 px, 4 × 16 × 16 for
        128. `more` are the other attributes.

        Raises:
            ConfigError: `reduction` does not divide the size, or a value is out of its range.
        """
        reduction = reduction or (4 if size < 48 else 8)
        side = max(1, size // reduction) if reduction > 0 else 1
        given = {"kind": "residual", "latent_dim": latent_channels * side * side, "perceptual": "auto", **more}
        return cls(
            size=size,
            channels=channels,
            latent="map",
            latent_channels=latent_channels,
            reduction=reduction,
            **given,
        )

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of z_bar without the batch, before it is flattened: (D,) of a vector, (C, h, w) of a map."""
        if self.latent == "vector":
            return (self.latent_dim,)
        side = self.size // self.reduction
        return (self.latent_channels, side, side)

    @property
    def latent_told(self) -> str:
        """The width of the latent in words, with its shape where it is a map.

        >>> AutoencoderConfig().latent_told, AutoencoderConfig.of_map(32).latent_told
        ('64', '256 (4 x 8 x 8)')
        """
        shape = "" if self.latent == "vector" else f" ({' x '.join(map(str, self.latent_shape))})"
        return f"{self.latent_dim}{shape}"

    def _check(self, problems: Problems) -> None:
        problems.check(0 <= self.min_gamma <= 4, f"min_gamma must be in [0, 4], got {self.min_gamma}")
        problems.check(8 <= self.size <= 1024, f"size must be 8 to 1024 pixels, got {self.size}")
        problems.check(self.channels in (1, 3), f"channels must be 1 or 3, got {self.channels}")
        problems.check(2 <= self.latent_dim <= 65536, f"latent_dim must be 2 to 65536, got {self.latent_dim}")
        problems.check(1 <= self.width <= 4096, f"width must be 1 to 4096, got {self.width}")
        problems.check(
            1 <= self.latent_channels <= 1024, f"latent_channels must be 1 to 1024, got {self.latent_channels}"
        )
        problems.check(
            0 <= self.perceptual_weight <= 1000, f"perceptual_weight must be in [0, 1000], got {self.perceptual_weight}"
        )
        problems.check(
            0 <= self.perceptual_share <= 1, f"perceptual_share must be in [0, 1], got {self.perceptual_share}"
        )
        problems.check(
            bool(self.perceptual) or not (self.perceptual_weights or self.perceptual_layers),
            "perceptual_weights and perceptual_layers are those of a network that perceptual names, and it names none",
        )
        problems.check(
            self.perceptual not in ("model", "auto") or not self.perceptual_weights,
            f"perceptual={self.perceptual!r} is the explained model with the weights it has: "
            "leave out perceptual_weights",
        )
        problems.check(0 <= self.discriminator <= 1000, f"discriminator must be in [0, 1000], got {self.discriminator}")
        problems.check(
            0 <= self.discriminator_start < 1, f"discriminator_start must be in [0, 1), got {self.discriminator_start}"
        )
        problems.check(
            1 <= self.discriminator_width <= 4096,
            f"discriminator_width must be 1 to 4096, got {self.discriminator_width}",
        )
        is_power = self.reduction in (2, 4, 8, 16, 32)
        problems.check(is_power, f"reduction must be 2, 4, 8, 16 or 32, got {self.reduction}")
        if self.latent == "map" and is_power:
            self._check_map(problems)

    def _check_map(self, problems: Problems) -> None:
        if self.size % self.reduction:
            known = [str(n) for n in (2, 4, 8, 16, 32) if self.size % n == 0]
            problems.check(
                False,
                f"reduction must divide the size, {self.size} pixels, for a map; got {self.reduction}, accepted are "
                f"{', '.join(known) or 'none: choose an even size'}",
            )
            return
        product = math.prod(self.latent_shape)
        problems.check(
            self.latent_dim == product,
            f"latent_dim of a map of {' x '.join(map(str, self.latent_shape))} is {product}, got {self.latent_dim}; "
            "AutoencoderConfig.of_map sets it",
        )
