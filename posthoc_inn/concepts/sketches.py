"""Two sketches define a concept: images painted in the style of either differ in it (IIN 3.2, fig. 3)."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from posthoc_inn.concepts.model import RANDOM, RESIDUAL
from posthoc_inn.concepts.style_features import MIN_SIDE
from posthoc_inn.concepts.stylize import Progress, Stylizer
from posthoc_inn.errors import ConfigError, DataError, PosthocInnWarning, Problems, ShapeError, is_count
from posthoc_inn.files import writing
from posthoc_inn.images import fit_canonical, load_image, match_channels
from posthoc_inn.images.convert import read_sample
from posthoc_inn.images.image_files import PathLike
from posthoc_inn.images.randomness import PrivateRandomness
from posthoc_inn.images.spec import check_canonical

GREY = 0.02
"""Difference between the channels of a pixel up to which a sketch counts as grey."""


class SketchSource:
    """Pairs that differ in a concept which two sketches show, such as round and angular strokes (IIN 3.2).

    A random part of the data's images x is painted in the style of either sketch: x^a and x^b. The pairs (x, x^a),
    (x, x^b) and (x^a, x^b) show the same thing and differ in the concept: they share the residual, and not the
    concept. With `sharing`, every second pair is one of two different images painted after the same sketch, (x^a, y^a)
    or (x^b, y^b), which share the concept and nothing else. Those are no part of the paper. They are there by default
    because (1) pairs that only differ say where the concept must not be found, in the residual, while whatever else is
    in the concept's own factor costs nothing; and (2) the size of a factor is estimated from pairs that share it (IIN
    eq. 11). Switch them off where the painted images have more in common than the concept.

    Images are painted once, when the first of `extra` is read or `prepare` is called, and kept as 8-bit pixels:
    2 · images · C · H · W bytes, and four times that for a sketch's images while they are painted.

    Args:
        data: Map-style data set of canonical images (C, H, W) in [0, 1] (or 8-bit ones), alone or with labels.
        sketch_a: A sketch, canonical (C, h, w), or the path of an image.
        sketch_b: The other one.
        name: What the concept is called.
        stylize: Paints images after a sketch: `posthoc_inn.concepts.stylize.StyleTransfer`, or any `Stylizer`.
        images: How many of the data's images are painted; all of them where there are fewer.
        size: Height and width of the painted images, in pixels; None for that of the data.
        keep_color: Whether only brightness is painted and each image keeps its colours (Gatys et al., "Preserving
            color in neural artistic style transfer", 2016); None for where both sketches are grey, since otherwise the
            images would lose their colours as well, and every concept be one of colour.
        sharing: Whether every second pair shares the concept and nothing else.
        cache: Folder that keeps the painted images, one safetensors file a sketch, for the next run; None for none.
        progress: Told how many of how many steps are done while images are painted.
        seed: Seed of the choice of images.

    Attributes:
        names: The name, alone.
        index: Indices (n,) of the painted images in the data set, sorted. Of image ``index[k]``, with N images in the
            data set, x^a has the index N + k and x^b the index N + n + k.
        extra: The 2n painted images.
        extra_of: Index in the data of the image that each of them was painted from, (2n,): those of held-out images
            are left out of training.

    Raises:
        ConfigError: An option is out of range, or the sketches are equal.
        DataError: A sketch cannot be read, the data hold fewer than 2 images, or they cannot be used.
        ShapeError: A sketch is no canonical image, or images or sketches are too small.

    >>> def darken(images, sketch, *, progress=None):
    ...     return images * sketch.mean()
    >>> data = torch.rand(5, 1, 16, 16)
    >>> source = SketchSource(
    ...     data, torch.zeros(1, 16, 16), torch.ones(1, 16, 16), name="light", stylize=darken, sharing=False
    ... )
    >>> a, b, shared = source.pairs(4, seed=0)
    >>> shared.tolist()[0], len(source.extra), source.extra[0].max().item()
    ([True, False], 10, 0.0)
    """

    def __init__(
        self,
        data: Any,
        sketch_a: Tensor | PathLike,
        sketch_b: Tensor | PathLike,
        *,
        name: str,
        stylize: Stylizer,
        images: int = 500,
        size: int | None = None,
        keep_color: bool | None = None,
        sharing: bool = True,
        cache: PathLike | None = None,
        progress: Progress | None = None,
        seed: int = 0,
    ) -> None:
        problems = Problems("SketchSource")
        good = isinstance(name, str) and bool(name.strip()) and name not in (RESIDUAL, RANDOM)
        problems.check(good, f"name must be text other than {RESIDUAL!r} and {RANDOM!r}, got {name!r}")
        problems.check(
            callable(stylize), f"stylize must be a StyleTransfer or another Stylizer, got {type(stylize).__name__}"
        )
        problems.check(is_count(images, 2), f"images must be a whole number of at least 2, got {images!r}")
        problems.check(size is None or is_count(size, MIN_SIDE), f"size must be {MIN_SIDE} px or more, got {size!r}")
        problems.check(is_count(seed, 0), f"seed must be a whole number of at least 0, got {seed!r}")
        problems.check(
            hasattr(data, "__len__") and hasattr(data, "__getitem__"),
            f"data must be a map-style data set, got {type(data).__name__}",
        )
        problems.raise_if_any()
        if len(data) < 2:
            raise DataError(f"The data hold {len(data)} image{'s' * (len(data) != 1)}; sketches need 2 or more.")
        self.names = (name,)
        self.data, self.stylize, self.size, self.sharing = data, stylize, size, bool(sharing)
        self.cache = None if cache is None else Path(cache)
        self.progress, self.seed = progress, seed
        generator = torch.Generator().manual_seed(seed)
        self.index = torch.randperm(len(data), generator=generator)[:images].sort().values
        with PrivateRandomness(seed):
            self.shape = tuple(self._read(int(self.index[0])).shape)
        if min(self.shape[1:]) < MIN_SIDE:
            raise ShapeError(f"The images have {self.shape[1:]} px, {MIN_SIDE} is the least; pass a larger size.")
        self.sketches = tuple(
            _sketch(s, which, self.shape[0]) for s, which in ((sketch_a, "sketch_a"), (sketch_b, "sketch_b"))
        )
        side = min(self.shape[1:])
        a, b = (fit_canonical(s[None], side, self.shape[0]) for s in self.sketches)
        if torch.allclose(a, b, atol=1 / 255):
            raise ConfigError(f"The two sketches are equal at {side} px: they must show a concept's two sides.")
        is_grey = all(_is_grey(s) for s in self.sketches)
        self.keep_color = self.shape[0] == 3 and (is_grey if keep_color is None else bool(keep_color))
        self._painted: list[Tensor] = []
        self.extra = StylizedImages(self)
        self.extra_of = self.index.repeat(2)

    def __len__(self) -> int:
        """Return n, the number of images that are painted after each sketch."""
        return len(self.index)

    def pairs(self, n: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices a (n,), b (n,) and `shared` (n, 2), columns residual and concept; nothing is painted yet.

        Raises:
            ConfigError: `n` is no number of pairs.
        """
        if not is_count(n, 0):
            raise ConfigError(f"pairs takes a whole number of pairs, got {n!r}.")
        generator = torch.Generator().manual_seed(seed)

        def draw(below: int) -> Tensor:
            return torch.randint(below, (n,), generator=generator)

        images, painted = len(self.data), len(self)
        k = draw(painted)
        versions = torch.stack([self.index[k], images + k, images + painted + k])  # x, x^a, x^b
        kind, rows = draw(3), torch.arange(n)
        a = versions[torch.tensor([0, 0, 1])[kind], rows]
        b = versions[torch.tensor([1, 2, 2])[kind], rows]
        # Exactly half, whatever n: every second pair of a random order is no more random than this.
        is_sharing = torch.arange(n) % 2 == 1 if self.sharing else torch.zeros(n, dtype=torch.bool)
        other = (k + 1 + draw(painted - 1)) % painted
        side = images + painted * draw(2)
        a = torch.where(is_sharing, side + k, a)
        b = torch.where(is_sharing, side + other, b)
        return a, b, torch.stack([~is_sharing, is_sharing], dim=1)

    def prepare(self) -> SketchSource:
        """Paint the images, or read them from `cache`, unless that was done; return self.

        Raises:
            DataError: An image of the data, or what `stylize` gives, cannot be used.
        """
        if self._painted:
            return self
        originals = self._originals()
        painted = []
        for number, sketch in enumerate(self.sketches):
            file = self._file(originals, sketch)
            found = None if file is None else _load(file, originals.shape)
            if found is None:
                found = self._paint(originals, sketch, number)
                if file is not None:
                    _save(file, found)
            painted.append(found)
        self._painted = painted
        return self

    def image(self, number: int) -> Tensor:
        """Return painted image `number` of `extra`, (C, H, W) in [0, 1]."""
        self.prepare()
        return self._painted[number // len(self)][number % len(self)].float() / 255

    def _paint(self, originals: Tensor, sketch: Tensor, number: int) -> Tensor:
        images = originals.float() / 255
        tell = self.progress

        def progress(done: int, total: int) -> None:
            if tell:
                tell(number * total + done, 2 * total)

        if self.keep_color:
            luma = match_channels(images, 1)
            out = _checked(self.stylize(luma, match_channels(sketch[None], 1)[0], progress=progress), luma)
            out = (images + (out - luma)).clamp_(0, 1)
        else:
            out = _checked(self.stylize(images, sketch, progress=progress), images)
        return out.clamp(0, 1).mul(255).round_().to(torch.uint8)

    def _originals(self) -> Tensor:
        """Return the images to be painted as uint8 (n, C, H, W)."""
        out = torch.empty(len(self), *self.shape, dtype=torch.uint8)
        with PrivateRandomness(self.seed):  # the data's own augmentation neither depends on nor moves the caller's
            for row, i in enumerate(self.index.tolist()):
                image = self._read(i)
                if tuple(image.shape) != self.shape:
                    raise DataError(
                        f"Item {i} of the data has the shape {tuple(image.shape)}, others {self.shape}; pass size=."
                    )
                out[row] = image.mul(255).round_().to(torch.uint8)
        return out

    def _read(self, i: int) -> Tensor:
        image = read_sample(self.data[i], where=f"item {i}").images
        if image.dtype == torch.uint8:
            image = image.float() / 255
        check_canonical(image[None] if image.ndim == 3 else image, subject=f"item {i}")
        if image.ndim != 3 or not bool(((image >= 0) & (image <= 1)).all()):
            raise DataError(
                f"Item {i} of the data is no canonical image (C, H, W) in [0, 1]: it has the shape "
                f"{tuple(image.shape)} and values from {image.min():g} to {image.max():g}. Undo the normalisation."
            )
        image = image.detach().float().cpu()
        return image if self.size is None else fit_canonical(image[None], self.size, image.shape[0])[0]

    def _file(self, originals: Tensor, sketch: Tensor) -> Path | None:
        """Return where the images painted after `sketch` are kept: the name tells all that they depend on."""
        if self.cache is None:
            return None
        kind = type(self.stylize)
        unnamed = f"{kind.__module__}.{getattr(self.stylize, '__qualname__', kind.__qualname__)}"
        digest = hashlib.sha256(str(getattr(self.stylize, "fingerprint", unnamed)).encode())
        digest.update(f"{tuple(sketch.shape)} {tuple(originals.shape)} {self.keep_color}".encode())
        digest.update(sketch.contiguous().numpy().tobytes())
        digest.update(originals.numpy().data)
        return self.cache / f"stylized-{digest.hexdigest()[:24]}.safetensors"


class StylizedImages(Dataset[Tensor]):
    """The painted images of a `SketchSource`: all after sketch a, then all after b; item: (C, H, W) in [0, 1].

    >>> source = SketchSource(
    ...     torch.rand(4, 1, 8, 8), torch.zeros(1, 8, 8), torch.ones(1, 8, 8), name="light",
    ...     stylize=lambda images, sketch, *, progress=None: images * sketch.mean(),
    ... )
    >>> len(source.extra), source.extra[3].max().item(), source.extra[4].shape
    (8, 0.0, torch.Size([1, 8, 8]))
    """

    def __init__(self, source: SketchSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return 2 * len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        number = range(len(self))[index]  # raises IndexError, and takes negative ones
        return self.source.image(number)


def _sketch(given: Tensor | PathLike, which: str, channels: int) -> Tensor:
    """Return a sketch as float32 (C, h, w), grey where the images are."""
    if isinstance(given, Tensor):
        if given.ndim != 3:
            raise ShapeError(f"{which} must be one image (C, h, w) in [0, 1], got {tuple(given.shape)}.")
        sketch = given.detach().cpu()
    elif isinstance(given, (str, os.PathLike)):
        sketch = load_image(given)
    else:
        raise ConfigError(f"{which} must be a tensor (C, h, w) or the path of an image, got {type(given).__name__}.")
    check_canonical(sketch[None], subject=f"{which}[None]")
    if not bool(((sketch >= 0) & (sketch <= 1)).all()):
        raise DataError(f"{which} has values from {sketch.min():g} to {sketch.max():g}; accepted are those in [0, 1].")
    if min(sketch.shape[1:]) < MIN_SIDE:
        raise ShapeError(f"{which} has {tuple(sketch.shape[1:])} px; {MIN_SIDE} is the least.")
    sketch = sketch.float()
    return match_channels(sketch[None], channels)[0] if channels < len(sketch) else sketch


def _is_grey(sketch: Tensor) -> bool:
    return bool((sketch.amax(0) - sketch.amin(0)).max() <= GREY)


def _checked(painted: Any, images: Tensor) -> Tensor:
    """Return what a stylizer gave, if it is what it should be."""
    if not isinstance(painted, Tensor) or painted.shape != images.shape or not painted.is_floating_point():
        found = f"{painted.dtype} {tuple(painted.shape)}" if isinstance(painted, Tensor) else type(painted).__name__
        raise DataError(f"stylize gave {found}; it must give floating-point images {tuple(images.shape)}.")
    out: Tensor = painted.detach().to("cpu", torch.float32)
    if not bool(((out >= -1e-3) & (out <= 1 + 1e-3)).all()):  # NaN is neither
        raise DataError(f"stylize gave values from {out.min():g} to {out.max():g}; they must lie in [0, 1].")
    return out


def _load(file: Path, shape: torch.Size) -> Tensor | None:
    """Return the images kept in `file`; None, with a warning where it is damaged, when they must be made."""
    if not file.exists():
        return None
    try:
        images = load_file(file).get("images")
    except (OSError, SafetensorError, ValueError) as error:
        images, why = None, str(error)
    else:
        why = "it holds other tensors"
    if images is None or images.shape != shape or images.dtype != torch.uint8:
        warnings.warn(f"{file} is damaged ({why}): its images are painted anew.", PosthocInnWarning, stacklevel=4)
        return None
    return images


def _save(file: Path, images: Tensor) -> None:
    with writing(file, "The stylised images are kept there: make room, or pass another cache=."):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        try:
            save_file({"images": images.contiguous()}, partial)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
