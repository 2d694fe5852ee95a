"""Labelled images in one directory a class, read when asked for and brought to one size."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from posthoc_inn.errors import DataError, Problems
from posthoc_inn.images import find_image_files, fit_canonical, load_image

_HELD_OUT_NAMES = ("test", "val", "valid", "validation")


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images below one directory a class; item: (image (channels, size, size), float in [0, 1]; label).

    Where `root` holds ``train`` and one of ``test``, ``val``, ``valid``, these are the parts; otherwise a
    share of each class is held out by seed.

    Attributes:
        files: Path of each item.
        labels: Label of each item.
        classes: Name of each label, sorted.
    """

    def __init__(
        self,
        root: str,
        *,
        train: bool,
        seed: int = 0,
        size: int = 64,
        channels: int = 3,
        held_out: float = 0.1,
    ) -> None:
        """List the files.

        Args:
            root: The directory.
            train: Training part, or else the held-out part.
            seed: Seed of the held-out part where the directory does not give it.
            size: Height and width in pixels: shorter side resized, central square cut out.
            channels: 1 or 3.
            held_out: Share held out of each class, in (0, 1).

        Raises:
            ConfigError: An option is out of range.
            DataError: There is no such directory, or no image in it.
        """
        problems = Problems("image-folder")
        problems.check(isinstance(size, int) and 8 <= size <= 4096, f"size must be 8 to 4096 pixels, got {size!r}")
        problems.check(channels in (1, 3), f"channels must be 1 or 3, got {channels!r}")
        problems.check(
            isinstance(held_out, (int, float)) and 0 < held_out < 1,
            f"held_out must be in (0, 1), got {held_out!r}",
        )
        problems.raise_if_any()
        self.size, self.channels = size, channels
        base = Path(root)
        other = next((base / n for n in _HELD_OUT_NAMES if (base / n).is_dir()), None)
        if (base / "train").is_dir() and other is not None:
            self.classes, chosen = _labelled(base / "train")
            if not train:
                found, rows = _labelled(other)
                extra = sorted(set(found) - set(self.classes))
                if extra:
                    raise DataError(f"{other} has the classes {', '.join(extra)}, which {base / 'train'} has not.")
                chosen = [(file, self.classes.index(found[label])) for file, label in rows]
        else:
            self.classes, rows = _labelled(base)
            chosen = _part(rows, len(self.classes), train, held_out, seed)
        if not chosen:
            raise DataError(f"{base} has too few images to hold some out; give two or more for a class.")
        self.files = [file for file, _ in chosen]
        self.labels = [label for _, label in chosen]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = load_image(self.files[index])
        return fit_canonical(image[None], self.size, self.channels)[0], self.labels[index]


def _labelled(base: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    files = find_image_files(base)
    parts = [file.relative_to(base).parts for file in files]
    inside = [(file, p[0]) for file, p in zip(files, parts, strict=True) if len(p) > 1]
    if not inside:
        # Pictures without classes: they are one, and labels are not needed to find invariances.
        inside = [(file, base.resolve().name) for file in files]
    classes = tuple(sorted({name for _, name in inside}))
    index = {name: i for i, name in enumerate(classes)}
    return classes, [(file, index[name]) for file, name in inside]


def _part(
    rows: list[tuple[Path, int]], classes: int, train: bool, held_out: float, seed: int
) -> list[tuple[Path, int]]:
    generator = torch.Generator().manual_seed(seed)
    out: set[int] = set()
    for label in range(classes):
        members = [i for i, (_, of) in enumerate(rows) if of == label]
        count = max(1, round(held_out * len(members))) if len(members) > 1 else 0
        order = torch.randperm(len(members), generator=generator).tolist()
        out.update(members[i] for i in order[:count])
    return [row for i, row in enumerate(rows) if (i in out) != train]
