"""The objective that the framework's own autoencoders share: Gaussian E and D, output variance γ in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posthoc_inn.autoencoders.base import TrainableAutoencoder
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ShapeError
from posthoc_inn.objectives import kl_to_standard_normal

Metric = Callable[[Tensor, Tensor], Tensor]
"""Pictures, not clamped, and their images, both (B, C, H, W) in [0, 1], to their mean distance, a scalar."""


LEAST_DISTANCE = 1e-6
"""Perceptual distances below it are not worth more the smaller they get."""


class GaussianAutoencoder(TrainableAutoencoder):
    """What two networks need to be trained as a Gaussian E and D (MSC A.1): encode, `_decoded`, and this.

    Attributes:
        log_gamma: Logarithm of the output variance, a moving average over training.

    >>> GaussianAutoencoder.last_layer.__doc__.split(":")[0]
    'The layer whose output are the pictures'
    """

    log_gamma: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("log_gamma", torch.zeros(()))

    @property
    def last_layer(self) -> nn.Module:
        """The layer whose output are the pictures: a discriminator's weight is balanced at its weight."""
        raise NotImplementedError

    def _check(self, images: Tensor) -> None:
        expected = (self.config.channels, self.config.size, self.config.size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ShapeError(
                f"The autoencoder takes images (B, {', '.join(map(str, expected))}), got {tuple(images.shape)}."
            )

    def _decoded(self, z_bar: Tensor) -> Tensor:
        """Return images in units of [-1, 1], not clamped, so that gradients reach values outside."""
        raise NotImplementedError

    def decode(self, z_bar: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] for latents (B, D)."""
        return self.decode_unclamped(z_bar).clamp(0, 1)

    def decode_unclamped(self, z_bar: Tensor) -> Tensor:
        """Return the same before it is clamped to [0, 1], where values outside still have a gradient."""
        return self._decoded(z_bar) * 0.5 + 0.5

    @property
    def least_gamma(self) -> float:
        """Lower bound of γ: what the configuration says, and never zero."""
        return max(self.config.min_gamma, 1e-8)

    def loss_figures(self, images: Tensor, noise: Tensor, metric: Metric | None = None) -> dict[str, Tensor]:
        """Return "loss", "error" and "kl" for images (B, C, H, W) in [0, 1] and noise (B, D); scalars.

        The output variance γ of MSC A.1 is learned in closed form: for given reconstructions the likelihood is
        largest at γ = their mean squared error (Rybkin et al. 2021, arXiv:2006.13202), or at its lower bound. `loss`
        is the negative lower bound n/2 (error / γ + log 2πγ) + KL per image of n values, divided by n; `error` is the
        mean squared error of images in [-1, 1]; `kl` is in nats per image.

        With a `metric`, "distance" is what it says of pictures and images, and "pictures" are those pictures, not
        clamped. It is a second likelihood whose variance δ is in closed form too (MSC A.1: "an improved image metric"):
        n/2 · `perceptual_weight` · (distance / δ + log δ) is added, with δ = the distance. Whatever its unit, a
        distance smaller by a tenth then is worth as much as an error smaller by a tenth, and neither drowns the other
        or the KL.
        """
        mean, std = self.encode(images)
        decoded = self._decoded(mean + std * noise)
        error = F.mse_loss(decoded, images * 2 - 1)
        kl = kl_to_standard_normal(mean, std).mean()
        figures = {"error": error, "kl": kl}
        gamma = error.detach().clamp_min(self.least_gamma)
        loss = 0.5 * (error / gamma + torch.log(2 * math.pi * gamma)) + kl / images[0].numel()
        if metric is not None:
            pictures = decoded * 0.5 + 0.5
            distance = metric(pictures, images)
            delta = distance.detach().clamp_min(LEAST_DISTANCE)
            loss = loss + 0.5 * self.config.perceptual_weight * (distance / delta + torch.log(delta))
            figures |= {"distance": distance, "pictures": pictures}
        return {"loss": loss, **figures}

    def loss(self, images: Tensor, noise: Tensor, metric: Metric | None = None) -> Tensor:
        """Return the training loss of `loss_figures`, and keep γ up to date."""
        return self.remembered(self.loss_figures(images, noise, metric))["loss"]

    @torch.no_grad()
    def remembered(self, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep γ up to date with the figures of a training step, and return them."""
        gamma = figures["error"].detach().clamp_min(self.least_gamma)
        self.log_gamma.lerp_(gamma.log().to(self.log_gamma), 0.01)
        return figures
