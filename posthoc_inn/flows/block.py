"""One block of a flow: actnorm, two couplings and a permutation (MSC A.2, fig. S1 and S2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
half. A module whose `keeps_places` is true is one for maps: nothing is shuffled between such."""


class Block(nn.Module):
    """Actnorm, then two couplings (each half conditions the other once), then a fixed permutation, not of maps.

    Args:
        config: Shape of the flow.
        index: Position among the flow's blocks.
        coupling: Makes the couplings.
        generator: Draws the initial weights and the permutation.

    >>> block = Block(FlowConfig(dim=4, width=8), 0, AffineCoupling, torch.Generator().manual_seed(0))
    >>> block.actnorm.initialize_as_identity()
    >>> x = torch.arange(8.0).reshape(2, 4)
    >>> y, log_det = block(x, None, None)
    >>> log_det.tolist(), bool(torch.equal(block.inverse(y, None, None), x))
    ([0.0, 0.0], True)
    """

    def __init__(self, config: FlowConfig, index: int, coupling: CouplingFactory, generator: torch.Generator) -> None:
        super().__init__()
        self.actnorm = ActNorm(config.dim)
        self.couplings = nn.ModuleList(coupling(config, 2 * index + i, generator=generator) for i in range(2))
        seed = int(torch.randint(1 << 62, (), generator=generator, device="cpu"))
        keeps_places = getattr(self.couplings[0], "keeps_places", False)
        self.permutation = Permutation(config.dim, None if keeps_places else seed)

    def forward(self, x: Tensor, first: Context, second: Context) -> tuple[Tensor, Tensor]:
        """Map `x` (..., D) to y (..., D) and log_det (...) in nats, with one context a coupling."""
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


def are_affine(blocks: Sequence[Block]) -> bool:
    """Whether every coupling of `blocks` is the built-in affine one, which the fast paths are written for."""
    return all(type(coupling) is AffineCoupling for block in blocks for coupling in block.couplings)
