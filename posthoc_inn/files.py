"""What is written to files: replaced at once, so that nobody reads a part of it, and plain, so that JSON holds it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    os.replace(partial, path)


def plain(value: Any) -> Any:
    """Return `value` as JSON gives it back: tuples as lists, keys as text, what is not finite as None.

    What has a `to_dict` of its own (results, configurations) becomes what that returns.

    >>> plain({"a": (1.0, float("nan")), 2: "b"})
    {'a': [1.0, None], '2': 'b'}
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.to_dict() if hasattr(value, "to_dict") else value
