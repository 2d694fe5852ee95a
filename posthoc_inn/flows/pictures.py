"""What z shows of its picture: for an early layer nearly all of it, and the encoder says what that is in the code."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posthoc_inn.config import ConditionerConfig
from posthoc_inn.errors import ConfigError
from posthoc_inn.flows.subnet import Conv2d, make_activation

WIDEST = 4
"""Maps of fewer places have at most this many times the channels of those at the picture's own."""
MOST_FEATURES = 1024
"""Values around a place that the linear part looks at, at the most: its neighbours are left out, or all of it."""
RIDGE = 1e-5
"""Of the linear part, a row: values of z have a variance of about one."""
GAIN = math.sqrt(2)
FIRST_GAIN = 0.5
"""Of what is added at each place, at the start."""


class Encoder(Protocol):
    """What says of pictures what their latents are."""

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of z_bar, each (B, D), for images (B, C, S, S) in [0, 1]."""


class PictureNet(nn.Module):
    """The picture that z shows: standardised z with places, (B, *z_shape), to pictures (B, C, S, S), not clamped.

    A linear look at the neighbourhood of each place, which `fit_linear` sets in closed form and nothing trains, and
    what a residual network of convolutions adds, which starts at zero. Both double the places as often as the picture
    has room for it. What is left of its sides is padded or cropped where that is an edge, as convolutions without
    padding leave it, and resized otherwise. z of more places than the picture is averaged first.

    Args:
        config: Shape of z, and of the pictures.

    Raises:
        ConfigError: The configuration has no pictures.

    >>> net = PictureNet(ConditionerConfig((16, 13, 13), picture_shape=(3, 28, 28), picture_width=8))
    >>> net(torch.randn(2, 16, 13, 13)).shape
    torch.Size([2, 3, 28, 28])
    """

    def __init__(self, config: ConditionerConfig) -> None:
        super().__init__()
        if not config.picture_shape or config.grid is None:
            raise ConfigError("There is no picture to look for in z: give the conditioner a picture_shape.")
        self.linear: Conv2d | None = None
        self.grid, (channels, *self.size) = config.grid, config.picture_shape
        generator = torch.Generator().manual_seed(config.seed)
        # Beyond the picture's own resolution there is nothing to find for it.
        start = [min(n, s) for n, s in zip(self.grid, self.size, strict=True)]
        self.start = start[0], start[1]
        doublings = max(0, min(math.floor(math.log2(s / n)) for n, s in zip(start, self.size, strict=True)))
        self.factor = 1 << doublings
        widths = [config.picture_width * min(2**k, WIDEST) for k in range(doublings, -1, -1)]
        inputs = config.z_shape[0] if len(config.z_shape) == 3 else config.z_shape[1]
        near = 3 if 9 * inputs <= MOST_FEATURES else 1
        if inputs <= MOST_FEATURES:
            self.linear = Conv2d(inputs, channels * self.factor**2, size=near, generator=generator, gain=0.0)
        self.input = Conv2d(inputs, widths[0], generator=generator)
        self.grow = nn.ModuleList(
            Conv2d(before, 4 * after, generator=generator, gain=GAIN) for before, after in itertools.pairwise(widths)
        )
        self.near = Conv2d(widths[-1], widths[-1], generator=generator, gain=FIRST_GAIN)
        self.output = Conv2d(widths[-1], channels, generator=generator, gain=0.0)
        self.activation = make_activation(config.activation)
        edges = [s - n * self.factor for n, s in zip(start, self.size, strict=True)]
        self.edges = edges if all(abs(e) <= self.factor + 1 for e in edges) else None
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor) -> Tensor:
        """Return the pictures, (B, C, S, S), around [0, 1]."""
        z = self._lying(z)
        h = self.input(z)
        for layer in self.grow:
            h = F.pixel_shuffle(layer(self.activation(h)), 2)
        h = self._sized(h)
        h = h + self.near(self.activation(h))
        out: Tensor = self.output(self.activation(h))
        if self.linear is None:
            return out + 0.5
        return out + self._sized(F.pixel_shuffle(self.linear(z), self.factor))

    def learn(self, is_learning: bool) -> None:
        """Let gradients reach all that is trained, or nothing."""
        self.requires_grad_(is_learning)
        if self.linear is not None:
            # Steps as long as the rest needs would undo in the first of them what was found in closed form.
            self.linear.requires_grad_(False)

    def _lying(self, z: Tensor) -> Tensor:
        """Return z as maps of no more places than the picture has pixels."""
        height, width = self.grid
        if z.ndim == 3:  # tokens; a class token comes first
            z = z[:, z.shape[1] - height * width :].transpose(1, 2).unflatten(2, (height, width))
        if self.start != self.grid:
            z = F.adaptive_avg_pool2d(z, self.start)
        return z.contiguous(memory_format=torch.channels_last)

    def _padding(self, sign: int) -> list[int]:
        (top, bottom), (left, right) = ((e // 2, e - e // 2) for e in self.edges or (0, 0))
        return [sign * n for n in (left, right, top, bottom)]

    def _sized(self, h: Tensor) -> Tensor:
        """Bring a map to the picture's size."""
        if self.edges is None:
            return F.interpolate(h, tuple(self.size), mode="bilinear", align_corners=False)
        return F.pad(h, self._padding(1)) if any(self.edges) else h

    @torch.no_grad()
    def fit_linear(self, rows: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set the linear part by ridge regression of the pixels at each place on the values of z around it.

        There is none where those are too many.

        Args:
            rows: Standardised z (B, *z_shape) and their pictures (B, C, S, S) in [0, 1]; a few hundred will do.
        """
        if self.linear is None:
            return
        weight, near = self.linear.weight, self.linear.kernel_size[0]
        count = weight[0].numel() + 1
        grown = [n * self.factor for n in self.start]
        square = torch.zeros(count, count, dtype=torch.float64)
        product = torch.zeros(count, len(weight), dtype=torch.float64)
        for z, pictures in rows:
            x = F.unfold(self._lying(z), near, padding=near // 2).transpose(1, 2).flatten(0, 1)
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
            if self.edges is None:
                wanted = F.interpolate(pictures, grown, mode="bilinear", align_corners=False)
            else:
                wanted = F.pad(pictures, self._padding(-1))
            y = F.pixel_unshuffle(wanted, self.factor).flatten(2).transpose(1, 2).flatten(0, 1).to(x)
            square += (x.T @ x).double().cpu()
            product += (x.T @ y).double().cpu()
        square.diagonal()[:-1].add_(RIDGE * square[-1, -1])
        found = torch.linalg.solve(square, product).T.to(weight)
        weight.copy_(found[:, :-1].reshape(weight.shape))
        if self.linear.bias is not None:
            self.linear.bias.copy_(found[:, -1])
