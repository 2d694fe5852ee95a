"""A coupling: Coupling splits, asks its networks, and joins; what is left is the transform and its inverse."""

from __future__ import annotations

from torch import Tensor

from posthoc_inn.flows import Coupling


class AdditiveCoupling(Coupling):
    """y = x + t: volumes stay as they are, so log_det is zero (NICE, ICLR workshop 2015)."""

    heads = ("shift",)

    def _move(self, x: Tensor, *heads: Tensor) -> tuple[Tensor, Tensor]:
        (shift,) = heads
        return x + shift, x.new_zeros(x.shape[:-1])

    def _move_back(self, y: Tensor, *heads: Tensor) -> Tensor:
        (shift,) = heads
        return y - shift
