"""Files that are replaced at once: whoever reads them finds the old content or the new, never a part."""

from __future__ import annotations

import os
from pathlib import Path


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
