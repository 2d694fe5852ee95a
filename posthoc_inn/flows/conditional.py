"""t: the conditional flow between latents and invariances, given a representation (MSC eq. 1-5, A.3)."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from posthoc_inn.config import ConditionerConfig, FlowConfig
from posthoc_inn.errors import ConfigError, NotFittedError, ShapeError
from posthoc_inn.flows.block import CouplingFactory
from posthoc_inn.flows.conditioner import Conditioner
from posthoc_inn.flows.coupling import Context, ProjectedContext, check_context, check_width
from posthoc_inn.flows.coupling_flow import CouplingFlow, evaluating
from posthoc_inn.flows.factor import FactorFlow
from posthoc_inn.flows.fast import inverse as fast_inverse

CONTEXT_CHUNK = 512
"""Representations that are embedded at a time."""
BASE_CHUNK = 4096
"""Latents that go through e⁻¹ at a time."""


class ConditionalFlow(nn.Module):
    """t and its embedding H: v = t(z_bar | H(z)), z_bar = t⁻¹(v | H(z)).

    The context is computed explicitly, once, and is an ordinary tensor: `t.context(z)`. For many samples an
    image, `t.project(context.unsqueeze(1))` also computes every coupling's share of it once.

    Args:
        flow: Shape of t; its `context_dim` is that of H.
        conditioner: Shape of H.
        coupling: As in `CouplingFlow`.
        base: A trained e, see `set_base`.

    Attributes:
        base: e, or None.

    Raises:
        ConfigError: The two configurations disagree about the width of the context, or of the latents.

    >>> config = FlowConfig(dim=4, context_dim=8, blocks=2, width=16)
    >>> t = ConditionalFlow(config, ConditionerConfig(z_shape=(5,), context_dim=8, width=16))
    >>> z_bar, z = torch.randn(300, 4), torch.randn(300, 5)
    >>> t.conditioner.fit_standardization([z])
    >>> t.initialize(z_bar, z)
    >>> context = t.context(z)
    >>> v, log_det = t(z_bar, context)
    >>> bool(torch.allclose(t.inverse(v, context), z_bar, atol=1e-4)), log_det.shape
    (True, torch.Size([300]))
    >>> shared = t.project(context[:2].unsqueeze(1))
    >>> t.inverse(torch.randn(2, 7, 4), shared).shape  # 7 samples for each of 2 images
    torch.Size([2, 7, 4])
    """

    def __init__(
        self,
        flow: FlowConfig,
        conditioner: ConditionerConfig,
        *,
        coupling: CouplingFactory | None = None,
        base: FactorFlow | None = None,
    ) -> None:
        super().__init__()
        if flow.context_dim != conditioner.context_dim:
            raise ConfigError(
                f"The flow takes a context of width {flow.context_dim}, the conditioner makes one of width "
                f"{conditioner.context_dim}; give both the same context_dim."
            )
        self.conditioner = Conditioner(conditioner)
        self.flow = CouplingFlow(flow, coupling=coupling)
        self.base: FactorFlow | None = None
        if base is not None:
            self.set_base(base)

    def set_base(self, base: FactorFlow) -> None:
        """Let t work on the factors of a trained e: v = s(e(z_bar) | H(z)), s being the blocks of t.

        e is not trained any further. t can be any conditional flow as before, but where z says nothing about a factor,
        s need not touch it, so that the same v stands for the same concept at every z. Without this, t is free to
        turn v in another way for each z, which leaves its likelihood as it is, and raises MSC eq. 20.

        Raises:
            ConfigError: e is for latents of another width.
            NotFittedError: e was never fitted.
        """
        if base.config.dim != self.flow.config.dim:
            raise ConfigError(
                f"e takes {base.config.dim} values, t {self.flow.config.dim}; they need the same latents."
            )
        if not base.is_initialized:
            raise NotFittedError("e was never fitted: fit it before t is to work on its factors.")
        self.base = base.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Switch between training and use, as any module does; e stays as it is in use."""
        super().train(mode)
        if self.base is not None:
            self.base.eval()
        return self

    @property
    def is_initialized(self) -> bool:
        """Whether both the standardisation of z and the actnorm layers were set from data."""
        return self.conditioner.is_initialized and self.flow.is_initialized

    def context(self, z: Tensor) -> Tensor:
        """Return h = H(z), shape (B, C), for z (B, *z_shape) (MSC eq. 16).

        Raises:
            ShapeError: z has another shape.
            NotFittedError: The standardisation of z was not fitted.
        """
        h: Tensor = self.conditioner(z)
        return h

    def project(self, context: Tensor) -> ProjectedContext:
        """Return what may be passed instead of `context` (..., C): see `CouplingFlow.project`.

        Raises:
            ShapeError: The context is not (..., C).
        """
        return self.flow.project(context)

    def forward(self, z_bar: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Map latents `z_bar` (..., D) to invariances v (..., D), with log_det (...) in nats (MSC eq. 5).

        Raises:
            ShapeError: A shape does not fit.
            NotFittedError: The flow was not initialised.
        """
        if self.base is None:
            out: tuple[Tensor, Tensor] = self.flow(z_bar, context)
            return out
        factors, base_log_det = self.base(z_bar)
        v, log_det = self.flow(torch.cat(factors, dim=-1), context)
        return v, log_det + base_log_det

    def inverse(self, v: Tensor, context: Context) -> Tensor:
        """Map invariances `v` (..., D) to latents (..., D) (MSC eq. 2).

        Raises:
            ShapeError: A shape does not fit.
            NotFittedError: The flow was not initialised.
        """
        out = self.blocks_inverse(v, context)
        return out if self.base is None else self.base.inverse(out)

    def blocks_inverse(self, v: Tensor, context: Context) -> Tensor:
        """Map invariances `v` (..., D) back through the blocks alone: to e's factors, or to latents without e."""
        return self.flow.inverse(v, context)

    @torch.no_grad()
    def inverse_many(self, v: Tensor, context: Tensor) -> Tensor:
        """Return t⁻¹(v given z), shape (B, N, D), for N samples of each of B images, without gradients.

        Runs in chunks: memory beyond the result is bounded whatever N is. What depends on z alone is computed once
        an image. Products run in the precision given by `set_compute_dtype`.

        Args:
            v: Invariances (B, N, D), on any device.
            context: H(z), shape (B, C).

        Raises:
            ShapeError: A shape does not fit.
            NotFittedError: The flow was not initialised.
        """
        config = self.flow.config
        check_width(v, config.dim, "v")
        check_context(context, config.context_dim)
        if v.ndim != 3 or context.ndim != 2 or len(v) != len(context):
            raise ShapeError(
                f"v has shape {tuple(v.shape)} and the context {tuple(context.shape)}; accepted are "
                f"(B, N, {config.dim}) and (B, {config.context_dim}) with the same B."
            )
        with evaluating(self):
            out = self._many_blocks_inverse(v, context)
            if self.base is not None:
                for rows in out.flatten(0, 1).split(BASE_CHUNK):
                    rows.copy_(self.base.inverse(rows))
            return out

    def _many_blocks_inverse(self, v: Tensor, context: Tensor) -> Tensor:
        if self.flow.is_affine:
            return fast_inverse.inverse(self.flow.config, self.flow.parts(), v, context)
        parameter = next(self.flow.parameters())
        out = torch.empty(v.shape, dtype=parameter.dtype, device=parameter.device)
        together = max(1, fast_inverse.CHUNK // max(v.shape[1], 1))
        for start in range(0, len(v), together):
            rows = slice(start, start + together)
            projected = self.flow.project(context[rows].unsqueeze(1).to(parameter.device))
            for first in range(0, v.shape[1], fast_inverse.CHUNK):
                draws = slice(first, first + fast_inverse.CHUNK)
                out[rows, draws] = self.flow.inverse(v[rows, draws].to(parameter.device), projected)
        return out

    @torch.no_grad()
    def initialize(self, z_bar: Tensor, z: Tensor, *, force: bool = False) -> None:
        """Set every actnorm from latents `z_bar` (B, D) and their `z` (B, *z_shape), 256 rows or more.

        The standardisation of z is fitted beforehand, on as much data as there is:
        `flow.conditioner.fit_standardization(batches)`. On the factors of e, which are standard normal by design, the
        blocks start as the identity: a few outliers would decide the scales otherwise.

        Raises:
            NotFittedError: The standardisation of z was not fitted.
            ConfigError: It was initialised before, and `force` is false.
            ShapeError: A shape does not fit, or there are fewer than 2 rows.
            DataError: The data hold NaN or infinity.
        """
        with evaluating(self):
            # Maps of thousands of images would take gigabytes at once.
            context = torch.cat([self.context(part) for part in z.split(CONTEXT_CHUNK)])
            self.flow.initialize(z_bar, context, force=force)
            if self.base is not None:
                for block in self.flow.parts():
                    block.actnorm.initialize_as_identity()
