"""e: the flow between a latent (or a layer's z) and semantic factors (MSC eq. 6, A.2; IIN eq. 1-10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posthoc_inn.config import FlowConfig
from posthoc_inn.errors import ConfigError, Problems, ShapeError
from posthoc_inn.flows.alignment import Alignment
from posthoc_inn.flows.block import CouplingFactory
from posthoc_inn.flows.coupling import check_width
from posthoc_inn.flows.coupling_flow import CouplingFlow


class FactorFlow(CouplingFlow):
    """A coupling flow whose output is split into factors e_0 (the residual), e_1 .. e_K.

    Args:
        config: Its shape; it takes no context.
        factor_dims: Widths of the factors, residual first; they add up to D.
        coupling: As in `CouplingFlow`.
        aligned: Have a linear map before the blocks, see `align`.

    Attributes:
        alignment: That map, or None.

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
        self,
        config: FlowConfig,
        factor_dims: Sequence[int],
        *,
        coupling: CouplingFactory | None = None,
        aligned: bool = False,
    ) -> None:
        widths = tuple(int(n) for n in factor_dims)
        problems = Problems("FactorFlow")
        problems.check(bool(widths) and all(n >= 1 for n in widths), f"factor_dims must be positive, got {widths}")
        problems.check(sum(widths) == config.dim, f"factor_dims {widths} add up to {sum(widths)}, dim is {config.dim}")
        problems.check(config.context_dim == 0, f"context_dim must be 0, got {config.context_dim}")
        problems.check(
            not config.is_linear_first, f"e needs a coupling as its kind, got {config.kind!r}, which is t's alone"
        )
        problems.raise_if_any()
        super().__init__(config, coupling=coupling)
        self.factor_dims = widths
        self.alignment = Alignment(config.dim) if aligned else None

    @property
    def is_initialized(self) -> bool:
        """Whether the actnorm layers, and the linear map where there is one, were set from data."""
        return super().is_initialized and (self.alignment is None or self.alignment.is_initialized)

    def align(self, mean: Tensor, directions: Tensor) -> None:
        """Set the linear map, and let the blocks start as the identity: the factors are `directions` · (x - mean).

        Sets the actnorm layers too: `initialize` is for flows without alignment. A coupling of a plugin that does not
        start as the identity moves the factors away from that.

        Args:
            mean: (D,).
            directions: (D, D), invertible, rows in the order of the factors; see
                `posthoc_inn.concepts.shared_directions`.

        Raises:
            ConfigError: This flow was built without alignment.
            ShapeError: A shape does not fit, or `directions` has no inverse.
        """
        if self.alignment is None:
            raise ConfigError("This flow has no linear map before its blocks; build it with aligned=True.")
        # What the permutations of all blocks do to the features is undone here.
        order = torch.arange(self.config.dim)
        for block in self.parts():
            order = order[block.permutation.permutation.cpu()]
        self.alignment.set(mean, directions[order.argsort()])
        for block in self.parts():
            block.actnorm.initialize_as_identity()

    @torch.no_grad()
    def initialize(self, x: Tensor, context: None = None, *, force: bool = False) -> None:  # type: ignore[override]
        """Set the actnorm layers from latents `x` (..., D), see `CouplingFlow.initialize`; an aligned flow has `align`.

        Raises:
            ConfigError: It was initialised before, and `force` is false; or it is an aligned flow.
            ShapeError: A shape does not fit, or there are fewer than 2 rows.
            DataError: `x` holds NaN or infinity.
        """
        if self.alignment is not None:
            raise ConfigError("This flow has a linear map before its blocks; set both with align().")
        super().initialize(x, context, force=force)

    def forward(self, x: Tensor, context: None = None) -> tuple[tuple[Tensor, ...], Tensor]:  # type: ignore[override]
        """Map latents `x` (..., D) to K + 1 factors (..., factor_dims[k]) and log_det (...), in nats.

        Raises:
            ShapeError: `x` is not (..., D), or a context is given.
            NotFittedError: The flow was not initialised.
        """
        aligned_log_det = None
        if self.alignment is not None:
            check_width(x, self.config.dim)
            x, aligned_log_det = self.alignment(self._cast(x))
        out, log_det = super().forward(x, context)
        if aligned_log_det is not None:
            log_det = log_det + aligned_log_det
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
        x = super().inverse(y, context)
        return x if self.alignment is None else self.alignment.inverse(x)
