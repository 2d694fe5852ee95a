"""Folders of pairs: what two images have in common, or differ in, is seen from where their files lie."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from posthoc_inn.concepts.model import RANDOM, RESIDUAL
from posthoc_inn.errors import ConfigError, DataError, Problems, is_count
from posthoc_inn.images import fit_canonical, load_image
from posthoc_inn.images.image_files import FORMATS, SUFFIXES, PathLike

DIFFERS = "not-"
"""Put before a concept's name, it marks the folder of pairs that differ in the concept."""
SIDES = ("a", "b")
SHOWN = 8
"""How many files of a kind an error names."""


class FolderPairs:
    """Pairs of images from folders; a file in ``a`` and the one of the same name in ``b`` are a pair.

    ::

        root/CONCEPT/a/NAME.png        root/CONCEPT/b/NAME.png        share CONCEPT, and nothing else that is known
        root/not-CONCEPT/a/NAME.png    root/not-CONCEPT/b/NAME.png    differ in CONCEPT, and share all else

    A concept may have either folder or both. PNG, JPEG and WebP are read; hidden files are left out. Folders are drawn
    from equally often, however many pairs they hold, so that a concept with few pairs counts as much as the others.

    Args:
        root: The folder.
        size: Height and width in pixels that the images are brought to: shorter side resized, central square kept.
        channels: 1 or 3.
        data: The data set that comes first: images of the pairs are numbered on from its last.
        offset: The same, as a number of images; give one of the two.

    Attributes:
        names: The concepts, sorted.
        files: Every image, in the order of `extra`.
        extra: The images, read when asked for.

    Raises:
        ConfigError: An option is out of range.
        DataError: There is no such folder, or it is not laid out as above; the message lists all that is wrong.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for side in "ab":
    ...         Path(f"{root}/not-light/{side}").mkdir(parents=True)
    ...         Image.new("L", (9, 9), 255 * (side == "b")).save(f"{root}/not-light/{side}/1.png")
    ...     source = FolderPairs(root, size=8, channels=1, offset=100)
    ...     source.names, [t.tolist() for t in source.pairs(1, seed=0)], source.extra[1].max().item()
    (('light',), [[100], [101], [[True, False]]], 1.0)
    """

    def __init__(
        self,
        root: PathLike,
        *,
        size: int,
        channels: int = 3,
        data: Sized | None = None,
        offset: int | None = None,
    ) -> None:
        problems = Problems("FolderPairs")
        problems.check(is_count(size, 1), f"size must be a positive whole number of pixels, got {size!r}")
        problems.check(channels in (1, 3), f"channels must be 1 or 3, got {channels!r}")
        problems.check(
            (data is None) != (offset is None), "pass either data or offset: the images are numbered on from there"
        )
        problems.check(offset is None or is_count(offset, 0), f"offset must be 0 or more, got {offset!r}")
        problems.check(data is None or isinstance(data, Sized), f"data must have a length, got {type(data).__name__}")
        problems.raise_if_any()
        self.root = Path(root)
        self.offset = len(data) if isinstance(data, Sized) else int(offset or 0)
        groups = _read_layout(self.root)
        self.names = tuple(sorted({folder.removeprefix(DIFFERS) for folder in groups}))
        self.files: list[Path] = []
        firsts, counts, shared = [], [], []
        for folder, found in groups.items():
            firsts.append(len(self.files))
            counts.append(len(found))
            self.files += [self.root / folder / side / name for side in SIDES for name in found]
            column = 1 + self.names.index(folder.removeprefix(DIFFERS))
            differs = folder.startswith(DIFFERS)
            shared.append([differs != (i == column) for i in range(1 + len(self.names))])
        self._firsts, self._counts, self._shared = torch.tensor(firsts), torch.tensor(counts), torch.tensor(shared)
        self.extra = FolderImages(self.files, size, channels)

    def pairs(self, n: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices a (n,), b (n,) and `shared` (n, K + 1), drawn with replacement.

        Raises:
            ConfigError: `n` is no number of pairs.
        """
        if not is_count(n, 0):
            raise ConfigError(f"pairs takes a whole number of pairs, got {n!r}.")
        generator = torch.Generator().manual_seed(seed)
        group = torch.randint(len(self._counts), (n,), generator=generator)
        count = self._counts[group]
        row = (torch.rand(n, generator=generator, dtype=torch.float64) * count).long()
        a = self.offset + self._firsts[group] + row
        return a, a + count, self._shared[group]


class FolderImages(Dataset[Tensor]):
    """Images of given files, read when asked for; item: (channels, size, size) in [0, 1].

    >>> len(FolderImages([Path("a.png"), Path("b.png")], 28, 3))
    2
    """

    def __init__(self, files: list[Path], size: int, channels: int) -> None:
        self.files, self.size, self.channels = files, size, channels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return fit_canonical(load_image(self.files[index])[None], self.size, self.channels)[0]


def _read_layout(root: Path) -> dict[str, list[str]]:
    """Return the names of the pairs of each folder, folders and names sorted.

    Raises:
        DataError: Whatever is wrong with it, all in one message.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder; pass one with {_layout()}.")
    problems = Problems(str(root))
    stray: list[str] = []
    groups: dict[str, list[str]] = {}
    for folder in _visible(root):
        if not folder.is_dir():
            stray.append(folder.name)
            continue
        concept = folder.name.removeprefix(DIFFERS)
        named = bool(concept.strip()) and concept not in (RESIDUAL, RANDOM)
        problems.check(named, f"{folder.name!r} names no concept; call the folder by another name")
        sides = [_images(folder / side, stray, root) for side in SIDES]
        stray += [str(p.relative_to(root)) for p in _visible(folder) if p.name not in SIDES or not p.is_dir()]
        for side, other, names in ((0, 1, sides[0] - sides[1]), (1, 0, sides[1] - sides[0])):
            problems.check(
                not names,
                f"{folder.name}/{SIDES[side]} holds {_list(sorted(names))}, whose partners are missing in "
                f"{folder.name}/{SIDES[other]}",
            )
        groups[folder.name] = sorted(sides[0] & sides[1])
        problems.check(
            bool(groups[folder.name]) or bool(sides[0] | sides[1]),
            f"{folder.name} holds no pairs: images are expected in {folder.name}/a and {folder.name}/b",
        )
    problems.check(bool(groups), f"it holds no concept; expected is {_layout()}")
    problems.check(not stray, f"{_list(sorted(stray))} belong to no pair; move them elsewhere")
    problems.raise_if_any(DataError)
    return groups


def _images(folder: Path, stray: list[str], root: Path) -> set[str]:
    """Return the names of the images in a folder; what else is there is added to `stray`."""
    if not folder.is_dir():
        return set()
    suffixes = tuple(s for f in FORMATS for s in SUFFIXES[f])
    found = _visible(folder)
    images = {p.name for p in found if p.is_file() and p.name.lower().endswith(suffixes)}
    stray += [str(p.relative_to(root)) for p in found if p.name not in images]
    return images


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _layout() -> str:
    return "CONCEPT/a/NAME.png and CONCEPT/b/NAME.png, or not-CONCEPT/a|b/NAME.png for pairs that differ in it"


def _list(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
