"""ResNets for CIFAR-10 as published (He et al. 2015, 32 px), and CIFAR-10 from folders or from torchvision's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from posthoc_inn import ImageSpec
from posthoc_inn.weights import load_weights

SPEC = ImageSpec(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SHIFT = 4
"""Pixels by which a training image is moved at most."""
BLOCKS = {20: 3, 32: 5, 44: 7, 56: 9, 110: 18}
"""Depth of the network -> blocks a stage."""


class Block(nn.Module):
    """Two convolutions beside a shortcut without parameters (option A of the paper)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.more = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return F.relu(out + shortcut)


class CifarResNet(nn.Module):
    """The network; `pool`, `linear` (logits) and `softmax` are modules, so that each can be explained."""

    def __init__(self, depth: int = 20) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        for k in range(1, 4):
            blocks = [
                Block(widths[k] if n else widths[k - 1], widths[k], 1 if n or k == 1 else 2)
                for n in range(BLOCKS[depth])
            ]
            setattr(self, f"layer{k}", nn.Sequential(*blocks))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(64, 10)
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.layer3(self.layer2(self.layer1(x))))
        return self.softmax(self.linear(x))


def trained(file: Path, depth: int = 20) -> CifarResNet:
    """Return the network with the weights of `file`, for images (B, 3, 32, 32) normalised by `SPEC`."""
    model = CifarResNet(depth)
    load_weights(model, file)
    return model.eval()


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return uint8 images (B, 3, 32, 32) in [0, 1], each moved by up to `SHIFT` pixels and mirrored at random."""
    padded = F.pad(images.float() / 255, (SHIFT,) * 4, mode="reflect")
    y, x, flip = (torch.randint(n, (len(images),), generator=generator) for n in (2 * SHIFT + 1, 2 * SHIFT + 1, 2))
    cut = torch.stack([image[:, a : a + 32, b : b + 32] for image, a, b in zip(padded, y, x, strict=True)])
    return torch.where(flip.view(-1, 1, 1, 1) == 1, cut.flip(3), cut)


def cifar10(directory: Path, *, train: bool, count: int) -> tuple[Tensor, list[int]]:
    """Return the first `count` images (N, 3, 32, 32), uint8, classes in turn, and their classes.

    Args:
        directory: Holds `train` and `test`, each with a folder of images a class; or torchvision's
            `cifar-10-batches-py`.
        train: Which part.
        count: Images.
    """
    part = directory / ("train" if train else "test")
    if not part.is_dir():
        from torchvision.datasets import CIFAR10

        data = CIFAR10(str(directory), train=train)
        return torch.from_numpy(data.data[:count]).permute(0, 3, 1, 2).contiguous(), data.targets[:count]
    each = -(-count // len(CLASSES))
    files: Sequence[Sequence[Path]] = [sorted((part / name).iterdir())[:each] for name in CLASSES]
    chosen = [(files[c][k], c) for k in range(each) for c in range(len(CLASSES)) if k < len(files[c])][:count]
    images = torch.empty(len(chosen), 3, 32, 32, dtype=torch.uint8)
    for row, (file, _) in zip(images, chosen, strict=True):
        with Image.open(file) as image:
            pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        row.copy_(pixels.view(32, 32, 3).permute(2, 0, 1))
    return images, [c for _, c in chosen]
