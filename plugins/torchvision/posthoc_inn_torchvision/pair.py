"""The autoencoder of MSC tab. S7 for photographs of 128 px: a ResNet-101 encoder, a decoder of BigGAN's shape."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from posthoc_inn.autoencoders import GaussianAutoencoder
from posthoc_inn.autoencoders.fused import MAX_LOG_VAR, MIN_LOG_VAR
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ConfigError
from posthoc_inn.weights import seeded_init

SIZE = 128
"""Side of its images, in pixels."""
FULL = 96
"""Channels of the last map in the papers; the encoder's bottlenecks are scaled likewise."""
TIMES = (16, 16, 8, 4, 2, 1)
"""Channels of the decoder's maps, from 4 × 4 to 128 × 128, in units of the width."""
SOFT_CLASSES, CODE = 1000, 128
"""Of the small network that stands in for BigGAN's classes: its softmax, and the embedding h."""
SLOPE = 0.2
"""Of its leaky ReLUs, below zero; the table does not say, tab. S6 has this."""


class _Norm(nn.Module):
    """Batch norm whose gain and shift are linear in (z_bar, h)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain, self.shift = (nn.Linear(condition, channels, bias=False) for _ in range(2))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, shift = (part(condition)[:, :, None, None] for part in (self.gain, self.shift))
        out: Tensor = self.norm(x) * (1 + gain) + shift
        return out


class _Block(nn.Module):
    """ResBlock(z_bar, h) up: two convolutions beside a shortcut, twice the side."""

    def __init__(self, before: int, after: int, condition: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_Norm(width, condition) for width in (before, after))
        self.convs = nn.ModuleList(nn.Conv2d(width, after, 3, padding=1) for width in (before, after))
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        out = F.interpolate(self.norms[0](x, condition).relu(), scale_factor=2.0)
        out = self.convs[1](self.norms[1](self.convs[0](out), condition).relu())
        # A 1 × 1 convolution and nearest neighbours commute; this way round takes a quarter of the time.
        whole: Tensor = out + F.interpolate(self.shortcut(x), scale_factor=2.0)
        return whole


class _NonLocal(nn.Module):
    """Every place looks at the places of a map of half the side, and adds what it finds (Zhang et al. 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow, middle = max(1, channels // 8), max(1, channels // 2)
        self.query, self.key = (nn.Conv2d(channels, narrow, 1, bias=False) for _ in range(2))
        self.value, self.out = nn.Conv2d(channels, middle, 1, bias=False), nn.Conv2d(middle, channels, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2).transpose(1, 2)
        key, value = (F.max_pool2d(part(x), 2).flatten(2).transpose(1, 2) for part in (self.key, self.value))
        found = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        out: Tensor = x + self.gain * self.out(found.transpose(1, 2).unflatten(2, x.shape[2:]))
        return out


class _Decoder(nn.Module):
    """z_bar (B, D) to pictures (B, C, 128, 128), before the tanh."""

    def __init__(self, dim: int, channels: int, width: int) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for before in (dim, 256, 256):
            steps += [nn.Linear(before, 256), nn.LeakyReLU(SLOPE)]
        self.classes = nn.Sequential(*steps, nn.Linear(256, SOFT_CLASSES), nn.Softmax(dim=1))
        self.embedding = nn.Linear(SOFT_CLASSES, CODE, bias=False)
        widths = [times * width for times in TIMES]
        self.first = nn.Linear(dim, widths[0] * 16)
        self.blocks = nn.ModuleList(_Block(a, b, dim + CODE) for a, b in itertools.pairwise(widths))
        self.attention = _NonLocal(widths[-2])
        self.norm = nn.BatchNorm2d(widths[-1])
        self.to_rgb = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, z_bar: Tensor) -> Tensor:
        condition = torch.cat([z_bar, self.embedding(self.classes(z_bar)).to(z_bar.dtype)], dim=1)
        x = self.first(z_bar).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        for number, block in enumerate(self.blocks):
            if number == len(self.blocks) - 1:
                x = self.attention(x)
            x = block(x, condition)
        pictures: Tensor = self.to_rgb(self.norm(x).relu())
        return pictures


class PhotoAutoencoder(GaussianAutoencoder):
    """Encoder and decoder of MSC tab. S7 (tabs. S8 and S9 in it), Gaussian, for 128 px; made for GPUs.

    The table prints 64 × 64 for the last block, where BigGAN, which it is taken from, has 128 × 128; so it is here.

    Args:
        config: `size` 128; `latent_dim` is 128 and `width` 96 in the papers, less makes bottlenecks narrower too.

    Raises:
        ConfigError: It is for another size, or for a map.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        if config.size != SIZE or config.latent != "vector":
            raise ConfigError(
                f"The autoencoder of MSC tab. S7 takes images of {SIZE} pixels and has a vector as its latent, got "
                f"{config.size} pixels and latent={config.latent!r}."
            )
        with seeded_init(config.seed):
            inner = max(1, 64 * config.width // FULL)
            self.encoder = ResNet(Bottleneck, [3, 4, 23, 3], num_classes=2 * config.latent_dim, width_per_group=inner)
            if config.channels != 3:
                self.encoder.conv1 = nn.Conv2d(config.channels, 64, 7, 2, 3, bias=False)
            self.decoder = _Decoder(config.latent_dim, config.channels, config.width)
        self.to(memory_format=torch.channels_last)

    @property
    def last_layer(self) -> nn.Module:
        """The layer whose output are the pictures, but for the tanh."""
        return self.decoder.to_rgb

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of z_bar, each (B, D), for images (B, C, 128, 128) in [0, 1].

        Raises:
            ShapeError: The images do not have the configured size and channels.
        """
        self._check(images)
        out = self.encoder((images * 2 - 1).contiguous(memory_format=torch.channels_last)).to(images.dtype)
        mean, log_var = out.chunk(2, dim=1)
        return mean, (0.5 * log_var.clamp(MIN_LOG_VAR, MAX_LOG_VAR)).exp()

    def _decoded(self, z_bar: Tensor) -> Tensor:
        pictures: Tensor = self.decoder(z_bar).to(z_bar.dtype).tanh()
        return pictures
