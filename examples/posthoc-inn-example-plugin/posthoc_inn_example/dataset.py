"""A data set: pairs of a canonical image, float (C, H, W) in [0, 1], and a label."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Stripes(Dataset[tuple[Tensor, int]]):
    """Coloured stripes; the same `seed` gives the same pictures, in whatever order they are asked for."""

    attribute_names = ("orientation", "color")

    def __init__(self, count: int, *, train: bool, seed: int, size: int = 28) -> None:
        # The held-out part has a stream of its own, so that no picture is in both.
        generator = torch.Generator().manual_seed(2 * seed + (0 if train else 1))
        self.labels = torch.randint(4, (count,), generator=generator)
        self.colors = torch.rand(count, 3, generator=generator)
        self.phases = torch.rand(count, generator=generator) * 2 * math.pi
        self.size = size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        label = int(self.labels[index])
        angle = torch.tensor(label * math.pi / 4)
        y, x = torch.meshgrid(torch.arange(self.size), torch.arange(self.size), indexing="ij")
        wave = torch.sin((x * torch.sin(angle) + y * torch.cos(angle)) * 0.9 + self.phases[index])
        return (0.5 + 0.5 * wave) * self.colors[index][:, None, None], label

    def attributes(self, index: int) -> dict[str, Tensor]:
        return {"orientation": self.labels[index], "color": self.colors[index]}
