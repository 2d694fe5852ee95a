"""Actnorm (Glow; MSC A.2): a shift and a scale a feature, set from data to give a standardised output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posthoc_inn.errors import ConfigError, DataError, NotFittedError, ShapeError
from posthoc_inn.flows.fitted import FittedOnce

EPS = 1e-6
"""Added to the standard deviation; a feature that varies less than this is only shifted."""


class ActNorm(FittedOnce):
    """y = (x + shift) · exp(log_scale), initialised once, explicitly, from many rows.

    Args:
        dim: D, number of features.

    >>> norm = ActNorm(3)
    >>> x = torch.arange(12.0).reshape(4, 3) ** 2
    >>> norm.initialize(x)
    >>> y, log_det = norm(x)
    >>> bool(y.mean(0).abs().max() < 1e-4), y.std(0, unbiased=False).round(decimals=3).tolist(), log_det.shape
    (True, [1.0, 1.0, 1.0], torch.Size([4]))
    >>> bool(torch.allclose(norm.inverse(y), x, atol=1e-4))
    True
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.shift = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    @torch.no_grad()
    def initialize(self, x: Tensor, *, force: bool = False) -> None:
        """Set shift and scale so that `x`, shape (..., D), comes out with mean 0 and standard deviation 1.

        At least 256 rows are advisable; statistics are computed in float64, the deviation is the biased one.

        Raises:
            ShapeError: `x` is not (..., D), or has fewer than 2 rows: one row has no deviation.
            DataError: `x` holds NaN or infinity.
            ConfigError: It was initialised before, and `force` is false.
        """
        if self.is_initialized and not force:
            raise ConfigError("This actnorm is already initialised; pass force=True to set it anew from other data.")
        if x.ndim < 1 or x.shape[-1] != self.dim:
            raise ShapeError(f"x has shape {tuple(x.shape)}; accepted is (..., {self.dim}).")
        rows = x.reshape(-1, self.dim).double()
        if len(rows) < 2:
            raise ShapeError(
                f"Actnorm got {len(rows)} row to initialise from; at least 2 are needed, 256 or more are "
                "advisable. Pass a larger batch."
            )
        if not bool(torch.isfinite(rows).all()):
            bad = int((~torch.isfinite(rows)).any(dim=1).sum())
            raise DataError(f"{bad} of {len(rows)} rows to initialise from hold NaN or infinity; remove them.")
        std = rows.std(dim=0, unbiased=False)
        # A constant feature would be blown up by 1/EPS, and the first held-out row that differs with it.
        std = torch.where(std > EPS, std + EPS, torch.ones_like(std))
        self.shift.copy_(-rows.mean(dim=0))
        self.log_scale.copy_(-std.log())
        self._mark_initialized()

    @torch.no_grad()
    def initialize_as_identity(self) -> None:
        """Start without shift or scale, for inputs that are standard normal already."""
        self.shift.zero_()
        self.log_scale.zero_()
        self._mark_initialized()

    def check_initialized(self) -> None:
        """Check that shift and scale were set.

        Raises:
            NotFittedError: `initialize` was not called.
        """
        if not self.is_initialized:
            raise NotFittedError(
                "This flow was not initialised: its actnorm layers take their shift and scale from data. "
                "Call initialize with at least 2 rows (256 or more are advisable), or load trained weights."
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x` (..., D) to y (..., D) and log_det (...), in nats.

        Raises:
            NotFittedError: `initialize` was not called.
        """
        self.check_initialized()
        log_det = self.log_scale.sum(dtype=torch.promote_types(self.log_scale.dtype, torch.float32))
        return (x + self.shift) * self.log_scale.exp(), log_det.expand(x.shape[:-1])

    def inverse(self, y: Tensor) -> Tensor:
        """Map `y` (..., D) back to x (..., D).

        Raises:
            NotFittedError: `initialize` was not called.
        """
        self.check_initialized()
        return y * (-self.log_scale).exp() - self.shift

    def extra_repr(self) -> str:
        """Return the width and whether it is initialised, for `print`."""
        return f"{self.dim}, initialized={self.is_initialized}"
