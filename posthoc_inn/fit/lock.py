"""One fit a directory: the second is refused, whichever process or machine it runs on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from posthoc_inn.errors import DataError
from posthoc_inn.files import writing

LOCK = ".lock"
"""The lock's file in a run's directory. Who was killed leaves it, but holds nothing."""


@contextlib.contextmanager
def locked(directory: Path | None) -> Iterator[None]:
    """Hold a run's directory for one fit; do nothing where there is none.

    Raises:
        DataError: Another fit holds it, or the directory cannot be written.
    """
    if directory is None:
        yield
        return
    lock, is_free = FileLock(directory / LOCK), True
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            is_free = False
        except NotImplementedError:
            pass  # a file system without locks: nothing can be said of others
    if not is_free:
        raise DataError(
            f"Another fit is writing to {directory} at this moment. Wait until it has ended, or choose another "
            "directory."
        )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (directory / LOCK).unlink(missing_ok=True)
        lock.release()
