"""What an autoencoder has to offer; a plugin's own module needs the same names, not this base class."""

from __future__ import annotations

from torch import Tensor, nn

from posthoc_inn.config import AutoencoderConfig

CHUNK = 512
"""Images or latents that go through a network at a time: memory is bounded whatever their number."""


class Autoencoder(nn.Module):
    """A stochastic encoder E and a decoder D (MSC A.1).

    Attributes:
        config: Image size, channels and latent width.

    >>> Autoencoder.latent_dim.__doc__
    'D, the width of z_bar.'
    """

    config: AutoencoderConfig

    @property
    def has_encoder(self) -> bool:
        """Whether any image can be encoded; a generator knows the latents of its own draws alone."""
        return True

    @property
    def latent_dim(self) -> int:
        """D, the width of z_bar."""
        return self.config.latent_dim

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of z_bar without the batch, before it is flattened: (D,), or (C, h, w) of a map."""
        return self.config.latent_shape

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of z_bar, each (B, D), for images (B, C, H, W) in [0, 1]."""
        raise NotImplementedError

    def decode(self, z_bar: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] for latents (B, D)."""
        raise NotImplementedError


def latent_shape_of(autoencoder: object) -> tuple[int, ...]:
    """Return `latent_shape` of anything that serves as an autoencoder; (D,) where it does not tell.

    >>> latent_shape_of(type("Own", (), {"latent_dim": 5})())
    (5,)
    """
    told = getattr(autoencoder, "latent_shape", None)
    return (int(autoencoder.latent_dim),) if told is None else tuple(told)  # type: ignore[attr-defined]


class TrainableAutoencoder(Autoencoder):
    """One that the framework trains.

    >>> issubclass(TrainableAutoencoder, Autoencoder)
    True
    """

    def loss_figures(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return at least "loss" and "error", scalars, for images (B, C, H, W) in [0, 1] and noise (B, D)."""
        raise NotImplementedError

    def loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return the training loss, a scalar."""
        return self.loss_figures(images, noise)["loss"]
