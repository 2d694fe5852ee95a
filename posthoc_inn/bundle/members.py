"""The members of a bundle on disk: a fixed list of regular files of bounded size, strict JSON, digests."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from posthoc_inn.errors import BundleError, shown

BUNDLE_FILE = "bundle.json"
WEIGHTS_FILE = "weights.safetensors"
METRICS_FILE = "metrics.json"
CARD_FILE = "README.md"
MODEL_FILE = "model.safetensors"
MEMBERS = (BUNDLE_FILE, WEIGHTS_FILE, METRICS_FILE, CARD_FILE, MODEL_FILE)
"""Every file a bundle can have; others beside them are neither read nor touched."""
DIGESTED = (WEIGHTS_FILE, METRICS_FILE, MODEL_FILE)
"""Members whose size and digest bundle.json states. The card is for people: it is not read, and may be edited."""

LIMITS = {
    BUNDLE_FILE: 4 << 20,
    METRICS_FILE: 16 << 20,
    WEIGHTS_FILE: 4 << 30,
    MODEL_FILE: 16 << 30,
}
"""Bytes that are read of each member at the most."""


@contextmanager
def open_member(directory: Path, name: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open a member for reading; yields the file and its size in bytes.

    Raises:
        BundleError: It is missing, no regular file (a symbolic link, directory or device), too large, or unreadable.
    """
    path = directory / name
    try:
        # Looked at before it is opened: opening a device or a pipe can block, or do something.
        _check_regular(path.lstat().st_mode, directory, name)
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb")
    except FileNotFoundError:
        raise BundleError(
            f"The bundle {directory} lacks its member {name}: it was copied in part, or damaged. Copy it again, whole."
        ) from None
    except OSError as error:
        raise unreadable(directory, name, error) from error
    with file:
        status = os.fstat(file.fileno())
        _check_regular(status.st_mode, directory, name)
        if status.st_size > LIMITS[name]:
            raise BundleError(
                f"{name} of the bundle {directory} has {status.st_size:,} bytes; more than {LIMITS[name]:,} are not "
                "read."
            )
        yield file, status.st_size


def unreadable(directory: Path, name: str, error: OSError) -> BundleError:
    """Return the error for a member that the system cannot read."""
    return BundleError(f"{name} of the bundle {directory} cannot be read: {error.strerror or error}.")


def _check_regular(mode: int, directory: Path, name: str) -> None:
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a directory"))
        kind = next((text for test, text in kinds if test(mode)), "a device or pipe")
        raise BundleError(
            f"{name} of the bundle {directory} is {kind}; only regular files are read. Copy the file itself."
        )


def read_exactly(file: BinaryIO, count: int, directory: Path, name: str) -> bytearray:
    """Read `count` bytes.

    Raises:
        BundleError: There are fewer, or the system cannot read them.
    """
    data = bytearray(count)
    view, done = memoryview(data), 0
    try:
        while done < count:
            got = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                raise BundleError(f"{name} of the bundle {directory} ends after {done:,} of {count:,} bytes.")
            done += got
    except OSError as error:
        raise unreadable(directory, name, error) from error
    return data


def read_member(directory: Path, name: str) -> bytes:
    """Read a whole member; raises as `open_member` does."""
    with open_member(directory, name) as (file, size):
        return bytes(read_exactly(file, size, directory, name))


def sha256(*parts: bytes | bytearray) -> str:
    """Return the digest of `parts`, joined."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def parse_json(data: bytes | bytearray, what: str) -> Any:
    """Parse JSON, strictly: no NaN or infinity, no key twice, UTF-8 only.

    Args:
        data: The text.
        what: Its name, for messages.

    Raises:
        BundleError: It is not that.

    >>> parse_json(b'{"a": NaN}', "metrics.json")
    Traceback (most recent call last):
    ...
    posthoc_inn.errors.BundleError: metrics.json is not valid JSON: NaN is no number that JSON knows.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("an object has the same key twice")
        return found

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text[:40]} is too large a number")
        return number

    def refuse(text: str) -> float:
        raise ValueError(f"{text} is no number that JSON knows")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_float=finite, parse_constant=refuse)
    except RecursionError:
        raise BundleError(f"{what} is not valid JSON: it is nested too deeply.") from None
    except ValueError as error:
        raise BundleError(f"{what} is not valid JSON: {shown(error, 200)}.") from None


def dump_json(value: Any, name: str) -> bytes:
    """Write JSON; raises BundleError where `value` holds what JSON cannot, or too much of it for `name`."""
    try:
        data = json.dumps(value, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{name} cannot be written: {shown(error, 200)}. Only plain numbers, text, lists go in."
        ) from error
    if len(data) > LIMITS[name]:
        raise BundleError(f"{name} would have {len(data):,} bytes; at most {LIMITS[name]:,} are allowed.")
    return data + b"\n"
