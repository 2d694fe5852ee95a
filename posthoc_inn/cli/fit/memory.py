"""Keeps freed memory in the process: glibc gives large blocks back after each use, and gets them again page by page."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's malloc.h."""
TRIM = 2**31 - 1
"""Bytes that may lie free at the end of the heap: 2 GiB, the most that it takes."""


def keep_freed_memory() -> bool:
    """Let malloc reuse large blocks instead of returning them to the system; return whether that was done.

    A training step allocates the same megabytes again and again; the system would clear them anew each time. Nothing is
    done outside glibc, nor where the user has settled it: another allocator preloaded, or malloc's own variables.
    """
    chosen = "LD_PRELOAD" in os.environ or any(n.startswith(("MALLOC_", "GLIBC_TUNABLES")) for n in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, TRIM))
    except (OSError, AttributeError):
        return False  # musl
