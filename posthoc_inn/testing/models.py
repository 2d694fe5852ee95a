"""Tiny image classifiers of every awkward kind, with fixed weights: for tests of whatever reaches into a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_inn.generators import lent_generators

CLASSES = 4
SIDE = 8


class PlainNet(nn.Module):
    """A chain: every layer is a true cut."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 8, 8) to logits (B, 4)."""
        logits: Tensor = self.head(self.features(x).relu().flatten(1))
        return logits


class Block(nn.Module):
    """A residual block that uses one ReLU twice, in place, as ResNets do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        out: Tensor = self.conv2(self.relu(self.bn1(self.conv1(x))))
        out += x
        activated: Tensor = self.relu(out)
        return activated


class SkipNet(nn.Module):
    """Residual blocks: what lies inside a block is no cut, a whole block is one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.block1 = Block(6)
        self.block2 = Block(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 8, 8) to logits (B, 4)."""
        logits: Tensor = self.head(self.block2(self.block1(self.stem(x))).mean((2, 3)))
        return logits


class Split(nn.Module):
    """Returns two tensors and an integer one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        """Return maps (B, 6, 4, 4), their means (B, 6) and which channel is largest (B,)."""
        maps = self.conv(x)
        pooled = maps.mean((2, 3))
        if self.kind == "tuple":
            return maps, pooled, pooled.argmax(1)
        if self.kind == "dataclass":
            return Result(maps, {"pooled": pooled})
        return {"maps": maps, "pooled": pooled, "largest": pooled.argmax(1)}


@dataclass
class Result:
    """What a layer may return besides tuples and dicts."""

    maps: Tensor
    rest: dict[str, Tensor] = field(default_factory=dict)


