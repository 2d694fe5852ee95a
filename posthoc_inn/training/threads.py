"""How many CPU threads a stage runs with: measured, since under load a second one can cost more than it brings."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

MIN_STEPS = 1000
"""A stage of fewer training steps is not worth measuring for."""

MIN_IMAGES = 5000
"""The same, of images that only pass through."""

ENOUGH = 0.95
"""Fewer threads are taken when a step takes less than this share of its time with all of them."""

BUDGET = 1.0
"""Seconds to measure for; every number of threads gets one timed step whatever it takes."""

MOST_ROUNDS = 9


@contextlib.contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the block, and as many as before after it.

    >>> before = torch.get_num_threads()
    >>> with using_threads(1):
    ...     torch.get_num_threads()
    1
    >>> torch.get_num_threads() == before
    True
    """
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def thread_counts(most: int) -> list[int]:
    """Return what is worth trying: `most`, its halves, and 1.

    >>> thread_counts(12)
    [12, 6, 3, 1]
    """
    counts = [most]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return counts


def time_threads(step: Callable[[], object], counts: Sequence[int], *, budget: float = BUDGET) -> dict[int, float]:
    """Return the median duration of `step` in seconds for each number of threads.

    All numbers take turns, so that whatever else runs disturbs them alike. The number that was set is put back.
    """
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    started = time.perf_counter()
    for count in counts:
        with using_threads(count):
            step()  # allocations and compiled kernels
    while True:
        for count in counts:
            with using_threads(count):
                begun = time.perf_counter()
                step()
                seconds[count].append(time.perf_counter() - begun)
        rounds = len(seconds[counts[0]])
        spent = time.perf_counter() - started
        if rounds >= MOST_ROUNDS or spent + spent / (rounds + 1) > budget:
            return {count: statistics.median(times) for count, times in seconds.items()}


def fastest(seconds: Mapping[int, float]) -> int:
    """Return the best number of threads: the largest, unless another is clearly faster.

    >>> fastest({2: 1.0, 1: 0.98}), fastest({2: 1.0, 1: 0.5})
    (2, 1)
    """
    most = max(seconds)
    best = min(seconds, key=lambda count: seconds[count])
    return best if seconds[best] < ENOUGH * seconds[most] else most
