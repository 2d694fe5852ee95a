"""safetensors files, read by hand: the header is checked against what is expected before anything is allocated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from posthoc_inn.bundle.members import BUNDLE_FILE, LIMITS, open_member, parse_json, read_exactly, sha256
from posthoc_inn.bundle.record import MemberRecord
from posthoc_inn.errors import BundleError, listed, shown

MAX_HEADER = LIMITS[BUNDLE_FILE]
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_PICKLE = re.compile(rb"PK\x03\x04|PK\x05\x06|\x80[\x02-\x05]|[\]}]q\x00|\([dl]p|c[\w.]+\n")
"""How a zip archive (torch.save), a pickle (its older format) and pickles of protocols 1 and 0 begin."""


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.shape}"


def specs_of(module: nn.Module, prefix: str = "") -> dict[str, TensorSpec]:
    """Return type and shape of all that a module saves; what is floating-point is stored as float32."""
    return {
        prefix + name: TensorSpec(torch.float32 if t.is_floating_point() else t.dtype, tuple(t.shape))
        for name, t in module.state_dict().items()
        if isinstance(t, Tensor)
    }


class TensorFile:
    """An open safetensors member whose header was checked; `read` gives the tensors.

    Args:
        file: Open for reading, at its start.
        size: Its bytes.
        record: What bundle.json says of it.
        directory: The bundle, for messages.
        name: Its name, for messages.

    Raises:
        BundleError: It is a pickle, cut short, or no safetensors file.
    """

    def __init__(self, file: BinaryIO, size: int, record: MemberRecord, directory: Path, name: str) -> None:
        self.file, self.record, self.directory, self.name = file, record, directory, name
        self.what = f"{name} of the bundle {directory}"
        first = bytes(read_exactly(file, min(size, 8), directory, name))
        length = int.from_bytes(first, "little") if len(first) == 8 else 0
        is_length = 2 <= length <= min(MAX_HEADER, size - 8)
        # A length of 640 begins like a pickle, too; no pickle is a plausible length.
        if not is_length and _PICKLE.match(first):
            raise BundleError(
                f"{self.what} is a pickle (as torch.save writes) under another name. Loading one can run code, so "
                "bundles never hold any; it was not opened. Ask whoever made it for a bundle that Interpreter.save "
                "wrote."
            )
        if size != record.size:
            how = "cut short" if size < record.size else "not the file that was saved"
            raise BundleError(
                f"{self.what} has {size:,} bytes, bundle.json says {record.size:,}: it is {how}. Copy it again."
            )
        if not is_length:
            raise BundleError(f"{self.what} is no safetensors file: its header would have {length:,} bytes.")
        header = read_exactly(file, length, directory, name)
        self._start = first + bytes(header)
        self.data_size = size - len(self._start)
        self._entries = self._parse(parse_json(header, f"the header of {self.what}"))
        self.specs = {tensor: spec for tensor, (spec, _) in self._entries.items()}

    def _parse(self, header: Any) -> dict[str, tuple[TensorSpec, int]]:
        if not isinstance(header, dict):
            raise BundleError(f"The header of {self.what} is no object.")
        header.pop("__metadata__", None)
        entries: dict[str, tuple[TensorSpec, int]] = {}
        spans: list[tuple[int, int]] = []
        for name, entry in header.items():
            spec, start, end = self._entry(name, entry)
            entries[name] = (spec, start)
            spans.append((start, end))
        at = 0
        for start, end in sorted(spans):
            if start != at:
                raise BundleError(f"The tensors of {self.what} overlap or leave holes.")
            at = end
        if at != self.data_size:
            raise BundleError(f"{self.what} holds {self.data_size:,} bytes of tensors, its header describes {at:,}.")
        return entries

    def _entry(self, name: str, entry: Any) -> tuple[TensorSpec, int, int]:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._bad(name)
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            raise self._bad(name)
        for numbers in (shape, offsets):
            if not isinstance(numbers, list) or any(type(n) is not int or not 0 <= n < 1 << 48 for n in numbers):
                raise self._bad(name)
        if len(offsets) != 2 or len(shape) > 8:
            raise self._bad(name)
        spec = TensorSpec(DTYPES[entry["dtype"]], tuple(shape))
        start, end = offsets
        if end - start != spec.size or end > self.data_size or start % spec.dtype.itemsize:
            raise self._bad(name)
        return spec, start, end

    def _bad(self, name: str) -> BundleError:
        return BundleError(f"The header of {self.what} does not describe {shown(repr(name), 100)} properly.")

    def expect(self, expected: Mapping[str, TensorSpec]) -> None:
        """Check that the file holds exactly the `expected` tensors.

        Raises:
            BundleError: Names, shapes or types differ; the message lists which.
        """
        missing = [n for n in expected if n not in self.specs]
        unexpected = [n for n in self.specs if n not in expected]
        differing = [
            f"{n} is {self.specs[n]} in the file, expected {s}"
            for n, s in expected.items()
            if n in self.specs and self.specs[n] != s
        ]
        parts = [
            _listing("missing", missing),
            _listing("unexpected", unexpected),
            _listing("of another shape or type", differing),
        ]
        report = "; ".join(p for p in parts if p)
        if report:
            raise BundleError(f"The tensors of {self.what} are not those that bundle.json describes: {shown(report)}.")

    def read(self) -> dict[str, Tensor]:
        """Read every tensor; they share one buffer.

        Raises:
            BundleError: The digest differs, or a value is NaN, infinite, or none of its type.
        """
        data = read_exactly(self.file, self.data_size, self.directory, self.name)
        found = sha256(self._start, data)
        if found != self.record.sha256:
            raise BundleError(
                f"{self.what} has the sha256 {found[:16]}..., bundle.json says {self.record.sha256[:16]}...: it was "
                "damaged or changed after it was saved. Copy it again."
            )
        tensors = {
            name: torch.frombuffer(data, dtype=spec.dtype, count=math.prod(spec.shape), offset=start).reshape(
                spec.shape
            )
            if spec.size
            else torch.empty(spec.shape, dtype=spec.dtype, device="cpu")
            for name, (spec, start) in self._entries.items()
        }
        broken = [name for name, tensor in tensors.items() if not _is_sound(tensor)]
        if broken:
            raise BundleError(f"{_listing('not finite', broken, 'Values')} in {self.what}: the file is damaged.")
        return tensors


def _is_sound(tensor: Tensor) -> bool:
    if tensor.dtype is torch.bool:
        return bool((tensor.view(torch.uint8) <= 1).all())  # any other byte is no boolean
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _listing(what: str, items: list[str], start: str = "") -> str:
    if not items:
        return ""
    return f"{start} {what}: ".lstrip() + listed(items, 3, 100)


def read_tensors(
    directory: Path, name: str, record: MemberRecord, expected: Mapping[str, TensorSpec] | None = None
) -> dict[str, Tensor]:
    """Read a safetensors member; see `TensorFile` for what is checked.

    Args:
        directory: The bundle.
        name: The member.
        record: What bundle.json says of it.
        expected: Names, types and shapes it must have; None for any.
    """
    with open_member(directory, name) as (file, size):
        tensors = TensorFile(file, size, record, directory, name)
        if expected is not None:
            tensors.expect(expected)
        return tensors.read()
