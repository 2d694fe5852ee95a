"""Blocks stacked into a flow (MSC A.2, fig. S1 and S2), and the couplings to choose from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from posthoc_inn.config import FlowConfig
from posthoc_inn.errors import ConfigError, DataError, ShapeError, UnknownNameError, quoted, suggest
from posthoc_inn.flows.actnorm import ActNorm
from posthoc_inn.flows.block import Block, CouplingFactory, are_affine
from posthoc_inn.flows.coupling import AffineCoupling, Context, ProjectedContext, check_context, check_width
from posthoc_inn.flows.fast import training as fast
from posthoc_inn.flows.fast.workspace import Workspace
from posthoc_inn.flows.maps import ConvCoupling, TransformerCoupling
from posthoc_inn.flows.spline import SplineCoupling

COUPLINGS: Mapping[str, CouplingFactory] = {
    "affine": AffineCoupling,
    "conv": ConvCoupling,
    "spline": SplineCoupling,
    "transformer": TransformerCoupling,
}
"""The built-in couplings, by the name that `FlowConfig.kind` gives."""


@contextmanager
def _keeping_flags(module: nn.Module) -> Iterator[None]:
    """Give every submodule its own train flag back after the block."""
    flags = [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        for m, flag in flags:
            m.training = flag


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch `module` to eval mode inside the block and give every submodule its own train flag back."""
    with _keeping_flags(module):
        module.eval()
        yield


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Take the train flags off inside the block, and nothing else: a flow's memory for training is kept."""
    with _keeping_flags(module):
        for m in module.modules():
            m.training = False
        yield


