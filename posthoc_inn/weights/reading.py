"""Reads weights of the explained model from a local file, never running code from it; loads them strictly.

safetensors files, and PyTorch's own through ``torch.load(weights_only=True)``; there is no switch to relax
that.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from posthoc_inn.errors import DataError, listed, shown
from posthoc_inn.generators import lent_generators
from posthoc_inn.weights.fingerprint import without_wrappers
from posthoc_inn.weights.fitting import load_into, matched
from posthoc_inn.weights.scanning import TooMuchError, check_pickles

SAFETENSORS = (".safetensors",)
TORCH_FILES = (".pth", ".pt", ".th", ".ckpt", ".tar", ".bin")
SUFFIXES = (*SAFETENSORS, *TORCH_FILES)

_CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net_state_dict",
    "net",
    "network",
    "weights",
)
"""Keys under which training scripts keep the weights beside optimizer and epoch."""
_PROBE_CLASSES = 1009
"""A prime that is no layer's width, so that shapes containing it follow the number of classes."""

_ZIP = b"PK\x03\x04"
_ARCHIVES = (("tar", 257, b"ustar"), ("gzip", 0, b"\x1f\x8b"), ("bzip2", 0, b"BZh"), ("xz", 0, b"\xfd7zXZ"))
"""Name, position and bytes that tell archives which people pack files of weights into."""
_GROWTH, _SLACK = 4, 16 * 2**20
"""A compressed file may unpack to this many times its size, and so many bytes more."""
_OBJECTS = 64 * 2**20
"""Bytes that a file's pickled objects may take beyond that."""


def is_weights_file(weights: str) -> bool:
    """Say whether `weights` means a local file, rather than the name of published weights.

    >>> is_weights_file("resnet.safetensors"), is_weights_file("./latest"), is_weights_file("IMAGENET1K_V1")
    (True, True, False)
    """
    return Path(weights).suffix.lower() in SUFFIXES or "/" in weights or "\\" in weights


@contextmanager
def seeded_init(seed: int = 0) -> Iterator[None]:
    """Draw the initial weights of networks built on the CPU in the block from `seed`, not globally.

    >>> with seeded_init(): a = nn.Linear(2, 2)
    >>> with seeded_init(): b = nn.Linear(2, 2)
    >>> bool((a.weight == b.weight).all())
    True
    """
    with lent_generators(seed):
        yield


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Read a file of weights: dotted name -> tensor on the CPU.

    Weights nested under a usual key ("state_dict", "model", ...) are found; the prefixes that DataParallel
    and torch.compile put before every name are taken off.

    Args:
        path: A .safetensors file, or one saved by PyTorch (.pth, .pt, .th, .ckpt, .pth.tar, .bin).

    Raises:
        DataError: The file is missing, cut short, holds code, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        what = "a directory" if path.is_dir() else "missing"
        raise DataError(f"The weights file {path} is {what}. Pass a {_one_of(SUFFIXES)} file.")
    content: Any = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    tensors = _find_tensors(content, path)
    _check_stated(tensors, path)
    return without_wrappers(tensors)


def load_weights(model: nn.Module, path: str | Path, *, rename: Callable[[str], str] | None = None) -> nn.Module:
    """Load a file of weights into `model`, strictly; where anything does not fit, the model stays as it was.

    Args:
        model: Network to be filled, in place.
        path: See `load_state`.
        rename: Maps a name in the file to the model's.

    Returns:
        The same model.

    Raises:
        DataError: The file cannot be read, or names or shapes differ; the message lists which.
    """
    state = load_state(path)
    if rename is not None:
        state = {rename(name): tensor for name, tensor in state.items()}
    load_into(model, state, source=str(path))
    return model


def infer_num_classes(build: Callable[[int], nn.Module], state: Mapping[str, Tensor]) -> int | None:
    """Return how many classes the weights are for, or None where they do not tell.

    Args:
        build: Builds the network for a number of classes; it is called once, without allocating where
            possible.
        state: Dotted name -> tensor.
    """
    try:
        with torch.device("meta"):
            probe = build(_PROBE_CLASSES)
    except (NotImplementedError, RuntimeError):
        # Some constructors compute with the values they allocate.
        with seeded_init():
            probe = build(_PROBE_CLASSES)
    wanted = probe.state_dict()
    state = matched(state, wanted)
    found = {
        state[name].shape[axis]
        for name, tensor in wanted.items()
        if name in state and state[name].ndim == tensor.ndim
        for axis, size in enumerate(tensor.shape)
        if size == _PROBE_CLASSES
    }
    return found.pop() if len(found) == 1 else None


