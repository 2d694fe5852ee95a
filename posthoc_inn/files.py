"""What goes into files: plain data that JSON can hold, and content that replaces the old one at once."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posthoc_inn.errors import DataError
from posthoc_inn.names import encodable

FREE_SPACE = "Make room there, or choose another directory."


def plain(value: Any) -> Any:
    """Return what JSON can hold: keys as text, tuples as lists, figures that are not finite as None.

    What has a `to_dict` becomes what that returns; anything else stays as it is. Text stays true, but for what no
    file can hold.

    >>> plain({"a": (1.0, float("nan")), 2: [float("inf")]})
    {'a': [1.0, None], '2': [None]}
    """
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {encodable(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if callable(getattr(value, "to_dict", None)):
        return value.to_dict()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def replace_file(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) beside `path`, and move it there.

    Raises:
        OSError: The disk refuses; what was at `path` is still there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     replace_file(Path(directory) / "a.txt", "new")
    ...     (Path(directory) / "a.txt").read_bytes()
    b'new'
    """
    partial = partial_of(path)
    partial.write_bytes(encodable(content).encode() if isinstance(content, str) else content)
    os.replace(partial, path)


@contextlib.contextmanager
def writing(path: str | Path, advice: str = FREE_SPACE) -> Iterator[None]:
    """Say in one line, and as what it is, that the disk refuses what is written inside the block.

    A half-written file beside `path`, as `replace_file` makes one, is removed: on a full disk it is in the way.

    Args:
        path: What is being written, for the message.
        advice: What to do.

    Raises:
        DataError: The disk is full or broken, or the directory cannot be written.

    >>> with writing("runs/a"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    ...
    posthoc_inn.errors.DataError: runs/a cannot be written: No space left on device. Make room there, or choose ...
    """
    try:
        yield
    except Exception as error:
        # By its name: importing safetensors here would make everything that writes a file slow to start.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        with contextlib.suppress(OSError):
            partial_of(Path(path)).unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {_reason(error)}. {advice}") from error


def partial_of(path: Path) -> Path:
    """Return where a file is written before it is moved to `path`."""
    return path.with_name(path.name + ".partial")


def _reason(error: Exception) -> str:
    """Return the system's words; safetensors wraps them, as in "I/O error: File too large (os error 27)"."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    found = re.search(r"([^:]+) \(os error \d+\)", str(error))
    return found[1].strip() if found else " ".join(str(error).split())
