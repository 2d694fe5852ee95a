"""An autoencoder: encode and decode, and a loss where posthoc_inn is to train it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posthoc_inn.autoencoders import TrainableAutoencoder
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.objectives import kl_to_standard_normal
from posthoc_inn.weights import seeded_init


class LinearAutoencoder(TrainableAutoencoder):
    """One matrix in and one out, with Gaussian noise on the latent: principal components, found by training."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.channels * config.size**2
        with seeded_init(config.seed):
            self.mean = nn.Linear(pixels, config.latent_dim)
            self.back = nn.Linear(config.latent_dim, pixels)
        self.log_std = nn.Parameter(torch.full((config.latent_dim,), -1.0))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(images.flatten(1) * 2 - 1)
        return mean, self.log_std.exp().expand_as(mean)

    def decode(self, z_bar: Tensor) -> Tensor:
        shape = (self.config.channels, self.config.size, self.config.size)
        images: Tensor = self.back(z_bar).unflatten(1, shape) * 0.5 + 0.5
        return images.clamp(0, 1)

    def loss_figures(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        # "loss" is what training lowers; "error", of images in [-1, 1], is what it shows.
        x = images.flatten(1) * 2 - 1
        mean, std = self.encode(images)
        error = (self.back(mean + std * noise) - x).square().mean()
        return {"loss": error / (2 * 0.05) + kl_to_standard_normal(mean, std).mean() / x.shape[1], "error": error}
