"""What a pass through networks costs, counted: the same on every machine, and at every moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

WRITTEN = 60
"""Operations that writing a value is worth: depthwise convolutions and activations compute little and move much."""


class _Written(TorchDispatchMode):
    """Counts the values that operations write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not getattr(func, "is_view", False):
            self.count += sum(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))
        return out


def operations(run: Callable[[], object]) -> int:
    """Return the operations of the products and convolutions that `run` does, and those that its memory is worth.

    >>> import torch
    >>> a = torch.zeros(10, 10)
    >>> operations(lambda: a @ a)  # 2 · 10³, and 100 values written
    8000
    """
    with FlopCounterMode(display=False) as counter, _Written() as written:
        run()
    return int(counter.get_total_flops()) + int(WRITTEN * written.count)
