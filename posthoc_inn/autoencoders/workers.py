"""Pictures of a generator, made by several processes: for decoders that use one core each."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from posthoc_inn.errors import ConfigError, DataError, is_count

Makes = Callable[[Tensor], Tensor]
"""Latents (B, D) to pictures (B, C, H, W) in [0, 1]."""

_makes: Makes | None = None
"""What a worker makes pictures with, set once in each."""


class Workers:
    """Processes that each have a copy of a generator. They start with the first pictures, and end with the last use.

    Args:
        makes: Latents to pictures. It goes to the workers by cloudpickle, so that functions of a notebook serve too.
        count: Processes.

    Raises:
        ConfigError: `count` is less than 1.
    """

    def __init__(self, makes: Makes, count: int) -> None:
        if not is_count(count, 1):
            raise ConfigError(f"workers must be at least 1, got {count!r}.")
        self._makes, self.count = makes, count
        self._pool: Any = None

    def start(self) -> None:
        """Start the processes, and wait until each has its copy; they may run already.

        Raises:
            ConfigError: The generator cannot be sent to another process.
            DataError: A worker was killed.
        """
        if self._pool is None:
            from loky import ProcessPoolExecutor

            threads = max(1, (os.cpu_count() or 1) // self.count)
            self._pool = ProcessPoolExecutor(self.count, initializer=_start, initargs=(self._packed(), threads))
            self._map(_wait, [0.1] * self.count)

    def __call__(self, latents: Tensor) -> Tensor:
        """Return pictures uint8 (B, C, H, W) for latents (B, D), in their order.

        Raises:
            ConfigError: The generator cannot be sent to another process.
            DataError: A worker was killed, by the system when memory runs out.
        """
        self.start()
        parts = latents.cpu().float().chunk(self.count)
        return torch.cat([torch.from_numpy(part) for part in self._map(_make, [p.numpy() for p in parts])])

    def _map(self, work: Callable[[Any], Any], values: list[Any]) -> list[Any]:
        from loky.process_executor import TerminatedWorkerError

        try:
            return list(self._pool.map(work, values))
        except TerminatedWorkerError as error:
            self._pool = None
            raise DataError(
                f"A process that made pictures was killed: {self.count} copies of the generator may not fit into "
                "memory. Take fewer workers."
            ) from error

    def _packed(self) -> bytes:
        # Packed here and once: what cannot be sent is told before a process starts, and each worker unpacks it itself.
        from cloudpickle import dumps

        try:
            return cast(bytes, dumps(self._makes))
        except (pickle.PicklingError, TypeError, AttributeError, RuntimeError) as error:
            raise ConfigError(
                f"workers={self.count} needs a generator that can be sent to other processes, and this one cannot: "
                f"{error}. Let decode open its files and sessions when it is first called, or take workers=1."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Leave the processes behind."""
        return self.__dict__ | {"_pool": None}


def _start(packed: bytes, threads: int) -> None:
    global _makes
    torch.set_num_threads(threads)
    _makes = pickle.loads(packed)


def _wait(seconds: float) -> None:
    # Long enough that no worker takes two of these.
    time.sleep(seconds)


def _make(latents: Any) -> Any:
    if _makes is None:
        raise RuntimeError("A worker was not set up.")
    with torch.no_grad():
        pictures = _makes(torch.from_numpy(latents)).cpu()
    return as_bytes(pictures).numpy()


def as_bytes(pictures: Tensor) -> Tensor:
    """Return pictures in [0, 1] in steps of 8 bits, as their files would be: uint8 of the same shape."""
    return pictures.clamp(0, 1).mul(255).round_().to(torch.uint8)
