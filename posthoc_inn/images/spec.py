"""From canonical images, (B, C, H, W) in [0, 1], to what a network wants, differentiably, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_inn.config import ImageSpec
from posthoc_inn.errors import ConfigError, ShapeError

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "area")
LUMA = (0.299, 0.587, 0.114)
"""Rec. 601 weights of red, green and blue, as in Pillow's mode L."""


def check_canonical(images: Tensor, *, subject: str = "images") -> None:
    """Raise unless `images` looks like a canonical batch: float, (B, C, H, W), C 1 or 3.

    Raises:
        ShapeError: It does not; the message says what to do.
    """
    if not isinstance(images, Tensor):
        raise ShapeError(f"{subject} must be a tensor (B, C, H, W), got {type(images).__name__}.")
    shape = tuple(images.shape)
    if images.ndim != 4:
        hint = f" Add the batch: {subject}[None]." if images.ndim == 3 else ""
        raise ShapeError(f"{subject} must have the shape (B, C, H, W), got {shape}.{hint}")
    if not images.is_floating_point():
        raise ShapeError(
            f"{subject} must be floating-point in [0, 1], got {images.dtype}; pass {subject}.float() / 255."
        )
    if images.shape[1] not in (1, 3):
        last = shape[3] in (1, 3, 4)
        hint = f" Put channels first: {subject}.permute(0, 3, 1, 2)." if last else ""
        raise ShapeError(f"{subject} must have 1 or 3 channels, got {shape[1]} in {shape}.{hint}")
    if 0 in shape[2:]:
        raise ShapeError(f"{subject} must have at least one pixel, got {shape}.")


def resize(images: Tensor, size: int | Sequence[int], interpolation: str = "bilinear") -> Tensor:
    """Resize to exactly `size`, antialiased, the aspect ratio not kept.

    Bilinear and bicubic use Pillow's filters (antialiased on downsizing); bicubic overshoots and is clamped
    to [0, 1]. Differentiable with respect to `images`.

    Args:
        images: Canonical images (B, C, H, W).
        size: Height and width in pixels, or one number for a square.
        interpolation: "bilinear", "bicubic", "nearest" or "area".

    Returns:
        (B, C, height, width); `images` itself when they already have that size.

    Raises:
        ConfigError: An unknown interpolation, or a size that is no size.

    >>> resize(torch.zeros(2, 3, 8, 8), 4).shape
    torch.Size([2, 3, 4, 4])
    """
    target = (size, size) if isinstance(size, int) else tuple(size)
    if len(target) != 2 or any(not isinstance(s, int) or s < 1 for s in target):
        raise ConfigError(f"size must be one or two positive whole numbers (pixels), got {size!r}.")
    if interpolation not in INTERPOLATIONS:
        raise ConfigError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}.")
    if tuple(images.shape[-2:]) == target:
        return images
    # The antialiasing kernels know neither half nor bfloat16 on every device.
    work = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    if interpolation in ("bilinear", "bicubic"):
        out = F.interpolate(work, target, mode=interpolation, align_corners=False, antialias=True)
        out = out.clamp(0, 1) if interpolation == "bicubic" else out
    elif interpolation == "nearest":
        out = F.interpolate(work, target, mode="nearest-exact")
    else:
        out = F.interpolate(work, target, mode="area")
    return out.to(images.dtype)


