"""Random generators of one's own, for code that draws from the global ones."""

from __future__ import annotations

import random
from types import TracebackType

import numpy as np
import torch


class PrivateRandomness:
    """While entered, the global generators of torch, NumPy and Python are replaced by others.

    Users' transforms draw from the global generators: this way they are reproducible, and the caller's own
    generators are left alone.
    """

    def __init__(self, seed: int) -> None:
        sequence = np.random.SeedSequence(seed)
        state = sequence.generate_state(3)
        self._torch = torch.Generator().manual_seed(int(state[0])).get_state()
        self._numpy = np.random.RandomState(int(state[1])).get_state()
        self._python = random.Random(int(state[2])).getstate()

    def __enter__(self) -> PrivateRandomness:
        self._swap()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._swap()

    def _swap(self) -> None:
        outer = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        self._torch, self._numpy, self._python = outer