class CouplingFlow(nn.Module):
    """A stack of invertible blocks between data and a standard normal base.

    ``log p(x) = log N(y; 0, 1) + log |det ∂y / ∂x|``. Leading dimensions are free:
    x (..., D) with a context (..., C) that broadcasts, so that (B, N, D) with (B, 1, C) draws N samples an
    image.

    Args:
        config: Its shape. Without a coupling (the kind "linear") it has no blocks, and changes nothing.
        coupling: Makes the couplings; by default what `COUPLINGS` holds under `config.coupling`.

    Raises:
        UnknownNameError: There is no coupling called `config.coupling`.

    >>> flow = CouplingFlow(FlowConfig(dim=6, blocks=2, width=16))
    >>> x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    >>> flow.initialize(x)
    >>> y, log_det = flow(x)
    >>> log_det.shape, bool(torch.allclose(flow.inverse(y), x, atol=1e-4))
    (torch.Size([300]), True)
    """

    def __init__(self, config: FlowConfig, *, coupling: CouplingFactory | None = None) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList()
        name = config.coupling
        if name is None:
            return
        if coupling is None:
            if name not in COUPLINGS:
                raise UnknownNameError(f"There is no coupling {quoted(name)}. {suggest(name, COUPLINGS)}")
            coupling = COUPLINGS[name]
        generator = torch.Generator().manual_seed(config.seed)
        self.blocks.extend(Block(config, i, coupling, generator) for i in range(config.blocks))

    @property
    def is_initialized(self) -> bool:
        """Whether every actnorm has taken its shift and scale from data."""
        return all(norm.is_initialized for norm in self.modules() if isinstance(norm, ActNorm))

    def project(self, context: Tensor) -> ProjectedContext:
        """Return what may be passed instead of `context` (..., C): each coupling's share, computed once.

        Raises:
            ShapeError: The context is not (..., C), or this flow takes none.
        """
        check_context(context, self.config.context_dim)
        context = self._cast(context)
        couplings: list[Any] = [coupling for block in self.parts() for coupling in block.couplings]
        terms = [c.project(context) if hasattr(c, "project") else context for c in couplings]
        return ProjectedContext(tuple(terms), context.shape[:-1])

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Map data `x` (..., D) to the base y (..., D), with log_det (...) in nats, float32 at least.

        Raises:
            ShapeError: A shape does not fit, or the context is missing or superfluous.
            NotFittedError: The flow was not initialised.
        """
        x, terms = self._prepare(x, context)
        if self.training and self.blocks and fast.applies(self.parts(), x, context):
            return fast.forward(self.config, self.parts(), x, None if context is None else cast(Tensor, terms[0][0]))
        log_det = x.new_zeros(x.shape[:-1], dtype=torch.promote_types(x.dtype, torch.float32))
        for block, pair in zip(self.parts(), terms, strict=True):
            x, term = block(x, *pair)
            log_det = log_det + term
        return x, log_det

    def inverse(self, y: Tensor, context: Context = None) -> Tensor:
        """Map the base `y` (..., D) back to data (..., D).

        Raises:
            ShapeError: A shape does not fit, or the context is missing or superfluous.
            NotFittedError: The flow was not initialised.
        """
        y, terms = self._prepare(y, context)
        for block, pair in zip(reversed(self.parts()), reversed(terms), strict=True):
            y = block.inverse(y, *pair)
        return y

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None, *, force: bool = False) -> None:
        """Set every actnorm from data `x` (..., D), block by block, in one pass; best 256 rows or more.

        Raises:
            ConfigError: It was initialised before, and `force` is false.
            ShapeError: A shape does not fit, or there are fewer than 2 rows.
            DataError: `x` or `context` holds NaN or infinity.
        """
        if self.is_initialized and not force:
            raise ConfigError("This flow is already initialised; pass force=True to set its actnorm layers anew.")
        x, terms = self._prepare(x, context)
        if isinstance(context, Tensor) and not bool(torch.isfinite(context).all()):
            raise DataError("The context to initialise from holds NaN or infinity; look for what made it.")
        with evaluating(self):
            for block, pair in zip(self.parts(), terms, strict=True):
                block.actnorm.initialize(x, force=True)
                x, _ = block(x, *pair)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and use, as any module does; outside training the fast path's memory is freed."""
        if not mode and self.blocks:
            Workspace.release(self.parts())
        return super().train(mode)

    def parts(self) -> list[Block]:
        """Return the blocks, first to last."""
        return cast(list[Block], list(self.blocks))

    @property
    def is_affine(self) -> bool:
        """Whether every coupling is the built-in affine one."""
        return bool(self.blocks) and are_affine(self.parts())

    def _cast(self, x: Tensor) -> Tensor:
        """Return `x` in the parameters' type; as it is where there are no parameters."""
        parameter = next(self.parameters(), None)
        return x if parameter is None else x.to(parameter.dtype)

    def _prepare(self, x: Tensor, context: Context) -> tuple[Tensor, list[tuple[Context, Context]]]:
        """Check and cast the inputs, expand x to the context's rows, and give each block its two contexts."""
        check_width(x, self.config.dim)
        if not self.blocks:
            return x, []
        check_context(context, self.config.context_dim)
        x = self._cast(x)
        terms: list[Context] = [context] * (2 * len(self.blocks))
        if context is not None:
            lead = context.lead if isinstance(context, ProjectedContext) else context.shape[:-1]
            try:
                rows = torch.broadcast_shapes(x.shape[:-1], lead)
            except RuntimeError:
                raise ShapeError(
                    f"x has the leading shape {tuple(x.shape[:-1])} and the context {tuple(lead)}; they must "
                    "broadcast: for n samples an image pass (B, n, D) with a context of (B, 1, C)."
                ) from None
            x = x.expand(*rows, x.shape[-1])
            if isinstance(context, Tensor):
                terms = [self._cast(context)] * len(terms)
            elif len(context.terms) == len(terms):
                terms = list(context.terms)
            else:
                raise ShapeError(
                    f"The projected context is for {len(context.terms)} couplings, this flow has "
                    f"{len(terms)}; use this flow's own project()."
                )
        return x, list(zip(terms[::2], terms[1::2], strict=True))
