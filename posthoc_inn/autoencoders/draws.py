"""Draws of a generator: a data set of the pictures that it makes, each known with its latent, and made only once."""

from __future__ import annotations

import hashlib
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from posthoc_inn.autoencoders.workers import Workers, as_bytes
from posthoc_inn.config import ImageSpec
from posthoc_inn.errors import ConfigError, DataError, ShapeError
from posthoc_inn.files import replace_file, writing
from posthoc_inn.images import apply_spec

FEW = 16
"""Pictures made at a time at the most, and those that are looked at before a fit starts."""
AT_ONCE = 64 * 2**20
"""Bytes of pictures, as floats, that are made at a time."""
MEMORY = 256 * 2**20
"""Bytes of pictures that a `Draws` without a directory keeps."""
SIDE = 16
"""Pixels of a side of the thumbnails by which a picture is known again."""
TOLERANCE = 1.5
"""Steps of 8 bits by which thumbnails of one picture may differ: it may have been a file in between."""
MOST = 50_000
"""Pictures that are known again."""


class Known:
    """Pictures that a generator has made, known again by their thumbnails, with their latents."""

    def __init__(self) -> None:
        self._rows: dict[bytes, tuple[Tensor, Tensor]] = {}
        self._joined: tuple[Tensor, Tensor] | None = None

    def add(self, pictures: Tensor, latents: Tensor) -> None:
        """Remember pictures (B, C, H, W) in [0, 1] at the size they are shown at, and latents (B, D)."""
        if len(self._rows) >= MOST:
            return
        for thumb, latent in zip(_thumbnails(pictures), latents.cpu().float(), strict=True):
            self._rows.setdefault(latent.numpy().tobytes(), (thumb, latent))
        self._joined = None

    def find(self, pictures: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return latents (B, D), or None before any is known, and which pictures (B,) they are of."""
        none = torch.zeros(len(pictures), dtype=torch.bool)
        if not self._rows:
            return None, none
        if self._joined is None:
            rows = list(self._rows.values())
            self._joined = torch.stack([row[0] for row in rows]).float(), torch.stack([row[1] for row in rows])
        thumbs, latents = self._joined
        wanted = _thumbnails(pictures).float()
        if wanted.shape[1] != thumbs.shape[1]:
            return latents[:1].expand(len(pictures), -1), none
        # Row by row of the wanted: there are few of them, and many known.
        near = [(thumbs - row).abs().amax(1).min(0) for row in wanted]
        found = torch.tensor([float(distance) <= TOLERANCE for distance, _ in near])
        return latents[torch.tensor([int(index) for _, index in near])], found


def _thumbnails(pictures: Tensor) -> Tensor:
    small = F.interpolate(pictures.detach().float().cpu(), min(SIDE, pictures.shape[-1]), mode="area")
    return small.clamp(0, 1).mul(255).round_().to(torch.uint8).flatten(1)


class Generates(Protocol):
    """What `Draws` asks of a generator."""

    known: Known

    def native(self, latents: Tensor) -> Tensor:
        """Return pictures (B, C, H, W) in [0, 1], at the generator's own size."""

    def fitted(self, pictures: Tensor) -> Tensor:
        """Return pictures at the size they are shown at."""

    @property
    def native_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its pictures."""


class Draws(Dataset[Any]):
    """Pictures of a generator, a map-style data set: index -> picture (C, H, W) in [0, 1], at the generator's own size.

    A picture is a function of seed and index alone, and in steps of 8 bits, as its file would be. `generator.draws(n)`
    makes one.

    Args:
        generator: Makes the pictures.
        latents: What they are made from, (N, D).
        keep: Directory where pictures are kept, so that several fits, and a judge, make each only once; without, those
            that fit in 256 MiB stay in memory.
        labels: Name -> values, one a draw; they come with the pictures.
        workers: Processes that make the pictures, each with a copy of the generator.

    Attributes:
        latents: (N, D).
        made: How many pictures were made, rather than found where they are kept.
        seconds: How long that took.
    """

    few = FEW
    """Tells `BatchSource` that images cost much, and how many are looked at."""

    def __init__(
        self,
        generator: Generates,
        latents: Tensor,
        *,
        keep: str | Path | None = None,
        labels: Mapping[str, Any] | None = None,
        workers: int = 1,
    ) -> None:
        self.generator, self.latents, self.labels = generator, latents, labels
        self._workers = Workers(generator.native, workers)
        self.keep = None if keep is None else Path(keep)
        self.made, self.seconds = 0, 0.0
        self._memory: dict[int, Tensor] = {}
        self._room = MEMORY
        self._store: _Store | None = None
        self._facts: tuple[Any, ...] | None = None
        lengths = {name: len(values) for name, values in (labels or {}).items()}
        if any(length != len(latents) for length in lengths.values()):
            raise DataError(f"Labels have one value a draw, {len(latents):,}; got {lengths}.")

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def together(self) -> int:
        """Pictures that are made, and read, at a time: large ones would fill the memory."""
        return max(1, min(FEW, AT_ONCE // (4 * math.prod(self.generator.native_shape))))

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:
        """Return several items, pictures that are not there yet made together."""
        pictures = list(self.images(rows))
        if self.labels is None:
            return pictures
        return [(p, {k: v[i] for k, v in self.labels.items()}) for p, i in zip(pictures, rows, strict=True)]

    def with_labels(self, labels: Mapping[str, Any]) -> Draws:
        """Return the same draws with labels, name -> values (N,): `concepts="labels"` learns them."""
        found = Draws(self.generator, self.latents, keep=self.keep, labels=labels)
        found._memory, found._room, found._workers = self._memory, self._room, self._workers
        return found

    @torch.no_grad()
    def images(self, index: Sequence[int] | Tensor) -> Tensor:
        """Return the pictures at `index` (B,): float32 (B, C, H, W) in [0, 1]."""
        rows = [int(i) for i in index]
        if any(not 0 <= i < len(self) for i in rows):
            raise DataError(f"There are draws 0 to {len(self) - 1:,}, got {rows[:8]}.")
        if self.keep is not None and self._store is None:
            self._store = _Store(self.keep, self.latents, self.generator.native_shape)
        had = {i: found for i in dict.fromkeys(rows) if (found := self._find(i)) is not None}
        missing = [i for i in dict.fromkeys(rows) if i not in had]
        if missing and self._workers.count > 1:
            # Before the clock runs: this is waited for once.
            self._workers.start()
        for start in range(0, len(missing), self.together):
            part = missing[start : start + self.together]
            started = time.perf_counter()
            pictures = self._make(self.latents[part])
            self.seconds, self.made = self.seconds + time.perf_counter() - started, self.made + len(part)
            for i, picture in zip(part, pictures, strict=True):
                had[i] = picture
                self._keep(i, picture)
        found = torch.stack([had[i] for i in rows]).float().div_(255)
        self.generator.known.add(self.generator.fitted(found), self.latents[rows])
        return found

    def _make(self, latents: Tensor) -> Tensor:
        if self._workers.count > 1 and len(latents) > 1:
            return self._workers(latents)
        return as_bytes(self.generator.native(latents).cpu())

    def _find(self, index: int) -> Tensor | None:
        return self._memory.get(index) if self._store is None else self._store.find(index)

    def _keep(self, index: int, picture: Tensor) -> None:
        if self._store is not None:
            self._store.put(index, picture)
        elif picture.nbytes <= self._room:
            self._memory[index] = picture
            self._room -= picture.nbytes

    def seconds_each(self) -> float:
        """Return the seconds that a picture takes; of a few made now, where none was made yet."""
        if not self.made and self.keep is None:
            count = max(2, self._workers.count)
            self.images(range(min(count, len(self))))
        return self.seconds / max(1, self.made)

    def identifying(self) -> tuple[Any, ...]:
        """Return what tells these draws from others: all latents, and two of the pictures."""
        if self._facts is None:
            self._facts = (self.latents, self.images(range(min(2, len(self)))))
        return self._facts


class _Store:
    """Pictures in one file, a slot each, beside one with a byte each that says whether the slot is full."""

    def __init__(self, directory: Path, latents: Tensor, shape: tuple[int, int, int]) -> None:
        digest = hashlib.sha256(f"{shape}".encode() + latents.numpy().tobytes()).hexdigest()
        advice = "Choose another directory for keep=, or make room."
        with writing(directory, advice):
            directory.mkdir(parents=True, exist_ok=True)
            key = directory / "draws.sha256"
            if not key.exists():
                if any(directory.iterdir()):
                    raise ConfigError(f"keep={str(directory)!r} holds other files, and no draws. {advice}")
                replace_file(key, digest)
            elif key.read_text(encoding="utf-8") != digest:
                raise ConfigError(
                    f"keep={str(directory)!r} holds pictures of other draws: other latents, or another size. Choose "
                    "another directory, or remove it."
                )
            self._path, self._advice = directory, advice
            self._shape, self._size = shape, math.prod(shape)
            self._pictures = _opened(directory / "pictures.raw", len(latents) * self._size)
            self._full = _opened(directory / "made.raw", len(latents))
            for file in (self._pictures, self._full):
                weakref.finalize(self, file.close)
            self._is_full = bytearray((directory / "made.raw").read_bytes())

    def find(self, index: int) -> Tensor | None:
        if not self._is_full[index]:
            return None
        self._pictures.seek(index * self._size)
        return torch.frombuffer(bytearray(self._pictures.read(self._size)), dtype=torch.uint8).view(self._shape)

    def put(self, index: int, picture: Tensor) -> None:
        with writing(self._path, self._advice):
            self._pictures.seek(index * self._size)
            left = memoryview(picture.contiguous().numpy().tobytes())
            while len(left):
                left = left[self._pictures.write(left) :]
            # Last: a killed process leaves no slot that only says it is full.
            self._full.seek(index)
            self._full.write(b"\1")
        self._is_full[index] = 1


def _opened(path: Path, size: int) -> FileIO:
    """Open a file of `size` bytes, unbuffered, which is made of zeros where it is not there."""
    if not path.exists():
        with open(path, "wb") as file:
            file.truncate(size)
    return FileIO(path, "r+b")


def draws_of(data: Any) -> tuple[Draws, Tensor] | None:
    """Return the draws behind a part of them, and which of them (N,) it holds; None for other data.

    >>> draws_of(torch.rand(2, 3, 8, 8)) is None
    True
    """
    index: Tensor | None = None
    while isinstance(data, Subset):
        own = torch.as_tensor(np.asarray(data.indices)).long().reshape(-1)
        index = own if index is None else own[index]
        data = data.dataset
    if not isinstance(data, Draws):
        return None
    return data, torch.arange(len(data)) if index is None else index


def judged(
    draws: Draws, judge: Callable[[Tensor], Any], *, spec: ImageSpec | None = None, batch_size: int | None = None
) -> Tensor:
    """Return what a judge says of each draw, a column for `concepts={"name": column}` or `AttributeSource`.

    Args:
        draws: Whose pictures are judged; with `keep=` they are made only once for this and for fits.
        judge: A network or any callable: pictures (B, C, H, W) -> values (B,), or scores of classes (B, K), of which
            the best becomes the value.
        spec: How the judge wants its images; canonical pictures in [0, 1] by default.
        batch_size: Pictures at a time; by default as many as the memory is sure to hold.

    Returns:
        (N,): whole numbers are categories, floating-point values continuous.

    Raises:
        ShapeError: The judge gives not one row a picture.
    """
    columns = []
    with _evaluating(judge), torch.no_grad():
        for part in _parts(draws, batch_size or draws.together):
            found = torch.as_tensor(judge(part if spec is None else apply_spec(part, spec))).detach().cpu()
            if found.shape[:1] != (len(part),) or found.ndim > 2:
                raise ShapeError(
                    f"The judge must give values (B,) or scores (B, K) for {len(part)} pictures, got "
                    f"{tuple(found.shape)}."
                )
            columns.append(found.argmax(1) if found.ndim == 2 and found.shape[1] > 1 else found.reshape(len(part)))
    return torch.cat(columns)


def _parts(draws: Draws, size: int) -> Iterator[Tensor]:
    for start in range(0, len(draws), size):
        yield draws.images(range(start, min(start + size, len(draws))))


class _evaluating:
    """A judge's modules in evaluation mode, each as it was afterwards."""

    def __init__(self, judge: Any) -> None:
        self._flags = {m: m.training for m in judge.modules()} if isinstance(judge, nn.Module) else {}

    def __enter__(self) -> None:
        for module in self._flags:
            module.training = False

    def __exit__(self, *error: object) -> None:
        for module, flag in self._flags.items():
            module.training = flag
