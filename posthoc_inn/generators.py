"""The global random generators, which all threads share: lent to one at a time, and given back as they were."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

GENERATORS = threading.RLock()
"""Held by whoever seeds or exchanges a global generator. A model's own lock, where both are taken, comes second."""


@contextlib.contextmanager
def lent_generators(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generators (the CPU's, and that of a GPU) inside the block; dropout draws from them.

    Two threads that train at once take turns, so that neither draws from what the other has seeded.

    Args:
        seed: For both.
        device: Where what runs inside draws; the CPU by default.

    >>> before = torch.get_rng_state()
    >>> with lent_generators(3):
    ...     first = torch.rand(1)
    >>> with lent_generators(3):
    ...     bool(torch.rand(1) == first)
    True
    >>> bool((torch.get_rng_state() == before).all())
    True
    """
    is_cuda = device is not None and device.type == "cuda"
    with GENERATORS, torch.random.fork_rng(devices=[device] if is_cuda else []):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed every GPU
        if device is not None and is_cuda:
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        yield