def center_crop(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the central `size` (height, width) pixels out of images (B, C, H, W) that are at least as large."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    if size[0] > height or size[1] > width:
        raise ShapeError(f"Cannot crop {size[0]}x{size[1]} pixels out of {height}x{width}.")
    # Rounded as torchvision's CenterCrop does, so that a registered spec means the same pixels.
    top, left = round((height - size[0]) / 2.0), round((width - size[1]) / 2.0)
    return images[..., top : top + size[0], left : left + size[1]]


def match_channels(images: Tensor, channels: int) -> Tensor:
    """Repeat grey images to three channels, or turn colour into grey by luma.

    >>> match_channels(torch.ones(1, 1, 2, 2), 3).shape
    torch.Size([1, 3, 2, 2])
    """
    if channels not in (1, 3):
        raise ConfigError(f"channels must be 1 or 3, got {channels!r}.")
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    weights = images.new_tensor(LUMA).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


LONGEST = 4
"""Times as long as the crop's ratio of sides that a picture may be before its far ends are cut off unresized."""


def _without_far_ends(images: Tensor, cover: tuple[int, int]) -> Tensor:
    """Return the middle of pictures so long that they would be resized to far more pixels than the crop keeps.

    1 x 100,000 pixels would become gigabytes; what is cut off lies outside of any central crop.
    """
    height, width = images.shape[-2:]
    most_wide, most_high = LONGEST * cover[1] * height // cover[0] + 1, LONGEST * cover[0] * width // cover[1] + 1
    return center_crop(images, (min(height, most_high), min(width, most_wide)))


def _resize_cover(images: Tensor, cover: tuple[int, int], interpolation: str) -> Tensor:
    """Resize, aspect ratio kept, to the smallest size that covers `cover`, as torchvision's `Resize`."""
    images = _without_far_ends(images, cover)
    return resize(images, _covering(images, cover), interpolation)


def _covering(images: Tensor, cover: tuple[int, int]) -> tuple[int, int]:
    height, width = images.shape[-2:]
    if cover[0] * width >= cover[1] * height:
        return cover[0], max(cover[1], int(cover[0] * width / height))
    return max(cover[0], int(cover[1] * height / width)), cover[1]


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (images - mean) / std per channel; the same tensor when mean is 0 and std 1."""
    if all(m == 0 for m in mean) and all(s == 1 for s in std):
        return images
    return (images - images.new_tensor(mean).view(-1, 1, 1)) / images.new_tensor(std).view(-1, 1, 1)


def denormalize(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return x * std + mean per channel; the same tensor when mean is 0 and std 1."""
    if all(m == 0 for m in mean) and all(s == 1 for s in std):
        return x
    return x * x.new_tensor(std).view(-1, 1, 1) + x.new_tensor(mean).view(-1, 1, 1)


def apply_spec(images: Tensor, spec: ImageSpec) -> Tensor:
    """Turn canonical images into what a network with this spec eats; gradients reach the pixels.

    Resized with the aspect ratio kept so that a central crop of the share `spec.crop` has `spec.size` (as in
    torchvision's and timm's evaluation transforms), cropped, channels matched, normalised.

    Args:
        images: Canonical images (B, C, H, W).
        spec: What the network wants.

    Returns:
        (B, spec.channels, *spec.size); `images` itself when there is nothing to do.

    Raises:
        ShapeError: `images` is not a canonical batch.

    >>> spec = ImageSpec(size=(4, 4), mean=(0.5,), std=(0.5,))
    >>> apply_spec(torch.ones(2, 1, 8, 6), spec).shape, apply_spec(torch.ones(2, 1, 8, 6), spec).max().item()
    (torch.Size([2, 3, 4, 4]), 1.0)
    """
    check_canonical(images)
    cover = cover_of(spec)
    if cover is not None and spec.size is not None:
        images = center_crop(_resize_cover(images, cover, spec.interpolation), spec.size)
    elif spec.crop < 1:
        height, width = images.shape[-2:]
        images = center_crop(images, (max(1, round(height * spec.crop)), max(1, round(width * spec.crop))))
    return normalize(match_channels(images, spec.channels), spec.mean, spec.std)


def cover_of(spec: ImageSpec) -> tuple[int, int] | None:
    """Return the height and width that images are resized to cover before the central crop; None for no resizing.

    >>> cover_of(ImageSpec(size=(224, 224), crop=0.875))
    (256, 256)
    """
    if spec.size is None:
        return None
    # The small term keeps 224 / 0.7 and the like from falling one short by rounding.
    return math.floor(spec.size[0] / spec.crop + 1e-6), math.floor(spec.size[1] / spec.crop + 1e-6)


def framed(
    images: Tensor, spec: ImageSpec, shape: tuple[int, int], channels: int, *, interpolation: str = "bicubic"
) -> Tensor:
    """Return the part of canonical images that a network with `spec` looks at, at a size of one's own.

    `apply_spec` shows the network the same part at `spec.size`. The images are resized once, straight to what `shape`
    needs; that the resized ones have whole pixels moves a border by half a pixel of the result at the most.

    Args:
        images: Canonical images (B, C, H, W).
        spec: What the network wants.
        shape: Height and width of the result; where their ratio is not that of `spec.size`, the part is squeezed.
        channels: 1 or 3.
        interpolation: How they are resized; bicubic results are clamped to [0, 1].

    Returns:
        (B, channels, *shape); `images` itself when there is nothing to do.

    Raises:
        ShapeError: `images` is not a canonical batch.

    >>> framed(torch.rand(2, 1, 40, 100), ImageSpec(size=(64, 128)), (28, 56), 3).shape
    torch.Size([2, 3, 28, 56])
    """
    check_canonical(images)
    images = match_channels(images, channels) if channels < images.shape[1] else images
    cover = cover_of(spec)
    if cover is None or spec.size is None:
        height, width = images.shape[-2:]
        whole, part = (height, width), (max(1, round(height * spec.crop)), max(1, round(width * spec.crop)))
    else:
        images = _without_far_ends(images, cover)
        whole, part = _covering(images, cover), spec.size
    (high, top), (wide, left) = (_nearest(w, p, n) for w, p, n in zip(whole, part, shape, strict=True))
    resized = resize(images, (high, wide), interpolation)
    return match_channels(resized[..., top : top + shape[0], left : left + shape[1]], channels)


def _nearest(whole: int, part: int, count: int) -> tuple[int, int]:
    """Return how many pixels to resize to, and the first of `count` to keep, to show what a central crop shows.

    >>> _nearest(48, 32, 28), _nearest(85, 64, 64)
    ((42, 7), (85, 10))
    """
    first = round((whole - part) / 2.0)  # as in `center_crop`
    start, stop = first / whole, (first + part) / whole

    def off(way: tuple[int, int]) -> float:
        return max(abs(way[1] / way[0] - start), abs((way[1] + count) / way[0] - stop))

    near = int(count * whole / part)
    sizes = range(max(count, near - 1), max(count, near + 2) + 1)
    return min(((size, min(round(start * size), size - count)) for size in sizes), key=off)


def undo_spec_normalization(x: Tensor, spec: ImageSpec) -> Tensor:
    """Return x * std + mean: a network's input (B, C, H, W) back in canonical values, at its own size.

    >>> spec = ImageSpec(mean=(0.5,), std=(0.5,), channels=1)
    >>> undo_spec_normalization(torch.full((1, 1, 1, 1), -1.0), spec).item()
    0.0
    """
    return denormalize(x, spec.mean, spec.std)


def fit_canonical(
    images: Tensor, size: int | tuple[int, int], channels: int, *, interpolation: str = "bicubic"
) -> Tensor:
    """Bring canonical images to one size: resized, aspect ratio kept, until they cover it, and the middle kept.

    Args:
        images: Canonical images (B, C, H, W).
        size: Height and width in pixels, or one number for a square.
        channels: 1 or 3.
        interpolation: How they are resized; bicubic results are clamped to [0, 1].

    Returns:
        (B, channels, height, width); `images` itself when there is nothing to do.

    Raises:
        ShapeError: `images` is not a canonical batch.

    >>> fit_canonical(torch.rand(2, 1, 40, 60), 28, 3).shape
    torch.Size([2, 3, 28, 28])
    """
    check_canonical(images)
    target = (size, size) if isinstance(size, int) else tuple(size)
    if len(target) != 2 or any(not isinstance(side, int) or side < 1 for side in target):
        raise ConfigError(f"size must be a positive whole number of pixels, or height and width, got {size!r}.")
    images = match_channels(images, channels) if channels < images.shape[1] else images
    images = center_crop(_resize_cover(images, target, interpolation), target)
    return match_channels(images, channels)
