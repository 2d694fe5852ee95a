"""Rational-quadratic splines against Durkan et al.'s equations, written out, and at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from posthoc_inn.config import FlowConfig
from posthoc_inn.flows import SplineCoupling, rational_quadratic_spline
from posthoc_inn.flows.spline import MAX_LOG_SLOPE, MIN_BIN

TAIL = 3.0


def parameters(n, bins=6, *, scale=1.0, dtype=torch.float64):
    return tuple(torch.randn(n, k, dtype=dtype) * scale for k in (bins, bins, bins - 1))


def numpy_spline(x, widths, heights, slopes):
    if not -TAIL < x < TAIL:
        return x, 0.0
    bins = len(widths)

    def sizes(raw):
        e = np.exp(raw - raw.max())
        return 2 * TAIL * (MIN_BIN / bins + (1 - MIN_BIN) * e / e.sum())

    w, h = sizes(widths), sizes(heights)
    x_knots, y_knots = -TAIL + np.r_[0, w.cumsum()], -TAIL + np.r_[0, h.cumsum()]
    d = np.r_[1, np.exp(MAX_LOG_SLOPE * np.tanh(slopes / MAX_LOG_SLOPE)), 1]
    k = max(i for i in range(bins) if x_knots[i] <= x)
    s, xi = h[k] / w[k], (x - x_knots[k]) / w[k]
    below = s + (d[k + 1] + d[k] - 2 * s) * xi * (1 - xi)
    y = y_knots[k] + h[k] * (s * xi**2 + d[k] * xi * (1 - xi)) / below
    slope = s**2 * (d[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + d[k] * (1 - xi) ** 2) / below**2
    return y, math.log(slope)


def test_it_equals_the_equations_in_numpy():
    raw, x = parameters(200, scale=2.0), torch.linspace(-4, 4, 200, dtype=torch.float64)
    y, log_slope = rational_quadratic_spline(x, *raw, tail=TAIL)
    expected = [numpy_spline(x[i].item(), *(p[i].numpy() for p in raw)) for i in range(200)]
    np.testing.assert_allclose(y, [e[0] for e in expected], atol=1e-10)
    np.testing.assert_allclose(log_slope, [e[1] for e in expected], atol=1e-9)


def test_zero_parameters_give_the_identity():
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    raw = (torch.zeros(101, 6), torch.zeros(101, 6), torch.zeros(101, 5))
    for inverse in (False, True):
        y, log_slope = rational_quadratic_spline(x, *(p.double() for p in raw), tail=TAIL, inverse=inverse)
        torch.testing.assert_close(y, x)
        torch.testing.assert_close(log_slope, torch.zeros_like(x), atol=1e-12, rtol=0)


def test_it_is_monotone_and_continuous_at_its_knots_and_ends():
    raw = tuple(p.expand(20001, -1) for p in parameters(1, scale=3.0))
    x = torch.linspace(-4, 4, 20001, dtype=torch.float64)
    y, log_slope = rational_quadratic_spline(x, *raw, tail=TAIL)
    assert (y.diff() > 0).all()
    assert y.diff().max() < 0.1
    assert torch.trapezoid(log_slope.exp(), x).item() == pytest.approx((y[-1] - y[0]).item(), rel=1e-2)


@pytest.mark.parametrize("inverse", [False, True])
def test_the_log_slope_is_that_of_autograd(inverse):
    raw, x = parameters(300), torch.linspace(-3.5, 3.5, 300, dtype=torch.float64).requires_grad_()
    y, log_slope = rational_quadratic_spline(x, *raw, tail=TAIL, inverse=inverse)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient.log(), log_slope, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 0.05)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 1000.0])
def test_the_inverse_holds_for_any_parameters(dtype, bound, scale):
    """In float32 the bound is for parameters at their limits; unit-scale ones keep 2e-3."""
    raw = parameters(20000, scale=scale, dtype=dtype)
    x = (torch.rand(20000, dtype=dtype) * 2 - 1) * 1.1 * TAIL
    y, _ = rational_quadratic_spline(x, *raw, tail=TAIL)
    back, _ = rational_quadratic_spline(y, *raw, tail=TAIL, inverse=True)
    assert (back - x).abs().max() < (min(bound, 2e-3) if scale <= 1 else bound)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradients_are_finite_at_the_ends_on_knots_and_far_outside(inverse, scale):
    edge = torch.tensor([TAIL, -TAIL, 0.0, 1e-30, 1e6, -1e30, 3.0000002, -2.9999998, 1.0, -1.0])
    x = edge.repeat(50).requires_grad_()
    raw = [p.requires_grad_() for p in parameters(500, scale=scale, dtype=torch.float32)]
    zero = [torch.zeros_like(p).requires_grad_() for p in raw]
    for set_of in (raw, zero):
        y, log_slope = rational_quadratic_spline(x, *set_of, tail=TAIL, inverse=inverse)
        assert y.isfinite().all()
        assert log_slope.isfinite().all()
        for gradient in torch.autograd.grad(y.sum() + log_slope.sum(), [x, *set_of]):
            assert gradient.isfinite().all()


def test_outside_it_is_the_identity_with_slope_one():
    x = torch.tensor([-100.0, -3.0, 3.0, 50.0]).requires_grad_()
    y, log_slope = rational_quadratic_spline(x, *parameters(4, dtype=torch.float32), tail=TAIL)
    assert torch.equal(y, x)
    assert not log_slope.any()
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1, 1, 1, 1]


def test_bins_and_tail_come_from_the_configuration():
    coupling = SplineCoupling(FlowConfig(dim=4, kind="spline", width=8, bins=3, tail=1.5))
    assert coupling.nets[0].output.out_features == 2 * (3 + 3 + 2)
    torch.nn.init.normal_(coupling.nets[0].output.bias)
    y, _ = coupling(torch.tensor([[1.4, -1.6, 0.0, 0.0]]))
    assert y[0, 0] != 1.4
    assert y[0, 1] == -1.6
