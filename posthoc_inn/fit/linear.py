"""The linear t beside every t: fitted in closed form, and used where the trained one is worse on held-out images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_inn.autoencoders.base import CHUNK
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.flows.conditional import Row
from posthoc_inn.flows.linear import LinearGaussian, pooled
from posthoc_inn.flows.linear_fit import FOLDS, basis_sizes
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training import History
from posthoc_inn.training.tasks import flow_nats

LINEAR_ROWS = 50_000
"""Training rows that the linear t is fitted to at the most, in blocks from all over the data."""
COMPARED = 10_000
"""Held-out rows that t and the linear t are compared on at the most."""


def some_rows(rows: Cache) -> Iterator[Row]:
    """Yield blocks of z, mean and deviation: all rows, or of many as many as are needed, evenly spread."""
    count = len(rows)
    if count <= LINEAR_ROWS:
        yield from rows.batches(CHUNK, "z", "mean", "std")  # type: ignore[misc]
        return
    blocks = LINEAR_ROWS // CHUNK
    for k in range(blocks):
        start = k * (count - CHUNK) // (blocks - 1)
        z, mean, std = (rows[name].span(start, start + CHUNK) for name in ("z", "mean", "std"))
        yield z, mean, std


def fit_linear(flow: ConditionalFlow, rows: Cache, held_out: Cache | None = None, *, seed: int) -> Tensor | None:
    """Fit the linear model of `flow` to cached rows, in closed form.

    Args:
        flow: Of a kind that has such a model.
        rows: Training rows.
        held_out: Rows that choose ridge and shrinkage: copies of one image may lie in every fold of the others.
        seed: Of draws.

    Returns:
        What regressions without a row expect for it, (N, D), which blocks after the model are trained on; None where
        there are so many rows that it makes no difference.
    """
    pick = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    pick = pick[: basis_sizes(_features(flow))[1]]
    apart = tuple if held_out is None else lambda: some_rows(held_out)
    found = flow.fit_linear(lambda: some_rows(rows), rows["z"].rows(pick), apart=apart, seed=seed)
    if not flow.is_trained or len(rows) > LINEAR_ROWS:
        return None
    places = torch.arange(len(rows)).split(CHUNK)
    return torch.cat([flow.left_out(rows["z"].rows(index), found, index) for index in places])


def fitted_linear(flow: ConditionalFlow, rows: Cache, held_out: Cache | None = None, *, seed: int) -> ConditionalFlow:
    """Return the linear t for what `flow` is for: its own, or one that is fitted to cached rows."""
    if not flow.is_trained:
        return flow
    linear = flow.linear_part()
    if not linear.is_initialized:
        fit_linear(linear, rows, held_out, seed=seed)
    return linear


def closed_form_history(flow: ConditionalFlow, rows: Cache, held_out: Cache, seconds: float) -> History:
    """Return the history of a t that was fitted in one step."""
    train, kept = (float(flow_nats(flow, cache, limit=4096).mean()) for cache in (rows, held_out))
    history = History(stopped="finished", seconds=seconds)
    history.add(step=1, train=train, held_out=kept, lr=0.0, gradient_norm=0.0)
    return history


def _sizes(flow: ConditionalFlow) -> tuple[int, int, int]:
    """Return the numbers of features, of those that enter the regression, and of latents, of the linear t."""
    return _features(flow), basis_sizes(_features(flow))[0], flow.flow.config.dim


def _features(flow: ConditionalFlow) -> int:
    return math.prod(pooled(flow.conditioner.config.z_shape))


def linear_bytes(flow: ConditionalFlow) -> int:
    """Return about how many bytes the fit of the linear t takes for a while."""
    features, kept, dim = _sizes(flow)
    moments = 8 * (kept + dim) ** 2
    basis = 4 * features * (basis_sizes(features)[1] + 3 * kept) if kept < features else 0
    # Of each fold: moments, those of the others, eigenvectors, and both turned into their basis.
    return 4 * FOLDS * moments + basis + 8 * features * dim


def linear_seconds(flow: ConditionalFlow, z: Tensor, rows: int) -> float:
    """Return about how many seconds the fit of the linear t to so many rows takes, from a few products timed now.

    Args:
        flow: t.
        z: Features of some rows, (B, *z_shape).
        rows: Training rows.
    """
    features, kept, dim = _sizes(flow)
    model = LinearGaussian(dim, flow.conditioner.config.z_shape)
    z = z.float().cpu()
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(64, features, generator=generator)
    narrow, latents = few[:, :kept].double(), torch.randn(64, dim, generator=generator).double()
    basis = torch.zeros(kept, features)
    square = torch.randn(min(256, kept + dim), min(256, kept + dim), generator=generator).double()

    def pooling() -> None:
        model.features(z)

    def row_products() -> None:
        if kept < features:
            _ = few @ basis.T
        _ = narrow.T @ narrow, narrow.T @ latents, latents.T @ latents

    def solving() -> None:
        torch.linalg.eigh(square @ square.T)

    each = _time(pooling) / len(z) + _time(row_products) / 64
    # A decomposition for each fold and for all; turning and scoring take about as long again.
    solved = 2 * (FOLDS + 1) * _time(solving) * ((kept + dim) / len(square)) ** 3
    found = _time(row_products) / 64 * features / kept * basis_sizes(features)[1] if kept < features else 0.0
    return each * min(rows, LINEAR_ROWS) + solved + found


def _time(work: Callable[[], object]) -> float:
    """Return the shorter of two runs after a first, in seconds."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times[1:])


@dataclass(frozen=True)
class Comparison:
    """How a trained t does against the linear one.

    Attributes:
        gain: Nats by which the trained t is likelier, on held-out rows.
        error: Its standard error.
    """

    gain: float
    error: float

    @property
    def is_worse(self) -> bool:
        """Whether the trained t is worse by more than the standard error, or gives no number at all."""
        return not self.gain >= -self.error

    def note(self, is_used: bool) -> str | None:
        """Return what a user has to know: nothing where the trained t is clearly better."""
        if self.gain > self.error:
            return None
        found = f"{-self.gain:.2f} ± {self.error:.2f} nats an image"
        if not self.is_worse:
            return (
                f"t is no better than a linear t (ridge regression): on held-out images the linear one is likelier by "
                f"{found}. More images, more steps, or the preset few may help."
            )
        used = (
            "so the linear one is what is used; linear_fallback=False keeps the trained one"
            if is_used
            else "and the trained one is what is used, as linear_fallback=False asks"
        )
        return (
            f"A linear t (ridge regression) is likelier than the trained t on held-out images, by {found}: {used}. "
            "More images, more steps, or the preset few may help."
        )


def compare(flow: ConditionalFlow, linear: ConditionalFlow, held_out: Cache) -> Comparison:
    """Compare two flows on the same held-out rows, and the same draws of the encoder."""
    gains = flow_nats(linear, held_out, limit=COMPARED) - flow_nats(flow, held_out, limit=COMPARED)
    return Comparison(float(gains.mean()), float(gains.std()) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0)
