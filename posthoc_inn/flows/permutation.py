"""A fixed permutation of the features (the shuffling layer of MSC A.2), drawn from its own seed and saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Permutation(nn.Module):
    """y_i = x_{p(i)} with a fixed random p; its log-determinant is 0.

    Args:
        dim: D, number of features.
        seed: Seed of p; the global generator is not used. None: everything stays where it is.

    >>> shuffle = Permutation(5, seed=3)
    >>> x = torch.arange(5.0)[None]
    >>> y, log_det = shuffle(x)
    >>> bool((shuffle.inverse(y) == x).all()), sorted(y[0].tolist()), log_det.tolist()
    (True, [0.0, 1.0, 2.0, 3.0, 4.0], [0.0])
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, dim: int, seed: int | None) -> None:
        super().__init__()
        self.dim = dim
        if seed is None:
            permutation = torch.arange(dim, device="cpu")
        else:
            permutation = torch.randperm(dim, generator=torch.Generator().manual_seed(seed), device="cpu")
        self.register_buffer("permutation", permutation)
        # Not saved: a file must not be able to hold an inverse that is none.
        self.register_buffer("inverse_permutation", permutation.argsort(), persistent=False)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *rest: Any
    ) -> None:
        missing: list[str]
        unexpected: list[str]
        errors: list[str]
        missing, unexpected, errors = rest
        found = state_dict.get(f"{prefix}permutation")
        if isinstance(found, Tensor) and found.shape == (self.dim,) and found.device.type != "meta":
            if found.is_floating_point() or not torch.equal(
                found.sort().values, torch.arange(self.dim, device=found.device, dtype=found.dtype)
            ):
                errors.append(f"{prefix}permutation does not hold each of 0 to {self.dim - 1} once")
                return
            self.inverse_permutation = found.argsort().to(self.inverse_permutation.device)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x` (..., D) to y (..., D) and log_det (...), which is 0 nats."""
        zero = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
        return x.index_select(-1, self.permutation), zero.expand(x.shape[:-1])

    def inverse(self, y: Tensor) -> Tensor:
        """Map `y` (..., D) back to x (..., D)."""
        return y.index_select(-1, self.inverse_permutation)

    def extra_repr(self) -> str:
        """Return the width, for `print`."""
        return str(self.dim)
