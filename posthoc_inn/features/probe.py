"""What one look at a layer tells."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Probe:
    """What one look at a layer found; the model is as it was.

    Attributes:
        z_shape: Shape of z without the batch: (N,), (T, N) or (C, H, W).
        dtype: Number type of z.
        calls: How often the layer's module is called in one pass.
        is_cut: Whether f = Ψ ∘ Φ holds: the output depends on the image only through z; None where unknown.
        around: Where the image reaches the output around the layer: ``"layer3.0 (add)"``; empty for a true
            cut.
        output_shape: Shape of the prediction without the batch; None where `predict` would need to be told.
        note: The same in words; empty for a true cut.
        head: The operation that the prediction ends in; empty where it is not known.

    >>> Probe((8,), torch.float32, 1, True, (), (3,), "").is_cut
    True
    """

    z_shape: tuple[int, ...]
    dtype: torch.dtype
    calls: int
    is_cut: bool | None
    around: tuple[str, ...]
    output_shape: tuple[int, ...] | None
    note: str
    head: str = ""
