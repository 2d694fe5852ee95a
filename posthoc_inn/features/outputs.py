"""What the output of a model is: class scores or something else."""

from __future__ import annotations

from torch import Tensor


def is_classification(output: Tensor) -> bool:
    """Whether the model's output (B, ...) is one row of class scores per image."""
    return output.ndim == 2 and output.shape[1] >= 2
