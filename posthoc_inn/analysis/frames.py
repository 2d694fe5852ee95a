"""Frames of a moving picture: read one after the other from an animation or a folder, and written as an animation."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posthoc_inn.errors import ConfigError, DataError, ShapeError
from posthoc_inn.files import partial_of, writing
from posthoc_inn.images import find_image_files, load_image, match_channels, pil_to_tensor
from posthoc_inn.images.image_files import MAX_PIXELS, PathLike
from posthoc_inn.images.spec import check_canonical

if TYPE_CHECKING:
    from PIL import Image

ANIMATIONS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".apng": "PNG"}
"""Suffixes of files that may hold several frames, and Pillow's names of their formats."""
FASTEST = {"GIF": 50.0, "WEBP": 1000.0}
"""Frames a second: a GIF counts hundredths of a second, and viewers take a single one for ten."""
SLOWEST = 0.01
"""Frames a second; a GIF's counter of 16 bits would overflow soon after."""


def read_frames(path: PathLike, *, channels: int = 3, max_pixels: int = MAX_PIXELS) -> Iterator[Tensor]:
    """Yield canonical images (C, H, W) in [0, 1], one at a time, of an animation or of a folder of images.

    Args:
        path: An animated GIF, WebP or PNG, or a folder of images, which come sorted by name: number them with leading
            zeros.
        channels: 1 or 3.
        max_pixels: Height times width above which a frame is refused before it is decoded.

    Raises:
        ConfigError: `channels` is neither.
        DataError: There is no such file or folder, or it is no image; or, when its turn comes, a frame is damaged.
    """
    if channels not in (1, 3):
        raise ConfigError(f"read_frames: channels must be 1 or 3, got {channels!r}.")
    file = Path(path)
    if file.is_dir():
        listed = find_image_files(file)
        return (match_channels(load_image(f, max_pixels=max_pixels)[None], channels)[0] for f in listed)
    if not file.is_file():
        raise DataError(f"{file} does not exist; pass an animation ({', '.join(ANIMATIONS)}) or a folder of images.")
    if file.suffix.lower() not in ANIMATIONS:
        raise DataError(
            f"{file} is no animation that is read ({', '.join(ANIMATIONS)}); take a film apart into a folder of images."
        )
    return _animation_frames(file, channels, max_pixels)


def _animation_frames(file: Path, channels: int, max_pixels: int) -> Iterator[Tensor]:
    from PIL import Image

    try:
        with Image.open(file, formats=sorted(set(ANIMATIONS.values()))) as animation:
            width, height = animation.size
            if width * height > max_pixels:
                raise DataError(
                    f"{file} has {width}x{height} pixels, more than the limit of {max_pixels:,}; make it smaller, or "
                    "raise max_pixels."
                )
            for number in itertools.count():
                try:
                    with warnings.catch_warnings():
                        # Pillow warns about damaged metadata, which do not matter.
                        warnings.simplefilter("ignore")
                        animation.seek(number)
                        frame = pil_to_tensor(animation.copy())
                except EOFError:
                    return
                yield match_channels(frame[None], channels)[0]
    except (DataError, GeneratorExit):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ... on bad bytes
        raise DataError(f"{file} is damaged or no image: {error}; save it again.") from error


def save_animation(pictures: Iterable[Tensor], path: PathLike, fps: float = 12.0) -> int:
    """Write pictures as an animation that loops, as they come; return how many there were.

    A file at `path` is replaced when all is written, and left alone when anything goes wrong. Until then Pillow keeps
    the frames, at 1 (GIF) or 3 (WebP) bytes a pixel. A GIF has 256 colours a frame, and times of hundredths of a
    second; WebP is written without loss.

    Args:
        pictures: Canonical images (C, H, W) in [0, 1], all of one size; a generator will do.
        path: Name of a .gif or .webp file.
        fps: Frames a second, from 0.01 to 50 for GIF, to 1000 for WebP.

    Raises:
        ConfigError: The suffix is another one, or `fps` is out of range.
        ShapeError: A picture has another shape than the first.
        DataError: There is no picture, or the file cannot be written.
    """
    file = Path(path)
    kind = ANIMATIONS.get(file.suffix.lower(), "")
    if kind not in FASTEST:
        raise ConfigError(f"An animation is written as .gif or .webp, got {file.name!r}.")
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not SLOWEST <= fps <= FASTEST[kind]:
        raise ConfigError(f"fps must be from {SLOWEST} to {FASTEST[kind]:g} for {kind}, got {fps!r}.")
    count = 0

    def images() -> Iterator[Image.Image]:
        nonlocal count
        shape: torch.Size | None = None
        for picture in pictures:
            shape = picture.shape if shape is None else shape
            if picture.shape != shape:
                raise ShapeError(f"Picture {count} has the shape {tuple(picture.shape)}, the first {tuple(shape)}.")
            yield _to_pil(picture)
            count += 1

    frames = images()
    first = next(frames, None)
    if first is None:
        raise DataError("There is no picture to write.")
    # A GIF's hundredths of a second are rounded here, since Pillow cuts them off.
    duration = 10 * max(2, round(100 / fps)) if kind == "GIF" else 1000 / fps
    partial = partial_of(file)
    options = {"lossless": True} if kind == "WEBP" else {}
    try:
        with writing(file):
            with partial.open("wb") as stream:
                first.save(
                    stream, format=kind, save_all=True, append_images=frames, duration=duration, loop=0, **options
                )
            os.replace(partial, file)
    finally:
        with suppress(OSError):  # Gone to its place, or never made.
            partial.unlink()
    return count


def _to_pil(picture: Tensor) -> Image.Image:
    from PIL import Image

    check_canonical(picture[None], subject="pictures")
    levels = picture.detach().cpu().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0)
    array = levels.numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
