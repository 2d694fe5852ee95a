"""Seeds made from a seed: the one way in which everything random gets a stream of its own."""

from __future__ import annotations

import zlib

import numpy as np


def derived(seed: int, *purpose: int | str) -> int:
    """Return a seed for one purpose, 63 bits, which has nothing to do with that of another purpose or seed.

    The same on every machine and in every process.

    Args:
        seed: The user's, any integer; its lowest 64 bits count.
        purpose: What the seed is for: names, and numbers such as a step, of which the lowest 32 bits count.

    >>> derived(0, "order", 1) == derived(0, "order", 1)
    True
    >>> len({derived(0, "order", 1), derived(0, "order", 2), derived(1, "order", 1), derived(0, "noise", 1)})
    4
    """
    # One word each: a key of several words could be read as two shorter ones.
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part % 2**32 for part in purpose]
    sequence = np.random.SeedSequence(seed % 2**64, spawn_key=words)
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1