def _is_safetensors(path: Path) -> bool:
    """Say which of the two formats a file has, by how it starts; where that tells nothing, by its suffix.

    Raises:
        DataError: It has neither format.
    """
    with path.open("rb") as file:
        head = file.read(512)
    packed = next((name for name, at, magic in _ARCHIVES if head[at : at + len(magic)] == magic), None)
    if packed:
        raise DataError(f"{path} is a {packed} archive. Unpack it, and pass the file of weights that is in it.")
    if head[8:9] == b"{":
        return True
    if head[:4] == _ZIP or head[:1] == b"\x80":
        return False
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"Weights are read from {_one_of(SUFFIXES)} files, got {path}.")
    return path.suffix.lower() in SAFETENSORS


def _check_sizes(path: Path) -> None:
    """Refuse a zip whose entries would take far more memory than the file's size.

    torch.save does not compress, so that a file that unpacks to much more was made to fill the memory.
    """
    with path.open("rb") as file:
        if file.read(4) != _ZIP:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            stated = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError, struct.error) as error:
        raise _unreadable(path, error) from error
    size = path.stat().st_size
    if stated > _GROWTH * size + _SLACK:
        raise DataError(
            f"{path} has {size} bytes but would unpack to {stated}: it is compressed as no file of weights is, so it "
            "is not loaded."
        )


def _check_stated(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that repeat a few stored values (by strides of 0) to far more than the file holds."""
    different = {id(tensor): tensor for tensor in tensors.values() if not tensor.is_meta and not tensor.is_nested}
    stated = sum(t.numel() * t.element_size() for t in different.values() if t.layout == torch.strided)
    if stated > _GROWTH * path.stat().st_size + _OBJECTS:
        raise _made_to_fill(path, f"its tensors would take {stated} bytes")


def _made_to_fill(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} has {path.stat().st_size} bytes, but {why}: no file of weights is like that, so it is not loaded."
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a readable safetensors file ({_one_line(error)}). It may have been cut short, or "
            "be another kind of file under this name."
        ) from error


def _read_torch(path: Path) -> Any:
    _check_sizes(path)
    try:
        check_pickles(path, _GROWTH * path.stat().st_size + _OBJECTS)
        # The open file, since torch.load chooses the format of a path by its suffix.
        with warnings.catch_warnings(), path.open("rb") as file:
            # torch warns of files it then refuses, which is told below.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except TooMuchError as error:
        raise _made_to_fill(path, str(error)) from error
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        if name is None and not _is_plain_pickle(path):
            raise _unreadable(path, error) from error
        what = f"it names {shown(name[1], 80)}" if name else "it is a plain pickle"
        raise DataError(
            f"{path} holds more than weights ({what}): loading that could run code, so it is not loaded. "
            "Where you trust it, load it yourself once and save its state_dict with "
            "safetensors.torch.save_file; then pass that file."
        ) from error
    except Exception as error:
        # torch.load raises whatever its readers do (RuntimeError, EOFError, IndexError, ...) over damage.
        if "TorchScript" in str(error):
            raise DataError(
                f"{path} is a TorchScript archive, which is a program; it is not loaded. Save its state_dict "
                "with safetensors.torch.save_file, and pass that file."
            ) from error
        raise _unreadable(path, error) from error


def _is_plain_pickle(path: Path) -> bool:
    """Say whether the file starts like a pickle of a protocol that torch.save does not write."""
    with path.open("rb") as file:
        head = file.read(2)
    return len(head) == 2 and head[0] == 0x80 and 2 < head[1] < 16


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"{path} cannot be read as weights ({_one_line(error)}). It may have been cut short: compare its "
        f"size ({path.stat().st_size} bytes) with the original's."
    )


def _find_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(4):
        if not isinstance(content, Mapping):
            break
        inner = [k for k in _CONTAINERS if isinstance(content.get(k), Mapping)]
        if not inner:
            # Numbers and texts (an epoch, a module's extra state) may lie among the tensors.
            tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
            if not tensors:
                break
            return tensors
        content = content[inner[0]]
    if isinstance(content, Mapping):
        got = "a dict with the keys " + (listed([repr(k) for k in content], 8, 40) or "(none)")
    else:
        got = type(content).__name__
    raise DataError(
        f"{path} holds no weights: found {got}. Accepted is a dict of tensors (a state_dict), also one level "
        f"down under {', '.join(map(repr, _CONTAINERS))}."
    )


def _one_of(suffixes: tuple[str, ...]) -> str:
    return ", ".join(suffixes[:-1]) + " or " + suffixes[-1]


def _one_line(error: BaseException) -> str:
    # torch's advice on how to load the file all the same stays out.
    text = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())
    return shown(text.partition(" Check the documentation")[0], 160) or type(error).__name__
