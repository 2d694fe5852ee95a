"""e: the flow between a latent (or a layer's z) and semantic factors (MSC eq. 6, A.2; IIN eq. 1-10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posthoc_inn.config import FlowConfig
from posthoc_inn.errors import Problems, ShapeError
from posthoc_inn.flows.coupling_flow import CouplingFactory, CouplingFlow


class FactorFlow(CouplingFlow):
    """A coupling flow whose output is split into factors e_0 (the residual), e_1 .. e_K.

    Args:
        config: Its shape; it takes no context.
        factor_dims: Widths of the factors, residual first; they add up to D.
        coupling: As in `CouplingFlow`.

    Raises:
        ConfigError: The widths are not positive or do not add up to D, or there is a context.

    >>> e = FactorFlow(FlowConfig(dim=6, blocks=2, width=8), factor_dims=(3, 2, 1))
    >>> z_bar = torch.randn(300, 6)
    >>> e.initialize(z_bar)
    >>> factors, log_det = e(z_bar)
    >>> [tuple(f.shape) for f in factors], log_det.shape
    ([(300, 3), (300, 2), (300, 1)], torch.Size([300]))
    >>> bool(torch.allclose(e.inverse(factors), z_bar, atol=1e-4))
    True
    """

    def __init__(
        self, config: FlowConfig, factor_dims: Sequence[int], *, coupling: CouplingFactory | None = None
    ) -> None:
        widths = tuple(int(n) for n in factor_dims)
        problems = Problems("FactorFlow")
        problems.check(bool(widths) and all(n >= 1 for n in widths), f"factor_dims must be positive, got {widths}")
        problems.check(sum(widths) == config.dim, f"factor_dims {widths} add up to {sum(widths)}, dim is {config.dim}")
        problems.check(config.context_dim == 0, f"context_dim must be 0, got {config.context_dim}")
        problems.raise_if_any()
        super().__init__(config, coupling=coupling)
        self.factor_dims = widths

    def forward(self, x: Tensor, context: None = None) -> tuple[tuple[Tensor, ...], Tensor]:  # type: ignore[override]
        """Map latents `x` (..., D) to K + 1 factors (..., factor_dims[k]) and log_det (...), in nats.

        Raises:
            ShapeError: `x` is not (..., D), or a context is given.
            NotFittedError: The flow was not initialised.
        """
        out, log_det = super().forward(x, context)
        return torch.split(out, list(self.factor_dims), dim=-1), log_det

    def inverse(self, y: Sequence[Tensor] | Tensor, context: None = None) -> Tensor:  # type: ignore[override]
        """Map factors, K + 1 tensors (..., factor_dims[k]) or one (..., D), back to latents (..., D).

        Raises:
            ShapeError: Number or widths of the factors do not fit.
            NotFittedError: The flow was not initialised.
        """
        if not isinstance(y, Tensor):
            found = tuple(f.shape[-1] if f.ndim else 0 for f in y)
            if found != self.factor_dims:
                raise ShapeError(f"The factors have widths {found}; accepted are {self.factor_dims}, residual first.")
            lead = torch.broadcast_shapes(*(f.shape[:-1] for f in y))
            y = torch.cat([f.expand(*lead, f.shape[-1]) for f in y], dim=-1)
        return super().inverse(y, context)
