"""Random generators of one's own, for code that draws from the global ones."""

from __future__ import annotations

import random
from types import TracebackType

import numpy as np
import torch

from posthoc_inn.ambient import users_torch
from posthoc_inn.generators import GENERATORS
from posthoc_inn.seeds import derived


class PrivateRandomness:
    """While entered, the global generators of torch, NumPy and Python are replaced by others.

    Users' transforms draw from the global generators: this way they are reproducible, and the caller's own
    generators are left alone. Their code runs as they have set torch (`users_torch`).
    """

    def __init__(self, seed: int) -> None:
        self._torch = torch.Generator().manual_seed(derived(seed, "torch")).get_state()
        # NumPy's old generator takes 32 bits.
        self._numpy = np.random.RandomState(derived(seed, "numpy") % 2**32).get_state()
        self._python = random.Random(derived(seed, "python")).getstate()

    def __enter__(self) -> PrivateRandomness:
        GENERATORS.acquire()
        self._users = users_torch()
        self._users.__enter__()
        self._swap()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._swap()
            self._users.__exit__(kind, error, trace)
        finally:
            GENERATORS.release()

    def _swap(self) -> None:
        outer = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        self._torch, self._numpy, self._python = outer
