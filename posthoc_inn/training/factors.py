"""What the loop trains for e: pairs that share concepts (MSC eq. 13), or single images without any (IIN eq. 12)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posthoc_inn.concepts.model import CHUNK
from posthoc_inn.errors import DataError
from posthoc_inn.flows import FactorFlow
from posthoc_inn.objectives import flow_nll, pair_nll
from posthoc_inn.rows.latents import Rows
from posthoc_inn.rows.pairs import RowPairs
from posthoc_inn.seeds import derived
from posthoc_inn.training.tasks import Shuffle

HELD_OUT_PAIRS = 4096
MAX_RHO = 0.99
"""Bound of learned correlations. A dimension in which the images of training pairs hardly differ, because they are few
or learned by heart, would otherwise gain nats without end; and gradients grow with 1 / (1 - ρ²), which is 50 here."""


class FactorLoss(nn.Module):
    """The negative log-likelihood of pairs under e (MSC eq. 13), averaged, as a module.

    Args:
        flow: e.
        rho: Correlation of shared factors, one number or one a dimension, (D,).
        learned: Learn it, a dimension at a time, from there, within ±`MAX_RHO`. Dimensions that pairs do not share end
            near 0, and the factors' deviations near 1 whatever pairs share. With one fixed ρ a factor whose images
            correlate less than that is shrunk instead.

    >>> from posthoc_inn.config import FlowConfig
    >>> loss = FactorLoss(FactorFlow(FlowConfig(dim=2, blocks=1, width=2), (1, 1)), 0.9, learned=True)
    >>> [round(r, 4) for r in loss.rho.tolist()]
    [0.9, 0.9]
    """

    def __init__(self, flow: FactorFlow, rho: float | Tensor, *, learned: bool = False) -> None:
        super().__init__()
        self.flow = flow
        parameter = next(flow.parameters())
        start = torch.as_tensor(rho, dtype=torch.float32).expand(flow.config.dim).clone().to(parameter.device)
        self.raw_rho = nn.Parameter((start / MAX_RHO).clamp(-0.999, 0.999).atanh()) if learned else None
        self.fixed_rho: Tensor
        self.register_buffer("fixed_rho", start, persistent=False)

    @property
    def rho(self) -> Tensor:
        """Correlation of each dimension where its factor is shared, (D,)."""
        # Of a tangent, not of a logistic function: 0 lies inside, so that an estimate of 0 is not pushed to one side.
        return self.fixed_rho if self.raw_rho is None else MAX_RHO * self.raw_rho.tanh()

    def forward(self, a: Tensor, b: Tensor, shared: Tensor) -> Tensor:
        """Return the mean loss, a scalar in nats an image, for latents a, b (B, D) and `shared` (B, K + 1)."""
        factors, log_det = self.flow(torch.cat([a, b]))
        joined, n = torch.cat(factors, dim=-1), len(a)
        pairs = pair_nll(joined[:n], joined[n:], shared, self.flow.factor_dims, self.rho, log_det[:n], log_det[n:])
        return 0.5 * pairs.mean()


class FactorTask:
    """Trains e on pairs of cached rows.

    Args:
        flow: e, initialised.
        rows: Of training.
        pairs: Of those rows.
        held_out: Rows that are kept aside, and their pairs.
        rho: Correlation of a shared factor, or of each dimension, (D,).
        learn_rho: Learn it from there, see `FactorLoss`.
        batch_size: Pairs a step.
        seed: Of pairs and noise.
    """

    name = "e"

    def __init__(
        self,
        flow: FactorFlow,
        rows: Rows,
        pairs: RowPairs,
        held_out: tuple[Rows, RowPairs],
        *,
        rho: float | Tensor,
        learn_rho: bool = False,
        batch_size: int,
        seed: int,
    ) -> None:
        self.module = FactorLoss(flow, rho, learned=learn_rho)
        self._rows, self._pairs, self._held_out = rows, pairs, held_out
        self._batch_size, self._seed = batch_size, seed

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return latents of both images, (B, D) each, and which factors they share, (B, K + 1)."""
        a, b, shared = self._pairs.draw(self._batch_size, seed=derived(self._seed, "pairs", step))
        return self._rows.drawn(a, generator), self._rows.drawn(b, generator), shared

    def held_out(self) -> dict[str, float]:
        """Return the loss on held-out pairs, nats an image, the same pairs and noise each time."""
        rows, pairs = self._held_out
        a, b, shared = pairs.draw(HELD_OUT_PAIRS, seed=0)
        return {"loss": _mean_loss(self.module, rows, (a, b, shared))}


def _mean_loss(module: nn.Module, rows: Rows, columns: tuple[Tensor, Tensor, Tensor]) -> float:
    device = next(module.parameters()).device
    generator = torch.Generator().manual_seed(0)
    total, count = 0.0, 0
    for a, b, shared in zip(*(c.split(CHUNK) for c in columns), strict=True):
        drawn = [rows.drawn(index, generator).to(device) for index in (a, b)]
        total += float(module(*drawn, shared.to(device))) * len(a)
        count += len(a)
    return total / count


class DensityLoss(nn.Module):
    """The negative log-likelihood of single images under e (IIN eq. 12, signs corrected), as a module."""

    def __init__(self, flow: FactorFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean loss, a scalar in nats an image, for latents (B, D)."""
        factors, log_det = self.flow(x)
        return flow_nll(torch.cat(factors, dim=-1), log_det).mean()


class DensityTask:
    """Trains e without concepts, on single rows.

    Args:
        flow: e, initialised.
        rows: Of training.
        held_out: Rows that are kept aside.
        batch_size: Rows a step.
        seed: Of order and noise.
    """

    name = "e"

    def __init__(self, flow: FactorFlow, rows: Rows, held_out: Rows, *, batch_size: int, seed: int) -> None:
        self.module = DensityLoss(flow)
        self._rows, self._held_out = rows, held_out
        self._shuffle = Shuffle(len(rows), batch_size, seed)

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return latents (B, D)."""
        return (self._rows.drawn(self._shuffle.index(step), generator),)

    def held_out(self) -> dict[str, float]:
        """Return the loss on held-out rows, nats an image."""
        device = next(self.module.parameters()).device
        index = torch.arange(min(len(self._held_out), 2 * HELD_OUT_PAIRS))
        if not len(index):
            raise DataError("There are no held-out images to measure e on.")
        generator = torch.Generator().manual_seed(0)
        parts = index.split(CHUNK)
        total = sum(float(self.module(self._held_out.drawn(p, generator).to(device))) * len(p) for p in parts)
        return {"loss": total / len(index)}
