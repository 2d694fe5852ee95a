"""What is computed once: images, z = Φ(x), the model's prediction and the encoder's mean and deviation, row by row.

Rows are kept in memory up to a budget, above it in raw files that are mapped, so that memory stays bounded
whatever the number of images (architecture, section 3).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posthoc_inn.errors import DataError, ShapeError
from posthoc_inn.files import replace_file
from posthoc_inn.names import file_name

DEFAULT_BUDGET = 2 * 2**30
"""Bytes of rows kept in memory before they go to disk."""
BLOCK = 64 * 2**20
"""Bytes by which memory grows at the most. glibc gives blocks above 32 MiB back to the system once they are freed."""
INDEX = "cache.json"
"""Says which rows are complete; written last, removed first."""
PART = "part.json"
"""Says how many of the rows are there while they are still being made."""
SMALL_ROW = 128 * 2**10
"""Bytes; larger rows gain from the system's reading ahead."""


class Budget:
    """Bytes that several columns share before they spill to disk.

    >>> budget = Budget(100)
    >>> budget.take(60), budget.take(60)
    (True, False)
    """

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; return whether they fit."""
        if size > self.left:
            return False
        self.left -= size
        return True


class Column:
    """One growing array, rows first, in memory or on disk.

    Args:
        name: Names the file, when there is one.
        budget: Memory shared with other columns.
        directory: Where the file goes when the budget is used up.

    >>> column = Column("z", Budget(2**20), Path("unused"))
    >>> column.append(torch.zeros(3, 2)); column.append(torch.ones(1, 2))
    >>> len(column), column.rows(torch.tensor([3, 0]))[:, 0].tolist(), column.is_on_disk
    (4, [1.0, 0.0], False)
    """

    def __init__(self, name: str, budget: Budget, directory: Path) -> None:
        self.name = name
        self._budget = budget
        self._path = directory / f"{file_name(name)}.raw"
        self._file: FileIO | None = None  # held open: what is removed from the directory can still be read
        self._blocks: list[Tensor] = []
        self._room = 0  # rows left in the last block
        self._joined: Tensor | None = None
        self._length = 0
        self.shape: tuple[int, ...] = ()
        self.dtype = torch.float32
        self.is_on_disk = False

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def append(self, rows: Tensor) -> None:
        """Add rows, shape (B, *shape).

        Raises:
            ShapeError: Shape or dtype differ from the rows before.
        """
        rows = rows.detach().cpu()
        if self._length == 0:
            self.shape, self.dtype = tuple(rows.shape[1:]), rows.dtype
        elif tuple(rows.shape[1:]) != self.shape or rows.dtype != self.dtype:
            raise ShapeError(
                f"Rows of {self.name!r} have shape {self.shape} and {self.dtype}; got {tuple(rows.shape[1:])} and "
                f"{rows.dtype}. Every image must give features of one shape: resize the images to one size."
            )
        self._joined = None
        if not self.is_on_disk and not self._budget.take(rows.nbytes):
            self._spill()
        if self.is_on_disk:
            self._write(rows)
        else:
            self._keep(rows)
        self._length += len(rows)

    def _keep(self, rows: Tensor) -> None:
        """Copy rows into blocks, each as large as all before it up to BLOCK; what is not yet filled is not resident."""
        while len(rows):
            if not self._room:
                self._room = max(len(rows), min(self._length, BLOCK // max(1, self.row_bytes)))
                self._blocks.append(torch.empty(self._room, *self.shape, dtype=self.dtype))
            block, part = self._blocks[-1], rows[: self._room]
            start = len(block) - self._room
            block[start : start + len(part)] = part
            self._room -= len(part)
            rows = rows[len(part) :]

    def _take_blocks(self) -> Iterator[Tensor]:
        """Yield the filled part of each block, and let go of it."""
        if self._room:
            self._blocks[-1] = self._blocks[-1][: -self._room]
            self._room = 0
        while self._blocks:
            yield self._blocks.pop(0)

    def _spill(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)  # what maps the file that was there keeps it
        self._open("w+b")
        self.is_on_disk = True
        self._joined = None
        for block in self._take_blocks():
            self._budget.left += block.nbytes
            self._write(block)

    def _open(self, mode: str) -> FileIO:
        self._file = FileIO(self._path, mode)
        weakref.finalize(self, self._file.close)
        return self._file

    def _write(self, rows: Tensor) -> None:
        assert self._file is not None
        self._file.seek(0, os.SEEK_END)
        left = _bytes_of(rows.contiguous())
        while len(left):
            left = left[self._file.write(left) :]

    def tensor(self) -> Tensor:
        """Return all rows (N, *shape) as one tensor; on disk, a mapping of the file."""
        if self._joined is None:
            if not self._length:
                raise DataError(f"The cache of {self.name!r} is empty: the loader gave no images.")
            self._joined = self._map() if self.is_on_disk else self._join()
        return self._joined

    def _join(self) -> Tensor:
        # Block by block, each freed once it is copied: memory peaks one block above the rows, not at twice their size.
        if len(self._blocks) == 1 and not self._room:
            return self._blocks[0]
        joined = torch.empty(self._length, *self.shape, dtype=self.dtype)
        start = 0
        for block in self._take_blocks():
            joined[start : start + len(block)] = block
            start += len(block)
        self._blocks = [joined]
        return joined

    def _map(self) -> Tensor:
        assert self._file is not None
        # Writable, since torch wants it so; nothing here writes to it.
        mapping = mmap.mmap(self._file.fileno(), self._length * self.row_bytes)
        if hasattr(mmap, "MADV_RANDOM") and self.row_bytes <= SMALL_ROW and 2 * len(mapping) > _physical_memory():
            # Small rows, in random order, from a file that does not stay in memory: what is read ahead only evicts
            # others.
            mapping.madvise(mmap.MADV_RANDOM)
        return torch.frombuffer(mapping, dtype=self.dtype).view(self._length, *self.shape)

    def close(self) -> dict[str, Any]:
        """Put all rows on disk and return what `reopen` needs."""
        if not self.is_on_disk:
            self._spill()
        return {
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "rows": self._length,
        }

    def discard(self) -> None:
        """Forget all rows, and give their memory back to the budget."""
        self._joined = None
        self._budget.left += sum(block.nbytes for block in self._take_blocks())
        self._length = 0

    def reopen(self, description: dict[str, Any], *, is_part: bool = False) -> None:
        """Open the file that `close` left.

        Args:
            description: What `close` returned.
            is_part: Rows may have been added since; they are cut off.

        Raises:
            OSError: It is gone.
            ValueError: It does not have the size it should have.
        """
        self.shape, self._length = tuple(description["shape"]), int(description["rows"])
        self.dtype = getattr(torch, description["dtype"])
        file = self._open("r+b")
        self.is_on_disk = True
        wanted, found = self._length * self.row_bytes, os.fstat(file.fileno()).st_size
        if is_part and found > wanted:
            file.truncate(wanted)
            found = wanted
        if found != wanted:
            raise ValueError(f"{self._path} has {found} bytes where {wanted} belong")

    def rows(self, index: Tensor) -> Tensor:
        """Return the rows at `index` (B,), in its order, as a tensor of its own."""
        return self.tensor()[index]

    def span(self, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop`, without the latter, as a tensor of its own."""
        if self._file is None:
            return self.tensor()[start:stop].clone()
        # Read, not mapped: the system reads ahead, whatever was advised for the mapping.
        count = max(0, min(stop, self._length) - start)
        rows = torch.empty(count, *self.shape, dtype=self.dtype)
        self._file.seek(start * self.row_bytes)
        left = _bytes_of(rows)
        while len(left):
            read = self._file.readinto(left)
            if not read:
                raise DataError(f"{self._path} was cut short while it was in use. Resume the run, or start it anew.")
            left = left[read:]
        return rows

    def __len__(self) -> int:
        return self._length


