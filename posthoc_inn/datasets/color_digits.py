"""Real handwritten digits in random colours: a small twin of the papers' ColorMNIST (IIN section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from posthoc_inn.errors import ConfigError, DataError, Problems, ShapeError

SPLIT_SEED = 20200827
"""The split between train and held-out is the same for everybody, whatever seed the colours have."""

HELD_OUT = 360


def blend(gray: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """Paint grey images in colour: foreground where they are 1, background where they are 0.

    Args:
        gray: (B, H, W) in [0, 1].
        foreground: (B, 3) in [0, 1].
        background: (B, 3) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    return torch.lerp(background[:, :, None, None], foreground[:, :, None, None], gray[:, None])


def colorize(gray: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Give each grey image an independent, uniformly random foreground and background colour.

    Args:
        gray: Float (B, H, W) in [0, 1].
        generator: Source of the colours; on the device of `gray` or on the CPU.

    Returns:
        Images (B, 3, H, W), foreground (B, 3) and background (B, 3), all in [0, 1].

    Raises:
        ShapeError: `gray` is not a float tensor (B, H, W).

    >>> images, foreground, background = colorize(torch.zeros(2, 4, 4), torch.Generator().manual_seed(0))
    >>> images.shape, torch.equal(images[:, :, 0, 0], background)
    (torch.Size([2, 3, 4, 4]), True)
    """
    if gray.ndim != 3 or not gray.is_floating_point():
        raise ShapeError(f"gray must be floating-point (B, H, W) in [0, 1], got {gray.dtype} {tuple(gray.shape)}.")
    colors = torch.rand(len(gray), 6, generator=generator, device=generator.device).to(gray)
    return blend(gray, colors[:, :3], colors[:, 3:]), colors[:, :3], colors[:, 3:]


class ColorizedDigits(Dataset[tuple[Tensor, int]]):
    """Grey digits in random colours, painted when asked for; item: (image (3, H, W) in [0, 1], digit).

    Item `i` is digit `i % n` in its colours of draw `i // n`, n being the number of grey images. The colours
    depend on (seed, stream, i) alone: not on the order of access, nor on `draws`.

    Attributes:
        gray: The grey images, uint8 (n, H, W).
        digits: The label of each item, int64 (draws * n,).
        foreground: The stroke's colour, float (draws * n, 3) in [0, 1].
        background: The ground's colour, float (draws * n, 3) in [0, 1].

    >>> data = ColorizedDigits(torch.zeros(5, 8, 8, dtype=torch.uint8), torch.arange(5), seed=1, draws=2)
    >>> len(data), data[7][1], data[7][0].shape
    (10, 2, torch.Size([3, 8, 8]))
    >>> torch.equal(data[7][0][:, 0, 0], data.background[7])
    True
    """

    classes: tuple[str, ...] = tuple("0123456789")
    attribute_names: tuple[str, ...] = ("digit", "foreground", "background")

    def __init__(self, gray: Tensor, digits: Tensor, *, seed: int = 0, draws: int = 1, stream: int = 0) -> None:
        """Store the grey images and draw the table of colours.

        Args:
            gray: uint8 (n, H, W).
            digits: Integer labels (n,).
            seed: Seed of the colours, not negative.
            draws: How many times each grey image appears, each time in other colours.
            stream: Separates data sets of the same seed (train 0, held-out 1).

        Raises:
            ShapeError: `gray` or `digits` has another dtype or shape.
            ConfigError: `seed`, `draws` or `stream` is out of range.
        """
        if gray.ndim != 3 or gray.dtype != torch.uint8:
            raise ShapeError(f"gray must be uint8 (n, H, W), got {gray.dtype} {tuple(gray.shape)}.")
        if digits.shape != gray.shape[:1] or digits.is_floating_point() or digits.is_complex():
            raise ShapeError(f"digits must be whole numbers ({len(gray)},), got {digits.dtype} {tuple(digits.shape)}.")
        problems = Problems(type(self).__name__)
        for name, value, low in (("seed", seed, 0), ("draws", draws, 1), ("stream", stream, 0)):
            good = isinstance(value, int) and not isinstance(value, bool) and value >= low
            problems.check(good, f"{name} must be a whole number of at least {low}, got {value!r}")
        problems.raise_if_any()
        self.gray = gray
        self.seed, self.draws = seed, draws
        # One sequential stream, so that more draws only append: NumPy's, which is the same on every device.
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream])))
        colors = torch.from_numpy(rng.random((draws * len(gray), 6), dtype=np.float32))
        self.digits = digits.long().repeat(draws)
        self.foreground, self.background = colors[:, :3], colors[:, 3:]

    def __len__(self) -> int:
        return len(self.digits)

    def images(self, index: Tensor) -> Tensor:
        """Return the images (B, 3, H, W) in [0, 1] of the items `index` (B,)."""
        gray = self.gray[index % len(self.gray)].float().div_(255)
        return blend(gray, self.foreground[index], self.background[index])

    def attributes(self, index: int) -> dict[str, Tensor]:
        """Return what item `index` is made of: its digit (), foreground (3,) and background (3,)."""
        i = self._position(index)
        return {"digit": self.digits[i], "foreground": self.foreground[i], "background": self.background[i]}

    def attribute_table(self) -> dict[str, Tensor]:
        """Return what all items are made of: digit (N,), foreground (N, 3) and background (N, 3)."""
        return {"digit": self.digits, "foreground": self.foreground, "background": self.background}

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return all images (N, 3, H, W) and all digits (N,), for fast bulk use.

        Args:
            dtype: torch.uint8 (0 to 255, rounded) or a floating-point type ([0, 1]).

        Raises:
            ConfigError: Another dtype.
        """
        if dtype != torch.uint8 and not dtype.is_floating_point:
            raise ConfigError(f"dtype must be torch.uint8 or a floating-point type, got {dtype}.")
        out = torch.empty(len(self), 3, *self.gray.shape[1:], dtype=dtype)
        for start in range(0, len(self), 4096):
            images = self.images(torch.arange(start, min(start + 4096, len(self))))
            out[start : start + 4096] = images.mul_(255).round_() if dtype == torch.uint8 else images
        return out, self.digits

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        i = self._position(index)
        return self.images(torch.tensor([i]))[0], int(self.digits[i])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return the items of a whole batch at once; a DataLoader asks for batches this way."""
        index = torch.tensor([self._position(i) for i in indices])
        return list(zip(self.images(index), self.digits[index].tolist(), strict=True)) if len(index) else []

    def _position(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"There is no item {index}: the data set has {len(self)} items.")
        return int(index) % len(self)


@lru_cache(maxsize=1)
def _digits_8x8() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits, (1797, 8, 8) with values 0 to 16, and their labels (1797,)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.float32), bunch.target.astype(np.int64)


def upscale_digits(images: Tensor) -> Tensor:
    """Turn 8x8 ink counts into smooth strokes, three times as large, on an empty margin of two pixels.

    Args:
        images: Float (n, 8, 8), values 0 to 16.

    Returns:
        uint8 (n, 28, 28).
    """
    # A ring of empty pixels lets strokes that touch the border end softly instead of being cut off.
    ringed = F.pad(images / 16, (1, 1, 1, 1))[:, None]
    large = F.interpolate(ringed, (30, 30), mode="bicubic", align_corners=False)[:, 0, 1:-1, 1:-1]
    # Stretched, since a stroke narrower than a source pixel never reaches the full count.
    return ((large - 0.1) / 0.8).clamp(0, 1).mul(255).round().to(torch.uint8)


def _stratified_held_out(labels: np.ndarray, count: int) -> np.ndarray:
    """Return a boolean mask with `count` held-out rows, each class by its share (largest remainders)."""
    # RandomState's stream is frozen by NumPy's policy: the split never changes with a NumPy release.
    rng = np.random.RandomState(SPLIT_SEED)
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * count / len(labels)
    take = np.floor(exact).astype(int)
    take[np.argsort(-(exact - take), kind="stable")[: count - take.sum()]] += 1
    mask = np.zeros(len(labels), dtype=bool)
    for label, n in zip(classes, take, strict=True):
        mask[rng.permutation(np.flatnonzero(labels == label))[:n]] = True
    return mask


@lru_cache(maxsize=2)
def _gray_digits(train: bool) -> tuple[Tensor, Tensor]:
    images, labels = _digits_8x8()
    mask = _stratified_held_out(labels, HELD_OUT)
    rows = ~mask if train else mask
    return upscale_digits(torch.from_numpy(images[rows])), torch.from_numpy(labels[rows])


class ColorDigits(ColorizedDigits):
    """The embedded data set: 1,797 real handwritten digits at 28x28 pixels in random, independent colours.

    1,437 for training and 360 held out, stratified; the split is fixed, the seed only draws colours.
    Source: UCI optical recognition of handwritten digits, as shipped by scikit-learn.

    >>> train, held_out = ColorDigits(draws=2), ColorDigits(train=False)
    >>> len(train), len(held_out), train[0][0].shape
    (2874, 360, torch.Size([3, 28, 28]))
    """

    def __init__(self, train: bool = True, *, seed: int = 0, draws: int = 1) -> None:
        """Load scikit-learn's digits and draw the colours.

        Args:
            train: The 1,437 digits for training, or else the 360 held out.
            seed: Seed of the colours.
            draws: How many times each digit appears, each time in other colours.

        Raises:
            DataError: scikit-learn's files are not as expected.
            ConfigError: `seed` or `draws` is out of range.
        """
        gray, digits = _gray_digits(bool(train))
        if len(gray) != (1437 if train else HELD_OUT):
            raise DataError(f"scikit-learn's digits should give {1437 if train else HELD_OUT}, got {len(gray)}.")
        self.train = bool(train)
        super().__init__(gray, digits, seed=seed, draws=draws, stream=0 if train else 1)
