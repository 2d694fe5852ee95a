"""A fixed linear map before the blocks of e, which starts it where its factors are told apart linearly already."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posthoc_inn.errors import NotFittedError, ShapeError
from posthoc_inn.flows.fitted import FittedOnce


class Alignment(FittedOnce):
    """y = (x - mean) · weightᵀ; set once and not trained (the couplings that follow are).

    Args:
        dim: D, number of features.

    >>> align = Alignment(2)
    >>> align.set(torch.ones(2), torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
    >>> y, log_det = align(torch.tensor([[2.0, 1.0]]))
    >>> y.tolist(), round(log_det.exp().item(), 4), align.inverse(y).tolist()
    ([[2.0, 1.0]], 2.0, [[2.0, 1.0]])
    """

    mean: Tensor
    weight: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("weight", torch.eye(dim))
        self._derived: tuple[Tensor, int | None, Tensor, Tensor] | None = None

    @torch.no_grad()
    def set(self, mean: Tensor, weight: Tensor) -> None:
        """Set the map.

        Args:
            mean: (D,).
            weight: (D, D), invertible.

        Raises:
            ShapeError: A shape does not fit, or `weight` is singular or holds NaN or infinity.
        """
        if mean.shape != (self.dim,) or weight.shape != (self.dim, self.dim):
            raise ShapeError(
                f"mean and weight have shapes {tuple(mean.shape)} and {tuple(weight.shape)}; accepted are "
                f"({self.dim},) and ({self.dim}, {self.dim})."
            )
        if not is_invertible(weight):
            raise ShapeError("weight must be an invertible matrix of finite numbers.")
        self.mean.copy_(mean)
        self.weight.copy_(weight)
        self._derived = None
        self._mark_initialized()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x` (..., D) to y (..., D) and log_det (...), in nats.

        Raises:
            NotFittedError: The map was not set.
        """
        _, log_det = self._of_weight()
        return (x - self.mean) @ self.weight.T, log_det.expand(x.shape[:-1])

    def inverse(self, y: Tensor) -> Tensor:
        """Map `y` (..., D) back to x (..., D).

        Raises:
            NotFittedError: The map was not set.
        """
        inverse, _ = self._of_weight()
        return y @ inverse.T + self.mean

    @torch.no_grad()
    def _of_weight(self) -> tuple[Tensor, Tensor]:
        """Return the inverse and the log-determinant, computed in float64 once for each state of the weight."""
        if not self.is_initialized:
            raise NotFittedError(
                "This flow was not initialised: its alignment was not set. Fit e, or load its weights."
            )
        weight = self.weight
        known = self._derived
        # Where torch does not count the writes to a tensor, any may have happened.
        version = getattr(weight, "_version", None)
        if known is None or version is None or known[0] is not weight or known[1] != version:
            # Not every device has float64.
            wide = weight.cpu().double()
            log_det = torch.linalg.slogdet(wide)[1].to(torch.promote_types(weight.dtype, torch.float32))
            inverse = torch.linalg.inv(wide).to(weight)
            known = self._derived = (weight, version, inverse, log_det.to(weight.device))
        return known[2], known[3]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *rest: Any
    ) -> None:
        found = state_dict.get(f"{prefix}weight")
        # A file must not be able to hold a map that has no way back.
        if (
            isinstance(found, Tensor)
            and found.shape == self.weight.shape
            and found.device.type != "meta"
            and not is_invertible(found)
        ):
            errors: list[str] = rest[2]
            errors.append(f"{prefix}weight is not an invertible matrix of finite numbers")
            return
        self._derived = None
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *rest)

    def extra_repr(self) -> str:
        """Return the width and whether it is set, for `print`."""
        return f"{self.dim}, initialized={self.is_initialized}"


def is_invertible(weight: Tensor) -> bool:
    """Whether a matrix (D, D) is finite, and far enough from singular for a way back in single precision.

    >>> is_invertible(torch.eye(2)), is_invertible(torch.ones(2, 2))
    (True, False)
    """
    wide = weight.detach().cpu().double()
    if not bool(torch.isfinite(wide).all()):
        return False
    # The shared directions of latents with unused dimensions have condition numbers of 1e2 to 1e4.
    return float(torch.linalg.cond(wide)) < 1e7