class StructuredNet(nn.Module):
    """A layer that returns several tensors (`kind`: "tuple", "dict", "dataclass"), and a model that does, too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.split = Split(kind)
        self.head = nn.Linear(96 + 6, CLASSES)
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        """Map images (B, 3, 8, 8) to logits (B, 4), alone or among other results."""
        found = self.split(x)
        if self.kind == "tuple":
            maps, pooled, _ = found
        elif self.kind == "dataclass":
            maps, pooled = found.maps, found.rest["pooled"]
        else:
            maps, pooled = found["maps"], found["pooled"]
        logits = self.head(torch.cat([maps.flatten(1), pooled], 1))
        return logits if self.kind == "tuple" else {"hidden": maps, "logits": logits}


class ReusedNet(nn.Module):
    """One linear layer and one activation, each called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3 * SIDE * SIDE, 6)
        self.shared = nn.Linear(6, 6)
        self.act = nn.Tanh()
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 8, 8) to logits (B, 4)."""
        h = self.stem(x.flatten(1))
        for _ in range(3):
            h = self.act(self.shared(h))
        logits: Tensor = self.head(h)
        return logits


class InplaceNet(nn.Module):
    """Writes in place to the output of its layer, and to its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 8, 8) to logits (B, 4)."""
        h = self.conv(x.sub_(0.5))
        h.mul_(2.0)
        h = self.act(h)
        logits: Tensor = self.head(h.flatten(1))
        return logits


class UnreachedNet(nn.Module):
    """Has a head that only training uses, weights used without a call, and an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.aux = nn.Linear(96, CLASSES)
        self.borrowed = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 8, 8) to logits (B, 4)."""
        h = self.conv(x).relu().flatten(1)
        logits = nn.functional.linear(h, self.borrowed.weight)
        return logits + self.aux(h) if self.training else logits


class TokenNet(nn.Module):
    """A vision transformer with a class token, of PyTorch's own layers with their fast path."""

    def __init__(self) -> None:
        super().__init__()
        self.patchify = nn.Conv2d(3, 8, 4, 4)
        self.class_token = nn.Parameter(torch.randn(1, 1, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 8, 8) to logits (B, 4), through tokens (B, 5, 8)."""
        patches = self.patchify(x).flatten(2).transpose(1, 2)
        tokens = self.encoder(torch.cat([self.class_token.expand(len(x), -1, -1), patches], 1))
        logits: Tensor = self.head(self.norm(tokens)[:, 0])
        return logits


class TwoInputNet(nn.Module):
    """Takes an image and a vector; the vector comes in late."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.head = nn.Linear(96 + 2, CLASSES)

    def forward(self, image: Tensor, extra: Tensor) -> Tensor:
        """Map images (B, 3, 8, 8) and vectors (B, 2) to logits (B, 4)."""
        logits: Tensor = self.head(torch.cat([self.conv(image).relu().flatten(1), extra], 1))
        return logits


class RaisingLayer(nn.Module):
    """Raises once it is switched on."""

    raises = False

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, or raise.

        Raises:
            ArithmeticError: `raises` is set.
        """
        if self.raises:
            raise ArithmeticError("raised inside the layer")
        return x * 1.5


class RaisingNet(PlainNet):
    """A plain chain with a layer that can be made to raise: set `model.fragile.raises`."""

    def __init__(self) -> None:
        super().__init__()
        self.fragile = RaisingLayer()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 8, 8) to logits (B, 4)."""
        return super().forward(self.fragile(x))


class TrainingNet(nn.Module):
    """Behaves differently in training: batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.bn = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 8, 8) to logits (B, 4)."""
        logits: Tensor = self.head(self.drop(self.bn(self.conv(x)).relu()).flatten(1))
        return logits


class HoarderNet(nn.Module):
    """Keeps things from each pass, even in eval mode: counts, caches, attributes, random numbers."""

    seen: Tensor
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.head = nn.Linear(96, CLASSES)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("last", torch.zeros(6))
        self.cache: dict[str, Tensor] = {}
        self.log: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 8, 8) to logits (B, 4)."""
        h = self.conv(x)
        self.seen += 1
        self.last = h.detach().mean((0, 2, 3))
        self.cache["weight"] = self.head.weight * 1.0
        self.log.append(len(x))
        self.fresh = h
        logits: Tensor = self.head((h + 1e-3 * torch.randn_like(h)).flatten(1))
        return logits


@dataclass(frozen=True)
class TinyModel:
    """A tiny model, a layer of it, and what is to be found there.

    Attributes:
        build: Builds the model; weights come from the global generator (use `tiny_model`).
        layer: The layer.
        z_shape: Shape of its output without the batch.
        is_cut: Whether the layer is a true cut.
        options: Further arguments of `LayerExtractor`.
        two_inputs: Whether the model takes (image, extra).

    >>> model, inputs = tiny_model("plain")
    >>> model(inputs).shape
    torch.Size([3, 4])
    """

    build: Callable[[], nn.Module]
    layer: str
    z_shape: tuple[int, ...]
    is_cut: bool
    options: dict[str, Any] = field(default_factory=dict)
    two_inputs: bool = False


TINY_MODELS: dict[str, TinyModel] = {
    "plain": TinyModel(PlainNet, "features.0", (6, 4, 4), True),
    "skip-inside": TinyModel(SkipNet, "block2.conv1", (6, 4, 4), False),
    "skip-whole": TinyModel(SkipNet, "block1", (6, 4, 4), True),
    "tuple": TinyModel(lambda: StructuredNet("tuple"), "split", (6, 4, 4), False, {"output": 0}),
    "dict": TinyModel(lambda: StructuredNet("dict"), "split", (6,), False, {"output": "pooled"}),
    "dataclass": TinyModel(lambda: StructuredNet("dataclass"), "split", (6,), False, {"output": "rest.pooled"}),
    "reused": TinyModel(ReusedNet, "shared", (6,), True, {"call": 1}),
    "reused-last": TinyModel(ReusedNet, "act", (6,), True, {"call": -1}),
    "inplace": TinyModel(InplaceNet, "conv", (6, 4, 4), True),
    "unreached": TinyModel(UnreachedNet, "conv", (6, 4, 4), True),
    "tokens": TinyModel(TokenNet, "encoder.layers.0", (5, 8), True),
    "tokens-class": TinyModel(TokenNet, "norm", (8,), True, {"tokens": "class"}),
    "tokens-patches": TinyModel(TokenNet, "encoder.layers.0", (4, 8), False, {"tokens": "patches"}),
    "tokens-inside": TinyModel(TokenNet, "encoder.layers.1.linear1", (5, 16), False),
    "two-inputs": TinyModel(TwoInputNet, "conv", (6, 4, 4), False, two_inputs=True),
    "raising": TinyModel(RaisingNet, "fragile", (3, 8, 8), True),
    "training": TinyModel(TrainingNet, "bn", (6, 4, 4), True),
    "hoarder": TinyModel(HoarderNet, "conv", (6, 4, 4), True),
    "output": TinyModel(PlainNet, "output", (CLASSES,), True),
}
"""Every kind of layer that whatever reaches into a model must cope with, by a readable name."""


def tiny_model(name: str, *, rows: int = 3, seed: int = 0) -> tuple[nn.Module, Any]:
    """Build a model of `TINY_MODELS` in train mode with inputs for it, without touching the global generator.

    Args:
        name: Key of `TINY_MODELS`.
        rows: B, the number of images.
        seed: Seed of weights and images.

    Returns:
        The model and its inputs: images (B, 3, 8, 8) in [0, 1], or a tuple of them and vectors (B, 2).
    """
    kind = TINY_MODELS[name]
    with lent_generators(seed):
        model = kind.build()
        images = torch.rand(rows, 3, SIDE, SIDE)
        return model, (images, torch.rand(rows, 2)) if kind.two_inputs else images
