"""Data sets held in memory as bytes: MNIST and Fashion-MNIST from IDX files (packed or not), CIFAR-10."""

from __future__ import annotations

import gzip
import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset

from posthoc_inn.errors import DataError

_MAX_ITEMS = 10_000_000


class ArrayImages(Dataset[tuple[Tensor, int]]):
    """Labelled images in memory; item: (image (C, H, W), float in [0, 1]; label).

    Attributes:
        pixels: uint8 (N, C, H, W).
        labels: int64 (N,).
        classes: Name of each label.

    >>> data = ArrayImages(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8), torch.tensor([1, 0]), ("a", "b"))
    >>> data[0][0].shape, float(data[0][0].max()), data[0][1]
    (torch.Size([1, 4, 4]), 1.0, 1)
    """

    def __init__(self, pixels: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        if len(pixels) != len(labels):
            raise DataError(
                f"There are {len(pixels)} images and {len(labels)} labels; the files do not belong together."
            )
        if len(labels) and int(labels.max()) >= len(classes):
            raise DataError(
                f"A label is {int(labels.max())}, but there are {len(classes)} classes; the file is damaged."
            )
        self.pixels, self.labels, self.classes = pixels, labels.long(), tuple(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index].float().div_(255), int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return the items of a whole batch at once; a DataLoader asks for batches this way."""
        rows = torch.as_tensor(indices)
        return list(zip(self.pixels[rows].float().div_(255), self.labels[rows].tolist(), strict=True))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all pixels, uint8 (N, C, H, W), and all labels (N,)."""
        return self.pixels, self.labels


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes, as MNIST is published, packed by gzip or not; nothing is written.

    Returns:
        uint8 of the shape the file states, at most three dimensions.

    Raises:
        DataError: It is no such file, or has another length than it states.
    """
    try:
        with _open(path) as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 3:
                raise DataError(f"{path} is not an IDX file of bytes: it starts with {head.hex(' ') or 'nothing'}.")
            sizes = file.read(4 * head[3])
            if len(sizes) < 4 * head[3]:
                raise DataError(f"{path} ends within its header: it was cut short.")
            shape = struct.unpack(f">{head[3]}I", sizes)
            # The stated size is believed only within reason, and no more than it is ever unpacked.
            if shape[0] > _MAX_ITEMS or any(not 1 <= s <= 4096 for s in shape[1:]):
                raise DataError(f"{path} states the shape {shape}, which is not believed.")
            expected = int(np.prod(shape, dtype=np.int64))
            content = bytearray(file.read(expected + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); was it cut short? Get it anew.") from error
    if len(content) != expected:
        found = "more" if len(content) > expected else str(len(content))
        raise DataError(f"{path} states {expected} bytes of content for the shape {shape}, and holds {found}.")
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape) if expected else torch.zeros(shape).byte()


def idx_pair(root: str, folder: str, *, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    """Read images (N, H, W) and labels (N,), both uint8, of MNIST or of a set published in its form.

    Args:
        root: Directory in which ``FOLDER/raw`` lies, or any directory between them.
        folder: "MNIST" or "FashionMNIST", also the name of torchvision's class.
        train: Training or test files.
        download: Let torchvision download what is missing.

    Raises:
        DataError: A file is missing or damaged.
    """
    part = "train" if train else "t10k"
    stems = (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
    base = Path(root)
    places = [base / folder / "raw", base / "raw", base]
    for attempt in range(2):
        for place in places:
            found = [_existing(place, stem) for stem in stems]
            if found[0] and found[1]:
                images, labels = read_idx(found[0]), read_idx(found[1])
                if images.ndim != 3 or labels.ndim != 1:
                    raise DataError(
                        f"{found[0]} and {found[1]} hold {images.ndim} and {labels.ndim} dimensions, not 3 and 1."
                    )
                return images, labels
        if attempt == 0 and download:
            run_download(folder, root, train=train)
        else:
            break
    raise DataError(
        f"{folder} is not in {base}: expected {stems[0]} and {stems[1]}, each also as .gz, in one of "
        f"{', '.join(str(p) for p in places)}. {how_to_download(folder)}"
    )


def read_cifar10(root: str, *, train: bool, download: bool) -> ArrayImages:
    """Read CIFAR-10 as torchvision keeps it (cifar-10-batches-py), whose checksums it verifies first.

    Raises:
        DataError: The files are missing or damaged.
    """
    if download:
        run_download("CIFAR10", root, train=train)
    try:
        with warnings.catch_warnings():
            # The files' own pickled arrays are old enough for NumPy to complain about.
            warnings.simplefilter("ignore")
            data = torchvision.datasets.CIFAR10(root, train=train, download=False)
    except Exception as error:
        # torchvision raises RuntimeError for a wrong checksum; damage can show in other ways too.
        raise DataError(
            f"CIFAR-10 is not in {root} ({error}): expected the directory cifar-10-batches-py with "
            "data_batch_1 to data_batch_5, test_batch and batches.meta, unchanged. "
            f"{how_to_download('CIFAR10')}"
        ) from error
    pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return ArrayImages(pixels, torch.tensor(data.targets), data.classes)


def how_to_download(name: str) -> str:
    """Return the sentence that says how to get the files."""
    return (
        "Nothing was downloaded: pass download=True to let torchvision fetch them there, or run "
        f"torchvision.datasets.{name}(DIRECTORY, download=True) once on a machine with a network and copy "
        "DIRECTORY."
    )


def run_download(name: str, root: str, **options: Any) -> None:
    """Let torchvision download a data set into `root`.

    Raises:
        DataError: It could not.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(torchvision.datasets, name)(root, download=True, **options)
    except Exception as error:
        raise DataError(f"{name} could not be downloaded to {root} ({type(error).__name__}: {error}).") from error


def _existing(place: Path, stem: str) -> Path | None:
    dotted = stem.replace("-idx", ".idx")
    return next((place / n for n in (stem, f"{stem}.gz", dotted, f"{dotted}.gz") if (place / n).is_file()), None)


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
