"""CelebA: aligned faces with forty binary attributes, from a directory or an archive, whole or in part."""

from __future__ import annotations

import csv
import io
import os
import sys
import warnings
import zipfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from posthoc_inn.errors import DataError
from posthoc_inn.images import fit_canonical, load_image, pil_to_tensor
from posthoc_inn_torchvision.arrays import how_to_download, run_download

_TABLES = ("list_attr_celeba.txt", "list_attr_celeba.csv", "attributes.csv")
_PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
_ARCHIVES = ("img_align_celeba.zip", "images.zip")
_MAX_MEMBER = 10_000_000
_HELD_OUT = 0.1


class CelebA(Dataset[tuple[Tensor, Tensor]]):
    """CelebA; item: (face (3, size, size), float in [0, 1]; attributes (K,), int64, 1 where present).

    The held-out part is the publisher's test part where ``list_eval_partition`` is there; otherwise a tenth,
    drawn by seed, in which nobody is who is also in the training part (where identities are known).

    Attributes:
        names: File name of each item.
        targets: Attributes, int64 (N, K).
        attribute_names: Name of each of the K columns.
    """

    def __init__(self, root: str, *, train: bool, seed: int = 0, size: int = 64, download: bool = False) -> None:
        """List the faces; pictures are read when asked for.

        Args:
            root: Directory with the files named in the error that says what is missing, or with ``celeba`` in
                it.
            train: Training part, or else the held-out part.
            seed: Seed of the held-out part where it is not given.
            size: Height and width in pixels: the central square, resized.
            download: Let torchvision download (from a host that often refuses).

        Raises:
            DataError: Files are missing or do not belong together.
        """
        if download:
            run_download("CelebA", root, split="train")
        self.size = size
        base = next((b for b in (Path(root), Path(root) / "celeba") if _first(b, _TABLES)), None)
        if base is None:
            raise DataError(_missing(root))
        names, table, self.attribute_names, identities = _read_table(_first(base, _TABLES) or base)
        self._folder = next((d for d in (base / "img_align_celeba", base / "images") if d.is_dir()), None)
        self._archive = None if self._folder else _first(base, _ARCHIVES)
        self._opened: tuple[int, zipfile.ZipFile, dict[str, str]] | None = None
        if not self._folder and not self._archive:
            raise DataError(_missing(root))
        identities = _identities(base / "identity_CelebA.txt") or identities
        held_out = _publishers_part(base, names)
        if held_out is None:
            held_out = {n: (1 if h else 0) for n, h in zip(names, _drawn(names, identities, seed), strict=True)}
        rows = [i for i, n in enumerate(names) if held_out.get(n) == (0 if train else 1)]
        if not rows:
            raise DataError(f"{base} lists no face of the {'training' if train else 'held-out'} part.")
        self.names = [names[i] for i in rows]
        self.targets = table[rows]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return fit_canonical(self._read(self.names[index])[None], self.size, 3)[0], self.targets[index]

    def attributes(self, index: int) -> dict[str, Tensor]:
        """Return the attributes of one item by name, each ()."""
        return dict(zip(self.attribute_names, self.targets[index], strict=True))

    def _read(self, name: str) -> Tensor:
        if self._folder:
            return load_image(self._folder / name)
        archive, members = self._open()
        if name not in members:
            raise DataError(f"{self._archive} does not hold {name}, which the attribute table lists.")
        if archive.getinfo(members[name]).file_size > _MAX_MEMBER:
            raise DataError(f"{name} in {self._archive} is larger than {_MAX_MEMBER} bytes: no face of CelebA is.")
        try:
            with Image.open(io.BytesIO(archive.read(members[name])), formats=["JPEG", "PNG"]) as image:
                return pil_to_tensor(image)
        except (OSError, ValueError, SyntaxError, zipfile.BadZipFile, Image.DecompressionBombError) as error:
            raise DataError(f"{name} in {self._archive} cannot be read: {error}.") from error

    def _open(self) -> tuple[zipfile.ZipFile, dict[str, str]]:
        # Worker processes must not share one file position, so each opens the archive for itself.
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                archive = zipfile.ZipFile(str(self._archive))
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"{self._archive} cannot be opened: {error}.") from error
            self._opened = (os.getpid(), archive, {Path(m).name: m for m in archive.namelist()})
        return self._opened[1], self._opened[2]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}

    def __del__(self) -> None:
        opened = self.__dict__.get("_opened")
        # When Python ends, modules may be gone before this object: the system closes the file then.
        if opened is not None and not sys.is_finalizing() and opened[0] == os.getpid():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                opened[1].close()


def _missing(root: str) -> str:
    return (
        f"CelebA is not in {root} (nor in {Path(root) / 'celeba'}): expected a table ({', '.join(_TABLES)}) "
        f"and the directory img_align_celeba or the archive {' or '.join(_ARCHIVES)}; "
        "list_eval_partition.txt and identity_CelebA.txt are used where they are there. "
        f"{how_to_download('CelebA')}"
    )


def _first(base: Path, names: tuple[str, ...]) -> Path | None:
    return next((base / n for n in names if (base / n).is_file()), None)


def _rows(path: Path) -> tuple[list[str] | None, list[list[str]]]:
    """Return header (None where there is none) and rows of one of CelebA's tables, text or CSV."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}.") from error
    if path.suffix == ".csv":
        rows = [row for row in csv.reader(lines) if row]
        return (rows[0], rows[1:]) if rows else (None, [])
    cells = [line.split() for line in lines if line.strip()]
    if cells and len(cells[0]) == 1 and cells[0][0].isdigit():
        return ["image_id", *cells[1]] if len(cells) > 1 else None, cells[2:]
    return None, cells


def _read_table(path: Path) -> tuple[list[str], Tensor, tuple[str, ...], dict[str, str]]:
    header, rows = _rows(path)
    if not header or not rows or any(len(row) != len(header) for row in rows):
        raise DataError(f"{path} is not a table of CelebA's attributes: its rows and its header differ in length.")
    columns = [i for i, h in enumerate(header) if i > 0 and h != "identity"]
    identities = {r[0]: r[header.index("identity")] for r in rows} if "identity" in header else {}
    try:
        table = torch.tensor([[int(row[i]) for i in columns] for row in rows])
    except ValueError as error:
        raise DataError(f"{path} holds an attribute that is no whole number: {error}.") from error
    names = [Path(row[0]).name for row in rows]
    return names, (table > 0).long(), tuple(header[i] for i in columns), identities


def _identities(path: Path) -> dict[str, str]:
    return {row[0]: row[1] for row in _rows(path)[1] if len(row) == 2} if path.is_file() else {}


def _publishers_part(base: Path, names: list[str]) -> dict[str, int] | None:
    """Return name -> 0 training, 1 test, -1 validation; None where that is unknown or leaves a part empty."""
    path = _first(base, _PARTITIONS)
    if path is None:
        return None
    parts = {row[0]: {"0": 0, "2": 1}.get(row[1], -1) for row in _rows(path)[1] if len(row) == 2}
    return parts if {0, 1} <= {parts.get(n, -1) for n in names} else None


def _drawn(names: list[str], identities: dict[str, str], seed: int) -> list[bool]:
    people = [identities.get(n, n) for n in names]
    distinct = sorted(set(people))
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = {distinct[i] for i in order[: max(1, round(_HELD_OUT * len(distinct)))]}
    return [p in chosen for p in people]
