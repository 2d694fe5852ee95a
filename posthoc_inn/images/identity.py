"""Recognises images: a digest that tells other data from the same, without reading all of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from posthoc_inn.images.batches import BatchSource
from posthoc_inn.images.randomness import PrivateRandomness
from posthoc_inn.images.splitting import StreamPart

SOME = 32
"""Images that are read of data that is not in memory."""
WHOLE = 256 * 2**20
"""Bytes of a tensor that are all counted; of a larger one, as many, spread evenly."""


def data_digest(source: BatchSource) -> str:
    """Return a digest of the images of `source`: which they are, and in which order they come.

    Tensors in memory count with all their values, files with name and size. Of any other data set some images are
    read, spread evenly; of a stream the first. An image that is not the same when it is read twice does not count.

    >>> images = torch.rand(6, 3, 8, 8)
    >>> data_digest(BatchSource(images)) == data_digest(BatchSource(images.clone()))
    True
    >>> data_digest(BatchSource(images)) == data_digest(BatchSource(images.flip(0)))
    False
    """
    digest = hashlib.sha256()
    _count(digest, (source.length, source.limit, source.seed, source.image_shape, str(source.source_dtype)))
    for fact in _facts(source):
        _count(digest, fact)
    return digest.hexdigest()[:32]


def _facts(source: BatchSource) -> Iterator[Any]:
    data = source.data
    if isinstance(data, DataLoader):
        yield type(data.sampler).__name__, data.batch_size, data.drop_last
        data = data.dataset
    while isinstance(data, Subset):
        yield np.asarray(data.indices)
        data = data.dataset
    if isinstance(data, StreamPart):
        yield data._every, data._is_training
        data = data._source.data
    if isinstance(data, (Tensor, np.ndarray, Mapping)):
        yield data
    elif isinstance(data, TensorDataset):
        yield data.tensors
    elif callable(getattr(data, "identifying", None)):
        yield from data.identifying()
    else:
        yield type(data).__name__
        yield from _files(data)
        yield from _read(source, data)


def _files(data: Any) -> Iterator[tuple[str, int]]:
    """Yield names and sizes of the files that a data set of files lists, as torchvision's do."""
    listed = next((found for name in ("samples", "imgs", "files", "paths") if (found := getattr(data, name, None))), ())
    if not isinstance(listed, (list, tuple)):
        return
    for entry in listed:
        path = entry[0] if isinstance(entry, (list, tuple)) and entry else entry
        if not isinstance(path, (str, Path)):
            return
        try:
            yield Path(path).name, os.stat(path).st_size
        except (OSError, ValueError):
            return


def _read(source: BatchSource, data: Any) -> Iterator[Any]:
    """Yield some images as the data gives them, each only if it is the same when it is read again."""
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        first, again = (next(iter(source.batches(draw=0)))["images"] for _ in range(2))
        yield from [first] if torch.equal(first, again) else []
        return
    for index in range(0, len(data), max(1, len(data) // SOME)):
        found = [_item(data, index) for _ in range(2)]
        if found[0] is not None and found[0] == found[1]:
            yield found[0]


def _item(data: Any, index: int) -> str | None:
    digest = hashlib.sha256()
    try:
        with PrivateRandomness(index):
            _count(digest, data[index])
    except Exception:  # a stranger's data set; what is wrong with it shows when it is read
        return None
    return digest.hexdigest()


def _count(digest: Any, value: Any) -> None:
    """Add a value to a digest: its kind, its shape and what it holds."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"{value.dtype}{value.shape}".encode())
        rows = value.reshape(len(value), -1) if value.ndim else value.reshape(1, 1)
        step = max(1, -(-value.nbytes // WHOLE))
        digest.update(np.ascontiguousarray(rows[::step]).data.cast("B") if value.size else b"")
    elif isinstance(value, Mapping):
        _count(digest, sorted(value.items(), key=lambda item: str(item[0])))
    elif isinstance(value, (str, bytes, int, float, type(None))):
        digest.update(f"{type(value).__name__}{value!r}".encode("utf-8", "surrogatepass"))
    elif isinstance(value, Iterable) and not hasattr(value, "tobytes"):
        for part in value:
            digest.update(b"(")
            _count(digest, part)
    elif callable(getattr(value, "tobytes", None)):  # Pillow's images
        digest.update(f"{getattr(value, 'size', '')}".encode() + value.tobytes())
    else:
        digest.update(type(value).__name__.encode())
