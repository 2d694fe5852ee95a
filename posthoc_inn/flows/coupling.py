"""Couplings (MSC eq. 14-15, with a context eq. 17-18): one half moves elementwise, as the other half says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from posthoc_inn.config import FlowConfig
from posthoc_inn.errors import ShapeError
from posthoc_inn.flows.subnet import Subnet


@dataclass(frozen=True)
class ProjectedContext:
    """What first layers make of a context, computed once and passed wherever the context may be.

    Attributes:
        terms: One entry a coupling (of a flow) or a subnet (of a coupling); opaque.
        lead: Leading shape of the context it was made from.
    """

    terms: tuple[Any, ...]
    lead: torch.Size


Context = Tensor | ProjectedContext | None


def check_context(context: Context, context_dim: int) -> None:
    """Check that a context is there exactly if one is expected, and has the right width.

    Raises:
        ShapeError: It is missing, superfluous, or not (..., C).
    """
    if context_dim == 0 and context is not None:
        raise ShapeError("A context was given, but this flow was built without one (context_dim=0); pass None.")
    if context_dim and context is None:
        raise ShapeError(f"No context was given; this flow needs one of shape (..., {context_dim}).")
    if isinstance(context, Tensor) and (context.ndim < 1 or context.shape[-1] != context_dim):
        raise ShapeError(f"The context has shape {tuple(context.shape)}; accepted is (..., {context_dim}).")


def check_width(x: Tensor, dim: int, name: str = "x") -> None:
    """Check that `x` is (..., D).

    Raises:
        ShapeError: It is not.
    """
    if x.ndim < 1 or x.shape[-1] != dim:
        raise ShapeError(f"{name} has shape {tuple(x.shape)}; accepted is (..., {dim}).")


class Coupling(nn.Module):
    """Base of the built-in couplings: splits, asks the subnets for parameters, joins.

    A subclass sets `heads` and implements `_move` and `_move_back`. The halves of an odd D are D // 2 and
    D - D // 2.

    Args:
        config: Shape of the flow.
        index: Position in the flow; an even one moves the first half, an odd one the second.
        generator: Draws the initial weights; by default one seeded with `config.seed`.
    """

    heads: ClassVar[tuple[str, ...]] = ()
    """Names of the parameter groups, one subnet each where the configuration asks for separate networks."""

    def __init__(self, config: FlowConfig, index: int = 0, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.moves_first = index % 2 == 0
        first = config.dim // 2
        self.sizes = (first, config.dim - first)
        moved, kept = self.sizes if self.moves_first else self.sizes[::-1]
        generator = generator or torch.Generator().manual_seed(config.seed)
        counts = [self._count(head) * moved for head in self.heads]
        outputs = counts if config.separate_nets else [sum(counts)]
        self.nets = nn.ModuleList(
            Subnet(
                kept,
                config.context_dim,
                n,
                width=config.width,
                depth=config.depth,
                activation=config.activation,
                dropout=config.dropout,
                generator=generator,
            )
            for n in outputs
        )
        self._counts = counts

    def _count(self, head: str) -> int:
        """Return how many numbers of `head` one moved feature needs."""
        return 1

    def _move(self, x: Tensor, *heads: Tensor) -> tuple[Tensor, Tensor]:
        """Move `x` (..., M) under raw parameters, one tensor a head; return y (..., M) and log_det (...)."""
        raise NotImplementedError

    def _move_back(self, y: Tensor, *heads: Tensor) -> Tensor:
        """Undo `_move`."""
        raise NotImplementedError

    def project(self, context: Tensor) -> ProjectedContext:
        """Return what may be passed instead of `context` (..., C), so that its share is computed once.

        Raises:
            ShapeError: The context is not (..., C).
        """
        check_context(context, self.config.context_dim)
        return ProjectedContext(tuple(net.project(context) for net in self._subnets()), context.shape[:-1])

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Map `x` (..., D) to y (..., D) and log_det (...), in nats; `context` (..., C) broadcasts over rows.

        Raises:
            ShapeError: A width is wrong, or the context is missing or superfluous.
        """
        moved, kept = self._split(x)
        moved, log_det = self._move(moved, *self._heads(kept, context))
        return self._join(moved, kept), log_det

    def inverse(self, y: Tensor, context: Context = None) -> Tensor:
        """Map `y` (..., D) back to x (..., D).

        Raises:
            ShapeError: A width is wrong, or the context is missing or superfluous.
        """
        moved, kept = self._split(y)
        return self._join(self._move_back(moved, *self._heads(kept, context)), kept)

    def _subnets(self) -> list[Subnet]:
        return cast(list[Subnet], list(self.nets))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_width(x, self.config.dim)
        first, second = torch.split(x, list(self.sizes), dim=-1)
        return (first, second) if self.moves_first else (second, first)

    def _join(self, moved: Tensor, kept: Tensor) -> Tensor:
        return torch.cat([moved, kept] if self.moves_first else [kept, moved], dim=-1)

    def _heads(self, kept: Tensor, context: Context) -> list[Tensor]:
        check_context(context, self.config.context_dim)
        if isinstance(context, Tensor):
            context = self.project(context)
        terms = [None] * len(self.nets) if context is None else context.terms
        raw = [net(kept, term) for net, term in zip(self._subnets(), terms, strict=True)]
        return raw if self.config.separate_nets else list(torch.split(raw[0], self._counts, dim=-1))


class AffineCoupling(Coupling):
    """y = x · s + t with log s = b · tanh(raw / b), |log s| < b = `scale_bound` (MSC eq. 14-15, 17-18).

    >>> coupling = AffineCoupling(FlowConfig(dim=5, width=8, context_dim=3), index=0)
    >>> x, context = torch.randn(4, 5), torch.randn(4, 3)
    >>> y, log_det = coupling(x, context)
    >>> bool(torch.equal(y, x)), log_det.shape  # starts as the identity
    (True, torch.Size([4]))
    """

    heads = ("scale", "shift")

    def _log_scale(self, raw: Tensor) -> Tensor:
        bound = self.config.scale_bound
        return bound * torch.tanh(raw / bound)

    def _move(self, x: Tensor, *heads: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = heads
        log_scale = self._log_scale(raw)
        log_det = log_scale.sum(dim=-1, dtype=torch.promote_types(log_scale.dtype, torch.float32))
        return x * log_scale.exp() + shift, log_det

    def _move_back(self, y: Tensor, *heads: Tensor) -> Tensor:
        raw, shift = heads
        return (y - shift) * (-self._log_scale(raw)).exp()
