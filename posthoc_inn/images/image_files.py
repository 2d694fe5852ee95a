"""Pictures from files, which are not trusted: few formats, a pixel limit before decoding."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from posthoc_inn.errors import ConfigError, DataError, PosthocInnWarning
from posthoc_inn.images.spec import fit_canonical, match_channels

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 50_000_000
SUFFIXES = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "WEBP": (".webp",)}

OTHER_IMAGES = (
    *(".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".ppm", ".pgm", ".pnm", ".tga"),
    *(".dcm", ".exr", ".hdr", ".cr2", ".nef", ".dng", ".psd", ".svg"),
)
"""Endings of images that are not read; a folder that has some says how many."""

PathLike: TypeAlias = "str | os.PathLike[str]"


def pil_to_tensor(image: Image.Image) -> Tensor:
    """Turn a Pillow image of any mode into a canonical one.

    Transparency is painted over white; CMYK, YCbCr and palettes become RGB; 16-bit grey keeps its depth.

    Args:
        image: Any Pillow image.

    Returns:
        Float (1, H, W) for grey modes, else (3, H, W), in [0, 1].
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _deep(image)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if has_alpha:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        over = Image.new("RGBA", layer.size, "white")
        over.alpha_composite(layer)
        image = over.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")
    elif image.mode != "L":
        image = image.convert("L" if image.mode == "1" else "RGB")
    pixels = torch.from_numpy(np.array(image))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format) / 255


def _deep(image: Image.Image) -> Tensor:
    """Return an image of mode F in [0, 1], or of 16 bits in mode I, as (1, H, W) in [0, 1].

    Raises:
        DataError: Its values are others, so that it is not known what is black and what is white.
    """
    gray = torch.from_numpy(np.asarray(image).astype(np.float32))
    low, high = float(gray.min()), float(gray.max())
    # Pillow's own convert("L") would clip at 255 instead of scaling.
    white = 1.0 if image.mode == "F" else 65535.0
    # In memory, whole numbers up to 255 are hardly 16-bit ones; in a PNG file mode I means 16 bits.
    is_doubtful = image.mode == "I" and image.format is None and high <= 255
    if not (low >= 0 and high <= white) or is_doubtful:
        raise DataError(
            f"A Pillow image of mode {image.mode} has values from {low:g} to {high:g}; mode F is read in [0, 1] and "
            "mode I as 16 bits (0 to 65535). Scale it to one of them, or to 0 to 255 in mode L."
        )
    return (gray / white)[None]


ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
"""EXIF's tag of the orientation, and its values for pictures that lie on a side."""


def image_size(path: PathLike) -> tuple[int, int]:
    """Return width and height of a picture from its header, as it is turned upright; (0, 0) where it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=list(FORMATS)) as image:
                # PNG is decoded to find its EXIF data, which it seldom has.
                turned = image.format != "PNG" and image.getexif().get(ORIENTATION) in SIDEWAYS
                width, height = image.size
                return (height, width) if turned else (width, height)
    except Exception:  # decoders raise anything on bad bytes; the picture is judged when it is read
        return 0, 0


def load_image(path: PathLike, *, formats: Sequence[str] = FORMATS, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read one picture; nothing is decoded before format and size are accepted.

    Args:
        path: The file.
        formats: Pillow's names of the formats that are accepted.
        max_pixels: Height times width above which the file is refused.

    Returns:
        Float (C, H, W) in [0, 1], C 1 or 3, turned upright by its EXIF orientation.

    Raises:
        DataError: Not there, not one of `formats`, too large, or damaged; the message names the file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (6, 4), "white").save(f"{folder}/a.png")
    ...     load_image(f"{folder}/a.png").shape
    torch.Size([3, 4, 6])
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "is no regular file" if file.exists() else "does not exist"
        raise DataError(f"{file} {what}; pass the path of an image ({_listing(formats)}).")
    try:
        with warnings.catch_warnings():
            # Pillow warns about bombs and damaged metadata; sizes are judged below, metadata do not matter.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=list(formats)) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise DataError(
                        f"{file} has {width}x{height} pixels, more than the limit of {max_pixels:,}; "
                        f"make it smaller, or raise max_pixels."
                    )
                # A phone's JPEG may carry a second picture (MPO), which is no animation.
                is_animated = getattr(image, "n_frames", 1) > 1 and image.format != "MPO"
                image.load()
                tensor = pil_to_tensor(_upright(image))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{file} is not an image of a format that is read ({_listing(formats)}).") from None
    except Image.DecompressionBombError:
        raise DataError(f"{file} claims so many pixels that Pillow refuses it; make it smaller.") from None
    except MemoryError:
        raise DataError(f"{file} does not fit in memory; make it smaller, or lower max_pixels.") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ... on bad bytes
        raise DataError(f"{file} is damaged or truncated: {error}; save it anew.") from error
    if is_animated:
        warnings.warn(f"{file} is animated: its first frame is used.", PosthocInnWarning, stacklevel=2)
    return tensor


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data: the picture itself is fine
        return image


def _listing(formats: Sequence[str]) -> str:
    return ", ".join(formats)


def find_image_files(root: PathLike, *, formats: Sequence[str] = FORMATS) -> list[Path]:
    """List the images below a folder, sorted by path; hidden files and linked folders are left out.

    Raises:
        DataError: `root` is no folder, or there is no image in it.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; pass a folder of images ({_listing(formats)}).")
    suffixes = tuple(s for f in formats for s in SUFFIXES.get(f.upper(), (f".{f.lower()}",)))
    found: list[Path] = []
    left: Counter[str] = Counter()
    for base, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        left["linked folders"] += sum(Path(base, f).is_symlink() for f in folders)
        shown = [n for n in names if not n.startswith(".")]
        found += [Path(base, n) for n in shown if n.lower().endswith(suffixes)]
        left.update(Path(n).suffix.lower() + " files" for n in shown if n.lower().endswith(OTHER_IMAGES))
    reasons = ", ".join(f"{count} {what}" for what, count in sorted(left.items()) if count)
    if not found:
        also = f"; left out: {reasons}" if reasons else ""
        raise DataError(f"There is no image in {folder} (looked for {', '.join(suffixes)}, in subfolders too{also}).")
    if reasons:
        warnings.warn(f"{folder}: left out {reasons}. Read are {', '.join(suffixes)}.", PosthocInnWarning, stacklevel=2)
    return sorted(found)


