"""Monotone rational-quadratic splines (Durkan et al. 2019, arXiv:1906.04032, eq. 4-8), and their coupling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_inn.flows.coupling import Coupling

MIN_BIN = 0.1
"""Least size of a bin, in either direction, as a share of that of bins of equal size."""
MAX_LOG_SLOPE = math.log(20)
"""Bound of the log-derivative at a knot. Inside a bin the derivative can fall to about 4 s² / slope, where s is the
bin's height over its width; with the usual 1e-3 for both bounds that is 1e-9, which float32 cannot invert."""


def _knots(raw: Tensor, tail: float) -> tuple[Tensor, Tensor]:
    """Turn raw sizes (..., bins) into knots (..., bins + 1) from -tail to tail, and bin sizes (..., bins)."""
    bins = raw.shape[-1]
    shares = MIN_BIN / bins + (1 - MIN_BIN) * F.softmax(raw, dim=-1)
    inner = shares.cumsum(dim=-1)[..., :-1] * (2 * tail) - tail
    knots = F.pad(F.pad(inner, (1, 0), value=-tail), (0, 1), value=tail)
    return knots, knots.diff(dim=-1)


def rational_quadratic_spline(
    x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, *, tail: float, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Apply a monotone spline on [-tail, tail], the identity outside, elementwise.

    All parameters zero give the identity. Inputs outside are clipped before the spline is evaluated, so that
    the branch that is then masked out has finite values and gradients.

    Args:
        x: Inputs (...).
        widths: Raw bin widths (..., bins), before the softmax.
        heights: Raw bin heights (..., bins), before the softmax.
        slopes: Raw log-derivatives (..., bins - 1) at the inner knots, before bounding; at both ends the
            slope is 1.
        tail: Half the length of the interval.
        inverse: Whether the inverse is applied.

    Returns:
        The outputs (...) and the log-derivative (...) of the applied direction, in nats.
    """
    x_knots, x_sizes = _knots(widths, tail)
    y_knots, y_sizes = _knots(heights, tail)
    log_slopes = MAX_LOG_SLOPE * torch.tanh(slopes / MAX_LOG_SLOPE)
    slope_knots = F.pad(log_slopes, (1, 1)).exp()
    clipped = x.clamp(-tail, tail)
    knots = y_knots if inverse else x_knots
    # The bin that holds x: inner knots at or below it; both ends belong to the outer bins.
    index = (clipped.unsqueeze(-1) >= knots[..., 1:-1]).sum(dim=-1, keepdim=True)

    def at(values: Tensor, offset: int = 0) -> Tensor:
        return values.gather(-1, index + offset).squeeze(-1)

    x_low, width, y_low, height = at(x_knots), at(x_sizes), at(y_knots), at(y_sizes)
    low, high = at(slope_knots), at(slope_knots, 1)
    mean = height / width
    bend = low + high - 2 * mean
    if inverse:
        rise = clipped - y_low
        a = height * (mean - low) + rise * bend
        b = height * low - rise * bend
        c = -mean * rise
        # Not negative in exact arithmetic; rounding near a bin's end can make it so.
        root = (b.square() - 4 * a * c).clamp_min(0).sqrt()
        theta = (2 * c / (-b - root)).clamp(0, 1)
        out = theta * width + x_low
    else:
        theta = ((clipped - x_low) / width).clamp(0, 1)
        out = y_low
    product = theta * (1 - theta)
    denominator = mean + bend * product
    if not inverse:
        out = y_low + height * (mean * theta.square() + low * product) / denominator
    numerator = mean.square() * (high * theta.square() + 2 * mean * product + low * (1 - theta).square())
    log_slope = numerator.log() - 2 * denominator.log()
    inside = (x > -tail) & (x < tail)
    log_slope = torch.where(inside, -log_slope if inverse else log_slope, torch.zeros_like(log_slope))
    return torch.where(inside, out, x), log_slope


class SplineCoupling(Coupling):
    """A coupling that moves its half along rational-quadratic splines of `bins` bins on [-tail, tail].

    >>> from posthoc_inn.config import FlowConfig
    >>> coupling = SplineCoupling(FlowConfig(dim=4, kind="spline", width=8), index=1)
    >>> x = torch.linspace(-6, 6, 8).reshape(2, 4)
    >>> y, log_det = coupling(x)
    >>> bool(torch.allclose(y, x, atol=1e-5)), bool(log_det.abs().max() < 1e-5)  # starts as the identity
    (True, True)
    """

    heads = ("width", "height", "slope")

    def _count(self, head: str) -> int:
        return self.config.bins - 1 if head == "slope" else self.config.bins

    def _apply_spline(self, x: Tensor, heads: tuple[Tensor, ...], *, inverse: bool) -> tuple[Tensor, Tensor]:
        parameters = [raw.reshape(*raw.shape[:-1], x.shape[-1], -1) for raw in heads]
        return rational_quadratic_spline(x, *parameters, tail=self.config.tail, inverse=inverse)

    def _move(self, x: Tensor, *heads: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self._apply_spline(x, heads, inverse=False)
        return y, log_slope.sum(dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))

    def _move_back(self, y: Tensor, *heads: Tensor) -> Tensor:
        return self._apply_spline(y, heads, inverse=True)[0]
