"""The generator of BigGAN (Brock et al. 2019), original and deep, as it is used: normalised by stored statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Architecture:
    """What tells one generator from another.

    Attributes:
        deep: Whether its blocks are bottlenecks of four convolutions, instead of two wide ones.
        widths: Channels of the first map, then of the map after each block.
        bottom: Side of the first map, in pixels.
        z_dim: Width of z.
        class_dim: Width of the embedding of a class.
        classes: How many there are.
        chunk: Width of the part of z that the first map and each block of an original one get; 0 where the first map
            gets all of it and the blocks none. Deep ones give all of z to everything.
        attentions: Blocks that an attention stands before, and its channels.
        eps: Added to the variances by which maps are divided.
    """

    deep: bool
    widths: tuple[int, ...]
    bottom: int
    z_dim: int
    class_dim: int
    classes: int
    chunk: int
    attentions: tuple[tuple[int, int], ...]
    eps: float

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self.widths) - 1

    @property
    def size(self) -> int:
        """Side of its pictures, in pixels: every block of an original one doubles it, every second of a deep one."""
        return int(self.bottom * 2 ** (self.blocks // 2 if self.deep else self.blocks))

    @property
    def condition_dim(self) -> int:
        """Width of what the blocks are conditioned on."""
        return self.class_dim + (self.z_dim if self.deep else self.chunk)


class ConditionalNorm(nn.Module):
    """Normalises by stored statistics, with gain and bias that are linear in the condition."""

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, condition_dim: int, eps: float) -> None:
        super().__init__()
        self.gain = nn.Linear(condition_dim, channels, bias=False)
        self.bias = nn.Linear(condition_dim, channels, bias=False)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return x (B, C, H, W) normalised; condition is (B, condition_dim)."""
        scale = (1 + self.gain(condition)) * (self.var + self.eps).rsqrt()
        shift = self.bias(condition) - self.mean * scale
        out: Tensor = x * scale[:, :, None, None] + shift[:, :, None, None]
        return out


class Norm(nn.Module):
    """Normalises by stored statistics, with gain and bias of its own."""

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, C, H, W) normalised."""
        scale = self.gain * (self.var + self.eps).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.mean * scale)[:, None, None]


class Attention(nn.Module):
    """Every place looks at the places of a map of half the side, and adds what it finds there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.phi = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.g = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.out = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, C, H, W) with what was looked at added."""
        query = self.theta(x).flatten(2).transpose(1, 2)
        key = functional.max_pool2d(self.phi(x), 2).flatten(2)
        value = functional.max_pool2d(self.g(x), 2).flatten(2)
        looked = value @ (query @ key).softmax(-1).transpose(1, 2)
        out: Tensor = x + self.gamma * self.out(looked.unflatten(2, x.shape[2:]))
        return out


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2)


class OriginalBlock(nn.Module):
    """Two convolutions beside a shortcut; doubles the side."""

    def __init__(self, narrow: int, wide: int, condition_dim: int, eps: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ConditionalNorm(n, condition_dim, eps) for n in (narrow, wide))
        self.convs = nn.ModuleList([nn.Conv2d(narrow, wide, 3, padding=1), nn.Conv2d(wide, wide, 3, padding=1)])
        self.shortcut = nn.Conv2d(narrow, wide, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return a map of twice the side."""
        h = self.convs[0](_double(self.norms[0](x, condition).relu()))
        h = self.convs[1](self.norms[1](h, condition).relu())
        # A 1 × 1 convolution and nearest neighbours commute; this way round takes a quarter of the time.
        out: Tensor = h + _double(self.shortcut(x))
        return out


class DeepBlock(nn.Module):
    """A bottleneck of four convolutions beside a shortcut without weights, which drops channels."""

    def __init__(self, wide: int, out: int, inner: int, condition_dim: int, eps: float, *, doubles: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ConditionalNorm(n, condition_dim, eps) for n in (wide, inner, inner, inner))
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(wide, inner, 1),
                nn.Conv2d(inner, inner, 3, padding=1),
                nn.Conv2d(inner, inner, 3, padding=1),
                nn.Conv2d(inner, out, 1),
            ]
        )
        self.out, self.doubles = out, doubles

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return a map of the same or twice the side."""
        h = x
        for index, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            h = norm(h, condition).relu()
            h = conv(_double(h) if index == 1 and self.doubles else h)
        kept = x[:, : self.out]
        return h + (_double(kept) if self.doubles else kept)


class BigGAN(nn.Module):
    """z and the embedding of a class to a picture.

    Args:
        architecture: Its shape.

    >>> shape = Architecture(False, (16, 8), 4, 6, 4, 10, 3, (), 1e-5)
    >>> BigGAN(shape)(torch.zeros(2, 6), torch.zeros(2, 4)).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.embedding = nn.Parameter(torch.zeros(a.classes, a.class_dim))
        self.first = nn.Linear(a.condition_dim if a.deep else (a.chunk or a.z_dim), a.widths[0] * a.bottom**2)
        pairs = list(zip(a.widths, a.widths[1:], strict=False))
        self.blocks = nn.ModuleList(
            DeepBlock(wide, out, wide // 4, a.condition_dim, a.eps, doubles=index % 2 == 1)
            if a.deep
            else OriginalBlock(wide, out, a.condition_dim, a.eps)
            for index, (wide, out) in enumerate(pairs)
        )
        self.attentions = nn.ModuleDict({str(index): Attention(channels) for index, channels in a.attentions})
        self.norm = Norm(a.widths[-1], a.eps)
        self.to_rgb = nn.Conv2d(a.widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor, embedded: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) in [-1, 1] for z (B, z_dim) and embedded classes (B, class_dim)."""
        a = self.architecture
        if a.deep:
            first = torch.cat([z, embedded], 1)
            conditions = [first] * a.blocks
        elif a.chunk:
            first, *parts = z.split(a.chunk, 1)
            conditions = [torch.cat([embedded, part], 1) for part in parts]
        else:
            first, conditions = z, [embedded] * a.blocks
        x = self.first(first).view(len(z), a.widths[0], a.bottom, a.bottom)
        for index, (block, condition) in enumerate(zip(self.blocks, conditions, strict=True)):
            if str(index) in self.attentions:
                x = self.attentions[str(index)](x)
            x = block(x, condition)
        if str(a.blocks) in self.attentions:
            x = self.attentions[str(a.blocks)](x)
        images: Tensor = self.to_rgb(self.norm(x).relu()).tanh()
        return images
