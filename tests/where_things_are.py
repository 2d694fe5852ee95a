"""A model that measures where a blob is and how wide, and an autoencoder whose latents are just that: for geometry."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posthoc_inn.autoencoders import Autoencoder
from posthoc_inn.config import AutoencoderConfig

GREY = 0.2


def blobs(places: Tensor, shape: tuple[int, int], channels: int = 3) -> Tensor:
    """Draw round or oval blobs on grey, (B, channels, *shape), for column, row and their deviations, (B, 4), pixels."""
    y, x = (torch.arange(n, dtype=places.dtype, device=places.device) + 0.5 for n in shape)
    column, row, wide, high = places.unbind(1)
    across = torch.exp(-((x[None] - column[:, None]) ** 2) / (2 * wide[:, None] ** 2))
    down = torch.exp(-((y[None] - row[:, None]) ** 2) / (2 * high[:, None] ** 2))
    return (GREY + 0.75 * down[:, :, None] * across[:, None, :])[:, None].expand(-1, channels, -1, -1).contiguous()


def places_of(images: Tensor) -> Tensor:
    """Measure column, row and their deviations of the bright blob, (B, 4), in pixels of the images."""
    # Ringing and rounding of the ground would weigh a lot, far away from the blob.
    weight = (images.double().mean(1) - GREY - 0.05).clamp_min(0)
    weight = weight / weight.sum((1, 2), keepdim=True).clamp_min(1e-9)
    y, x = (torch.arange(n, dtype=weight.dtype, device=images.device) + 0.5 for n in images.shape[-2:])
    column, row = (weight.sum(1) * x).sum(1), (weight.sum(2) * y).sum(1)
    wide = ((weight.sum(1) * (x[None] - column[:, None]) ** 2).sum(1)).sqrt()
    high = ((weight.sum(2) * (y[None] - row[:, None]) ** 2).sum(1)).sqrt()
    return torch.stack([column, row, wide, high], 1).to(images.dtype)


class Where(nn.Module):
    """Says where the blob is, in pixels of its own input; `seen` has the sizes at which it got images."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.places(places_of(images))
        return found


class Drawing(Autoencoder):
    """Latents are the blob's places in its square, which it draws anew."""

    def __init__(self, size: int = 48) -> None:
        super().__init__()
        self.config = AutoencoderConfig(kind="given", size=size, channels=3, latent_dim=4)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean = places_of(images) / self.config.size
        return mean, torch.full_like(mean, 1e-3)

    def decode(self, z_bar: Tensor) -> Tensor:
        size = self.config.size
        # What is measured above the ground's margin is a little narrower than what was drawn.
        narrower = z_bar.new_tensor([1, 1, 1 / 0.822, 1 / 0.822])
        return blobs((z_bar * narrower * size).clamp_min(0.3), (size, size)).clamp(0, 1)


def where() -> nn.Module:
    return Where()


def drawing() -> nn.Module:
    return Drawing()
