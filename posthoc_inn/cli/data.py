"""Finds the images that the options name; heavy parts are imported where they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posthoc_inn.errors import (
    ConfigError,
    DataError,
    UnknownNameError,
    listed,
)
from posthoc_inn.plugins import PluginManager

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDED = "color-digits"
"""The data set that is there without any file."""
SIZED = 2000
"""Images whose sizes are looked at, from their headers."""
ALIKE, MOST = 0.02, 0.9
"""How far ratios of sides may differ, and the share of images that must be alike to be read whole, not as squares."""
LEAST_DRAWS = 20
"""Draws of a generator that a fit can be asked for at least."""
DRAWS = "draws"
"""`draws:N` as data: N pictures that the generator makes."""
_SPLIT_NAMES = (
    ("train", "training"),
    ("test", "testing", "val", "valid", "validation", "eval", "evaluation", "dev", "held_out", "held-out", "heldout"),
)


@dataclass
class Images:
    """Images to fit on, and others held out.

    Attributes:
        name: As asked for.
        train: A data set of canonical images, labelled or not.
        held_out: The same.
        size: Height or width, the smaller one, in pixels.
        classes: Names of the classes; empty where there are none.
        draws: Passes that fit still has to make (a data set may bring its own draws).
        told: What they are, in words.
        notes: What a user has to know of them.
    """

    name: str
    train: Any
    held_out: Any
    size: int
    classes: Sequence[str] = ()
    draws: int = 1
    told: str = ""
    notes: tuple[str, ...] = ()


def is_folder(manager: PluginManager, name: str) -> bool:
    """Say whether `name` means a folder of images rather than a registered data set.

    Raises:
        UnknownNameError: It is neither.
    """
    if name in manager.datasets or draws_wanted(name) is not None:
        return False
    if Path(name).is_dir():
        return True
    if Path(name).exists():
        raise DataError(f"--data {name} is a file; it takes a registered data set or a folder of images.")
    if "/" in name or "\\" in name or name.startswith("."):
        raise DataError(f"--data {name}: there is no such folder.")
    try:
        manager.datasets.get(name)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error} There is no folder of that name either.") from None
    return False


def draws_wanted(name: str) -> int | None:
    """Return N for `draws:N`, and None for other data.

    Raises:
        ConfigError: N is no number, or there are too few to learn from and to hold out.
    """
    word, colon, count = name.partition(":")
    if word != DRAWS or not colon:
        return None
    if not (count.isascii() and count.isdigit()) or len(count) > 9 or int(count) < LEAST_DRAWS:
        raise ConfigError(
            f"--data {name}: after the colon stands how many pictures the generator makes, {LEAST_DRAWS} at least."
        )
    return int(count)


def drawn_images(given: Any, name: str, *, seed: int) -> Images:
    """Return `draws:N` of a generator, the last tenth of them held out.

    Args:
        given: The autoencoder that was given, or None.
        name: As asked for.
        seed: Of the draws.

    Raises:
        ConfigError: It is no generator.
    """
    from torch.utils.data import Subset

    from posthoc_inn.autoencoders import GivenGenerator

    count = draws_wanted(name) or LEAST_DRAWS
    if not isinstance(given, GivenGenerator):
        raise ConfigError(
            f"--data {name} are pictures of a generator: pass --autoencoder package.module:factory, whose factory "
            "returns a posthoc_inn.GivenGenerator."
        )
    draws, first = given.draws(count, seed), count - max(2, count // 10)
    return Images(
        name,
        Subset(draws, range(first)),
        Subset(draws, range(first, count)),
        size=given.config.size,
        told=f"{first:,} draws of the generator to learn from, {count - first:,} held out",
    )


def registered_images(
    manager: PluginManager, name: str, root: str | None, *, seed: int, draws: int | None, options: dict[str, Any]
) -> Images:
    """Open a registered data set.

    Raises:
        PosthocInnError: There is none, its files are missing, or an option is not its own.
    """
    metadata = manager.datasets.get(name).metadata
    brings_draws = "draws" in (metadata.get("options") or {})
    if draws is not None and brings_draws:
        options = {"draws": draws, **options}
    held_options = {key: value for key, value in options.items() if key != "draws"}
    train = manager.build_dataset(name, root, train=True, seed=seed, **options)
    held_out = manager.build_dataset(name, root, train=False, seed=seed, **held_options)
    classes = metadata.get("classes") or getattr(train, "classes", None) or ()
    counts = f"{_count(train)} to learn from, {_count(held_out)} held out"
    what = metadata.get("description") or name
    return Images(
        name,
        train,
        held_out,
        size=metadata.get("image_size") or _shortest_side(train),
        classes=tuple(str(c) for c in classes),
        draws=1 if draws is None or brings_draws else draws,
        told=f"{name}: {what}; {counts}",
    )


def folder_images(
    folder: Path,
    *,
    size: int | None,
    channels: int,
    held_out: str | None,
    seed: int,
    needed: tuple[int, int] | None,
) -> Images:
    """Open a folder of images; one subfolder a class gives labels, train/ and test/ give the split.

    Args:
        folder: The folder.
        size: Side of the autoencoder's images, or None.
        channels: 1 or 3.
        held_out: Share, or another folder, or None.
        seed: Seed of the choice of the held-out images.
        needed: Height and width at which the model looks at images, or None where it takes what it gets.

    Raises:
        DataError: There are no images, or too few.
    """
    from posthoc_inn.images import find_image_files

    kept = _other_folder(held_out)
    learned = folder
    if kept is None and held_out is None:
        learned, kept = _own_split(folder)
    shape, note = _reading_shape(find_image_files(learned), size=size, needed=needed)
    share = 0.1 if held_out is None or kept is not None else _share(held_out)
    parts = [
        LabelledFolder(root, shape, channels=channels, train=part, held_out=share, seed=seed)
        for root, part in ((learned, True if kept is None else None), (kept or folder, False if kept is None else None))
    ]
    classes = parts[0].classes
    if classes and parts[1].classes != classes:
        unknown = sorted(set(parts[1].classes) - set(classes))
        if unknown:
            raise DataError(f"The held-out folder has classes that {learned} lacks: {listed(unknown)}.")
        parts[1].number_by(classes)
    labelled = f"{len(classes)} classes (subfolders)" if classes else "no classes"
    return Images(
        str(folder),
        parts[0],
        parts[1],
        size=min(shape),
        classes=classes,
        told=f"{folder}: {len(parts[0]):,} images to learn from, {len(parts[1]):,} held out, {labelled}, read at "
        f"{_pixels(shape)} px",
        notes=(note,) if note else (),
    )


def _reading_shape(
    files: list[Path], *, size: int | None, needed: tuple[int, int] | None
) -> tuple[tuple[int, int], str]:
    """Return the height and width at which images are read, and how many of them are smaller.

    Those of the model where it has them, whatever a few images are like; else the middle ones of the images, where
    nearly all have one ratio of sides, or a square of the middle shorter side.

    Args:
        files: The images.
        size: Side of the autoencoder's images, or None.
        needed: Height and width at which the model looks at images, or None where it takes what it gets.
    """
    from posthoc_inn.images.image_files import image_size

    picks = [files[k * (len(files) - 1) // (SIZED - 1)] for k in range(SIZED)] if len(files) > SIZED else files
    sizes = [(height, width) for width, height in map(image_size, picks) if width and height] or [(8, 8)]
    found = needed or _common_shape(sizes)
    larger = max(1.0, max(size or 0, 8) / min(found))
    shape = round(found[0] * larger), round(found[1] * larger)
    small = sum(height < shape[0] or width < shape[1] for height, width in sizes)
    if not small:
        return shape, ""
    of = f"{len(files):,} images" if len(picks) == len(files) else f"{SIZED:,} images looked at"
    return (
        shape,
        f"{small:,} of {of} are smaller than the {_pixels(shape)} px at which they are read, and are enlarged.",
    )


def _common_shape(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return height and width of images that are alike: the middle ratio of sides where nearly all have it, or 1.

    >>> _common_shape([(60, 120), (64, 128), (50, 100)]), _common_shape([(64, 128), (128, 64), (90, 80)])
    ((60, 120), (64, 64))
    """
    ratios = sorted(width / height for height, width in sizes)
    ratio = ratios[len(ratios) // 2]
    alike = sum(abs(r / ratio - 1) <= ALIKE for r in ratios)
    short = sorted(min(size) for size in sizes)[len(sizes) // 2]
    if alike < MOST * len(sizes) or abs(ratio - 1) <= ALIKE:
        return short, short
    return (short, round(short * ratio)) if ratio > 1 else (round(short / ratio), short)


def _pixels(shape: tuple[int, int]) -> str:
    return str(shape[0]) if shape[0] == shape[1] else f"{shape[0]} x {shape[1]}"


class LabelledFolder:
    """The images below a folder, labelled by the first subfolder on their way; a map-style data set.

    Args:
        root: The folder.
        size: Height and width in pixels, or one number for a square.
        options: As `posthoc_inn.images.ImageFiles` takes them.
    """

    def __init__(self, root: Path, size: int | tuple[int, int], **options: Any) -> None:
        from posthoc_inn.images import ImageFiles

        self._files = ImageFiles(root, size, **options)
        everything = ImageFiles(root, size) if options.get("train") is not None else self._files
        tops = [file.relative_to(root).parts[:-1] for file in everything.files]
        names = sorted({parts[0] for parts in tops if parts})
        self.classes: tuple[str, ...] = tuple(names) if len(names) >= 2 and all(tops) else ()
        self._labels = [file.relative_to(root).parts[0] for file in self._files.files] if self.classes else []
        self.number_by(self.classes)

    @property
    def files(self) -> list[str]:
        """Names of the files, in their order: tables of attributes are matched by them."""
        return [str(file) for file in self._files.files]

    def number_by(self, classes: Sequence[str]) -> None:
        """Number the labels by the order of `classes`."""
        self.classes = tuple(classes)
        self._numbers = [self.classes.index(label) for label in self._labels]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        image = self._files[index]
        return (image, self._numbers[index]) if self._numbers else image


def _other_folder(held_out: str | None) -> Path | None:
    if held_out is None:
        return None
    try:
        float(held_out)
    except ValueError:
        if not Path(held_out).is_dir():
            raise DataError(f"--held-out takes a share such as 0.1 or a folder, got {held_out!r}.") from None
        return Path(held_out)
    return None


def _share(held_out: str) -> float:
    share = float(held_out)
    if not 0 < share < 1:
        raise ConfigError(f"--held-out takes a share in (0, 1) or a folder, got {held_out}.")
    return share


def _own_split(folder: Path) -> tuple[Path, Path | None]:
    inside = {child.name.lower(): child for child in folder.iterdir() if child.is_dir()}
    train = next((inside[name] for name in _SPLIT_NAMES[0] if name in inside), None)
    test = next((inside[name] for name in _SPLIT_NAMES[1] if name in inside), None)
    return (train, test) if train is not None and test is not None else (folder, None)


def _count(data: Any) -> str:
    try:
        return f"{len(data):,}"
    except TypeError:
        return "an unknown number"


def _shortest_side(data: Any) -> int:
    sample = data[0]
    image = sample[0] if isinstance(sample, (tuple, list)) else sample
    return int(min(image.shape[-2:]))
