"""Bounds what the building of a module may allocate, where it cannot be built without memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from posthoc_inn.errors import BundleError

GROWTH, SLACK = 4, 64 << 20
"""Building may allocate this many times the bytes of the tensors that are stored, and so many bytes more."""


class TooLargeError(BundleError):
    """More was about to be allocated than is allowed; whoever builds says for what."""


def allowance(size: int) -> int:
    """Return the bytes that building may allocate in all for tensors of `size` bytes."""
    return GROWTH * size + SLACK


@contextmanager
def bounded(limit: int | None) -> Iterator[None]:
    """Count the bytes of the tensors that are made in the block, and stop before they are more than `limit`.

    Args:
        limit: Bytes in all, those that were freed again included; None for any number.

    Raises:
        TooLargeError: A tensor would go past the limit; it is not made.

    >>> with bounded(100):
    ...     _ = torch.zeros(10)
    ...     _ = torch.zeros(10**15)
    Traceback (most recent call last):
    ...
    posthoc_inn.bundle.allocation.TooLargeError: 4,000,000,000,000,040 bytes, of at most 100
    """
    if limit is None:
        yield
        return
    with _Counting(limit):
        yield


class _Counting(TorchDispatchMode):
    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit, self.made = limit, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        makes = any(argument.name == "device" for argument in func._schema.arguments)
        if makes and (device is None or torch.device(device).type != "meta"):
            self._count(self._size(func, args, kwargs))
        return func(*args, **kwargs)

    def _count(self, size: int) -> None:
        self.made += size
        if self.made > self.limit:
            raise TooLargeError(f"{self.made:,} bytes, of at most {self.limit:,}")

    def _size(self, func: Any, args: Any, kwargs: dict[str, Any]) -> int:
        """Return the bytes that a function will allocate, as it does without memory."""
        asked = {**kwargs, "device": torch.device("meta")}
        asked.pop("pin_memory", None)
        asked.pop("generator", None)
        try:
            made = func(*args, **asked)
        except (NotImplementedError, RuntimeError):
            # No kernel without memory (randperm, randint): the shape, or the length, comes last.
            last = args[-1] if args else 1
            shape = [last] if isinstance(last, int) else last if isinstance(last, (list, tuple)) else [1]
            return 8 * math.prod(shape)
        return made.nbytes if isinstance(made, Tensor) else 0