def joined_rows(columns: Sequence[Column], index: Tensor) -> Tensor:
    """Return the rows `index` (B,) of several columns as one, the rows of each numbered on from the one before.

    >>> first, second = Cache(), Cache()
    >>> first.append(z=torch.zeros(2, 1))
    >>> second.append(z=torch.ones(3, 1))
    >>> joined_rows([first["z"], second["z"]], torch.tensor([4, 0, 2])).flatten().tolist()
    [1.0, 0.0, 1.0]
    """
    first = columns[0]
    if len(columns) == 1 or not bool((index >= len(first)).any()):
        return first.rows(index)
    out = torch.empty(len(index), *first.shape, dtype=first.dtype)
    start = 0
    for column in columns:
        inside = ((index >= start) & (index < start + len(column))).nonzero()[:, 0]
        out[inside] = column.rows(index[inside] - start)
        start += len(column)
    return out


def _bytes_of(rows: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU."""
    return rows.view(-1).view(torch.uint8).numpy().data


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Cache:
    """Columns of equal length: "images" (uint8), "z", "prediction", later "mean" and "std".

    Args:
        directory: Where columns go that do not fit `budget`; a temporary one, removed with the cache, when None.
        budget: Bytes kept in memory, or a `Budget` shared with other caches.

    >>> cache = Cache()
    >>> cache.append(z=torch.zeros(2, 3), mean=torch.ones(2, 4))
    >>> len(cache), sorted(cache.names())
    (2, ['mean', 'z'])
    """

    def __init__(self, directory: Path | None = None, budget: int | Budget = DEFAULT_BUDGET) -> None:
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix="posthoc-inn-"))
            weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        self.directory = directory
        self._budget = budget if isinstance(budget, Budget) else Budget(budget)
        self._columns: dict[str, Column] = {}

    def append(self, **rows: Tensor) -> None:
        """Add rows to the named columns, the same number to each."""
        lengths = {k: len(v) for k, v in rows.items()}
        if len(set(lengths.values())) > 1:
            raise ShapeError(f"Columns of a cache grow together; got {lengths} rows.")
        for name, value in rows.items():
            if name not in self._columns:
                self._columns[name] = Column(name, self._budget, self.directory)
            self._columns[name].append(value)

    def save(self, fingerprint: str) -> None:
        """Leave the cache on disk, complete, so that a resumed run reads it instead of the images."""
        self._write_index(INDEX, fingerprint)

    def commit(self, fingerprint: str) -> None:
        """Leave the rows so far on disk, so that a run that is killed goes on after them; more can be appended."""
        self._write_index(PART, fingerprint)

    def _write_index(self, name: str, fingerprint: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        index = {
            "fingerprint": fingerprint,
            "columns": {name: column.close() for name, column in self._columns.items()},
        }
        replace_file(self.directory / name, json.dumps(index))

    def restore(self, fingerprint: str) -> bool:
        """Map what `save` left here; return False when there is nothing complete of this fingerprint."""
        return self._read_index(INDEX, fingerprint)

    def restore_part(self, fingerprint: str) -> bool:
        """Map what `commit` left here, so that it can be added to; return False when there is nothing to go on from."""
        return self._read_index(PART, fingerprint)

    def _read_index(self, file: str, fingerprint: str) -> bool:
        found: dict[str, Column] = {}
        try:
            index = json.loads((self.directory / file).read_text(encoding="utf-8"))
            if index["fingerprint"] != fingerprint:
                return False
            for name, description in index["columns"].items():
                found[name] = Column(name, self._budget, self.directory)
                found[name].reopen(description, is_part=file == PART)
            if len({len(column) for column in found.values()}) > 1:
                return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False  # nothing, or what was left by a run that was killed: it is read anew
        self._columns = found
        return True

    def remove(self) -> None:
        """Remove what is on disk; columns that are open can still be read."""
        with contextlib.suppress(OSError):
            # First, so that a run killed in between does not find half a cache that calls itself complete.
            for name in (INDEX, PART):
                (self.directory / name).unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def digest(self, *names: str) -> str:
        """Return a digest of all values of the named columns."""
        digest = hashlib.sha256()
        for parts in self.batches(1024, *names):
            for part in parts:
                digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
                digest.update(_bytes_of(part.contiguous()))
        return digest.hexdigest()[:32]

    def __getitem__(self, name: str) -> Column:
        try:
            return self._columns[name]
        except KeyError:
            raise DataError(f"The cache has no {name!r}; it has {', '.join(self.names()) or 'nothing yet'}.") from None

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def drop(self, name: str) -> None:
        """Forget a column, and give its memory back to the budget."""
        if name in self._columns:
            self._columns.pop(name).discard()

    def names(self) -> list[str]:
        """Return the columns' names."""
        return list(self._columns)

    def batches(self, size: int, *names: str) -> Iterator[tuple[Tensor, ...]]:
        """Yield the named columns in order, `size` rows at a time."""
        for start in range(0, len(self), size):
            yield tuple(self[name].span(start, start + size) for name in names)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, wherever they are."""
        return sum(len(c) * c.row_bytes for c in self._columns.values())

    @property
    def is_on_disk(self) -> bool:
        """Whether any column went to disk."""
        return any(c.is_on_disk for c in self._columns.values())

    def __len__(self) -> int:
        return max((len(c) for c in self._columns.values()), default=0)


def pixels(images: Tensor) -> Tensor:
    """Return canonical images (B, C, H, W) in [0, 1] as uint8, the form they are cached in."""
    return images.clamp(0, 1).mul(255).round_().to(torch.uint8)


def unit(images: Tensor) -> Tensor:
    """Return cached images (B, C, H, W) as float32 in [0, 1]."""
    return images.float().div_(255)
