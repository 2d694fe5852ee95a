"""Fits on disks that are too small, resumed once there is room: a tmpfs where root may mount one."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from children import in_child
from kills import figures, fit


@contextlib.contextmanager
def small_disk(directory: Path, size: int) -> Iterator[Path]:
    """Mount a disk of `size` bytes.

    Raises:
        OSError: Nobody but root may, and not in every container.
    """
    directory.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], capture_output=True, check=False
    )
    if mounted.returncode:
        raise OSError(mounted.stderr.decode().strip())
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def full_disks(options: Sequence[str], directory: Path, sizes: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield each size, and "" or what went wrong: the fit must end in one line, and go on once the disk has grown."""
    whole = directory / "whole"
    assert in_child(lambda: fit(options, whole)).code == 0
    for size in sizes:
        with small_disk(directory / "disk", size) as disk:
            out = disk / "run"
            ended = in_child(partial(fit, options, out))
            told = ended.err.strip().splitlines()
            if ended.code != 1 or not told or "cannot be written: No space left" not in told[-1]:
                yield size, f"it ended with {ended.code}: {ended.err[-300:]}"
                continue
            subprocess.run(["mount", "-o", f"remount,size={100 << 20}", str(disk)], check=True)
            resumed = in_child(partial(fit, options, out, "--resume"))
            if resumed.code != 0:
                yield size, f"resumed, it ended with {resumed.code}: {resumed.err[-300:]}"
            else:
                yield size, "" if figures(out) == figures(whole) else "resumed, it measured something else"
