"""One block of a coupling flow: actnorm, two couplings and a permutation (MSC A.2, fig. S1 and S2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from posthoc_inn.config import FlowConfig
from posthoc_inn.flows.actnorm import ActNorm
from posthoc_inn.flows.coupling import AffineCoupling, Context
from posthoc_inn.flows.permutation import Permutation

CouplingFactory = Callable[..., nn.Module]
"""`factory(config: FlowConfig, index: int, *, generator: torch.Generator) -> nn.Module`.

The module has forward(x, context) -> (y, log_det) and inverse(y, context) -> x; if it also has
`project(context)`, it may be handed what that returned in place of the context. Even indices move the first
half."""


class Block(nn.Module):
    """Actnorm, then two couplings (each half conditions the other once), then a fixed permutation."""

    def __init__(self, config: FlowConfig, index: int, coupling: CouplingFactory, generator: torch.Generator) -> None:
        super().__init__()
        self.actnorm = ActNorm(config.dim)
        self.couplings = nn.ModuleList(coupling(config, 2 * index + i, generator=generator) for i in range(2))
        seed = int(torch.randint(1 << 62, (), generator=generator, device="cpu"))
        self.permutation = Permutation(config.dim, seed)

    def forward(self, x: Tensor, first: Context, second: Context) -> tuple[Tensor, Tensor]:
        """Map `x` (..., D) to y (..., D) and log_det (...), with one context a coupling."""
        x, log_det = self.actnorm(x)
        for coupling, context in zip(self.couplings, (first, second), strict=True):
            x, term = coupling(x, context)
            log_det = log_det + term
        return x.index_select(-1, self.permutation.permutation), log_det

    def inverse(self, y: Tensor, first: Context, second: Context) -> Tensor:
        """Map `y` (..., D) back to x (..., D)."""
        y = self.permutation.inverse(y)
        for coupling, context in zip(reversed(self.couplings), (second, first), strict=True):
            y = coupling.inverse(y, context)  # type: ignore[operator]
        return self.actnorm.inverse(y)


def listed(blocks: nn.ModuleList) -> list[Block]:
    """Return the blocks, first to last."""
    return cast(list[Block], list(blocks))


def couplings_of(blocks: nn.ModuleList) -> list[Any]:
    """Return the couplings of all blocks, first to last."""
    return [coupling for block in listed(blocks) for coupling in block.couplings]


def is_affine(blocks: nn.ModuleList) -> bool:
    """Whether every coupling is the built-in affine one."""
    return all(type(coupling) is AffineCoupling for coupling in couplings_of(blocks))
