"""What goes into files: plain data that JSON can hold, and content that replaces the old one at once."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posthoc_inn.names import encodable


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
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(encodable(content).encode() if isinstance(content, str) else content)
    os.replace(partial, path)