def _expand(paths: PathLike | Iterable[PathLike], formats: Sequence[str]) -> list[Path]:
    listed = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files: list[Path] = []
    for path in listed:
        files += find_image_files(path, formats=formats) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise DataError("No image file was given; pass at least one file or folder.")
    return files


def load_image_files(
    paths: PathLike | Iterable[PathLike],
    *,
    channels: int | None = None,
    formats: Sequence[str] = FORMATS,
    max_pixels: int = MAX_PIXELS,
) -> list[Tensor]:
    """Read pictures, each at its own size.

    Args:
        paths: One or several files or folders; a folder stands for the images below it, sorted.
        channels: 1 or 3 to convert all to grey or colour; None to leave grey pictures grey.
        formats: Pillow's names of the formats that are accepted.
        max_pixels: Height times width above which a file is refused, before decoding.

    Returns:
        One float (C, H, W) in [0, 1] per file.

    Raises:
        DataError: A file cannot be used, or there is none.
    """
    images = [load_image(f, formats=formats, max_pixels=max_pixels) for f in _expand(paths, formats)]
    return images if channels is None else [match_channels(i[None], channels)[0] for i in images]


def stack_image_files(
    paths: PathLike | Iterable[PathLike],
    size: int | tuple[int, int],
    *,
    channels: int = 3,
    formats: Sequence[str] = FORMATS,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Read pictures and bring all to one size (see `fit_canonical`), one at a time.

    Args:
        paths: One or several files or folders.
        size: Height and width in pixels, or one number for a square.
        channels: 1 or 3.
        formats: Pillow's names of the formats that are accepted.
        max_pixels: Height times width above which a file is refused, before decoding.

    Returns:
        Float (B, channels, height, width) in [0, 1].

    Raises:
        DataError: A file cannot be used, or there is none.
    """
    files = _expand(paths, formats)
    return torch.cat(
        [fit_canonical(load_image(f, formats=formats, max_pixels=max_pixels)[None], size, channels) for f in files]
    )


class ImageFiles(Dataset[Tensor]):
    """The images below a folder, without labels; item: float (channels, height, width) in [0, 1].

    Attributes:
        files: The paths, in order.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (60, 40), "white").save(f"{folder}/a.png")
    ...     data = ImageFiles(folder, 32)
    ...     len(data), data[0].shape
    (1, torch.Size([3, 32, 32]))
    """

    def __init__(
        self,
        root: PathLike,
        size: int | tuple[int, int],
        *,
        channels: int = 3,
        train: bool | None = None,
        held_out: float = 0.1,
        seed: int = 0,
        formats: Sequence[str] = FORMATS,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """List the files; they are read when asked for.

        Args:
            root: The folder, searched with its subfolders.
            size: Height and width in pixels, or one number for a square: resized until it is covered, the middle cut
                out.
            channels: 1 or 3.
            train: True for the part to train on, False for the part held out, None for all.
            held_out: Share held out, in (0, 1).
            seed: Seed of that choice.
            formats: Pillow's names of the formats that are accepted.
            max_pixels: Height times width above which a file is refused, before decoding.

        Raises:
            DataError: No folder, no images, or too few for a held-out part.
            ConfigError: `size`, `channels` or `held_out` is out of range.
        """
        sides = (size, size) if isinstance(size, int) else tuple(size)
        is_size = len(sides) == 2 and all(isinstance(side, int) and side >= 1 for side in sides)
        if not is_size or channels not in (1, 3) or not 0 < held_out < 1:
            raise ConfigError(
                f"ImageFiles takes a positive size in pixels, 1 or 3 channels and a held_out share in (0, "
                f"1), got size={size!r}, channels={channels!r}, held_out={held_out!r}."
            )
        self.root, self.size, self.channels = Path(root), size, channels
        self.formats, self.max_pixels = tuple(formats), max_pixels
        files = find_image_files(root, formats=formats)
        if train is not None:
            count = max(2, round(len(files) * held_out))
            if len(files) - count < 2:
                raise DataError(
                    f"{root} holds {len(files)} image{'s' * (len(files) != 1)}: at least 4 are needed, 2 to learn "
                    "from and 2 held out. Add images, or pass others as held-out ones."
                )
            order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))
            part = order[count:] if train else order[:count]
            files = [files[i] for i in part.sort().values.tolist()]
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        image = load_image(self.files[index], formats=self.formats, max_pixels=self.max_pixels)
        return fit_canonical(image[None], self.size, self.channels)[0]
