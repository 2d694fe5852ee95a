"""What is minimised and reported, as pure functions, in true nats with every constant.

MSC eq. 5, 12, 13 and A.1; IIN eq. 6-9 and 12, with the slips of both papers corrected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from posthoc_inn.errors import ConfigError, ShapeError

LOG_2PI = math.log(2 * math.pi)


def _wide(x: Tensor) -> Tensor:
    """Return `x` in float32 at least: sums of squares in half precision are worthless."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _same_shape(**tensors: Tensor) -> None:
    if len({tuple(t.shape) for t in tensors.values()}) > 1:
        found = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise ShapeError(f"Shapes must be equal; received {found}.")


def drawn(mean: Tensor, std: Tensor, random: int | torch.Generator) -> Tensor:
    """Return one draw of N(mean, std²), shape of `mean`, from a seed or a CPU generator, whatever the device.

    >>> drawn(torch.zeros(2), torch.zeros(2), 0).tolist()
    [0.0, 0.0]
    """
    generator = random if isinstance(random, torch.Generator) else torch.Generator().manual_seed(random)
    return mean + std * torch.randn(mean.shape, generator=generator).to(mean)


def standard_normal_nll(v: Tensor) -> Tensor:
    """Return ½ ‖v‖² + (D/2) log 2π, in nats: (..., D) to (...) (MSC eq. 5, where the constant lacks its ½).

    >>> [round(n, 2) for n in standard_normal_nll(torch.zeros(2, 64)).tolist()]
    [58.81, 58.81]
    """
    v = _wide(v)
    return 0.5 * (v.square().sum(dim=-1) + v.shape[-1] * LOG_2PI)


def flow_nll(v: Tensor, log_det: Tensor) -> Tensor:
    """Return the negative log-likelihood of a flow's data (MSC eq. 5), in nats, shape (...).

    Without any flow (log_det 0), data from N(0, 1) cost (D/2) log 2πe on average: 90.8, 181.6 and 363.2 nats
    at D = 64, 128 and 256.

    Args:
        v: What the flow returns, (..., D).
        log_det: Its log-determinant, (...), in nats.

    Raises:
        ShapeError: `log_det` does not hold one value a row of `v`.

    >>> round(flow_nll(torch.zeros(1, 2), torch.tensor([1.0])).item(), 4)
    0.8379
    """
    if log_det.shape != v.shape[:-1]:
        raise ShapeError(f"log_det has shape {tuple(log_det.shape)}; accepted is {tuple(v.shape[:-1])}, one a row.")
    return standard_normal_nll(v) - _wide(log_det)


def encoder_noise_entropy(std: Tensor) -> Tensor:
    """Return Σ ½ log(2πe σ²), in nats: (B, D) to (B,). Its mean over images is the floor of t's likelihood.

    >>> round(encoder_noise_entropy(torch.ones(1, 64)).item(), 1)
    90.8
    """
    std = _wide(std)
    return std.log().sum(dim=-1) + 0.5 * std.shape[-1] * (LOG_2PI + 1)


def kl_to_standard_normal(mean: Tensor, std: Tensor) -> Tensor:
    """Return KL(N(mean, std²) ‖ N(0, 1)), in nats: two (B, D) to (B,) (last term of the loss in MSC A.1).

    Raises:
        ShapeError: The shapes differ.

    >>> kl_to_standard_normal(torch.ones(1, 2), torch.ones(1, 2)).tolist()
    [1.0]
    """
    _same_shape(mean=mean, std=std)
    mean, std = _wide(mean), _wide(std)
    return (0.5 * (mean.square() + std.square() - 1) - std.log()).sum(dim=-1)


def pair_nll(
    e_a: Tensor | Sequence[Tensor],
    e_b: Tensor | Sequence[Tensor],
    shared: Tensor,
    factor_dims: Sequence[int],
    rho: float | Tensor,
    log_det_a: Tensor,
    log_det_b: Tensor,
) -> Tensor:
    """Return the negative log-likelihood of pairs of images that share some factors, in nats, shape (B,).

    Every factor is standard normal for either image; the dimensions of a shared factor correlate with ρ, or each with
    a ρ_d of its own (MSC eq. 10-13, IIN eq. 6-9, which have one ρ; with the missing ½ and all constants)::

        ½ Σ_k (e_k^a)² + ½ Σ_{k∉F} (e_k^b)² + ½ Σ_{k∈F} Σ_{d∈k} (e_d^b − ρ_d e_d^a)² / (1 − ρ_d²)
        + ½ Σ_{k∈F} Σ_{d∈k} log(1 − ρ_d²) + D log 2π − log_det_a − log_det_b

    Args:
        e_a: Factors of the first images, (B, D), or one tensor (B, factor_dims[k]) a factor.
        e_b: Factors of the second images, likewise.
        shared: Which factors a pair shares, boolean (B, K), one column a factor, the residual's (column 0)
            included: a pair that differs in factor F alone shares all columns but F. (K,) holds for all.
        factor_dims: Widths of the K factors, residual first; they add up to D.
        rho: Correlation of a shared factor, in [0, 1), 0.9 in MSC; or of each dimension where its factor is shared,
            (D,), in (-1, 1).
        log_det_a: Log-determinants of the first images, (B,), in nats.
        log_det_b: Log-determinants of the second images, (B,), in nats.

    Raises:
        ShapeError: A shape does not fit, or `shared` is not boolean.
        ConfigError: `rho` is outside [0, 1), or a ρ_d outside (-1, 1).

    >>> e, zero = torch.zeros(1, 3), torch.zeros(1)
    >>> round(pair_nll(e, e, torch.tensor([[False, False]]), (2, 1), 0.9, zero, zero).item(), 4)
    5.5136
    >>> round(pair_nll(e, e, torch.tensor([[False, True]]), (2, 1), 0.9, zero, zero).item(), 4)
    4.6833
    """
    if isinstance(rho, Tensor):
        _check_correlations(rho, sum(factor_dims))
    elif not 0 <= rho < 1:
        raise ConfigError(f"rho must be in [0, 1), got {rho}; the paper uses 0.9.")
    a, b = (_wide(e if isinstance(e, Tensor) else torch.cat(list(e), dim=-1)) for e in (e_a, e_b))
    _same_shape(e_a=a, e_b=b)
    widths = tuple(factor_dims)
    if a.ndim != 2 or sum(widths) != a.shape[-1]:
        raise ShapeError(
            f"Factors have shape {tuple(a.shape)}; accepted is (B, {sum(widths)}), from factor_dims {widths}."
        )
    if shared.dtype != torch.bool or shared.ndim not in (1, 2) or shared.shape[-1] != len(widths):
        raise ShapeError(
            f"shared is {shared.dtype} of shape {tuple(shared.shape)}; accepted is boolean "
            f"(B, {len(widths)}), one column a factor, the residual first."
        )
    if shared.ndim == 2 and len(shared) != len(a):
        raise ShapeError(f"shared has {len(shared)} rows for {len(a)} pairs; accepted is one a pair, or (K,) for all.")
    for name, log_det in (("log_det_a", log_det_a), ("log_det_b", log_det_b)):
        if log_det.shape != a.shape[:1]:
            raise ShapeError(f"{name} has shape {tuple(log_det.shape)}; accepted is ({len(a)},), one a pair.")
    mask = shared.to(a.device)[..., [k for k, n in enumerate(widths) for _ in range(n)]]
    left = (1 - rho) * (1 + rho)
    log_left = _wide(left).log() if isinstance(left, Tensor) else math.log(left)
    given_a = torch.where(mask, (b - rho * a).square() / left + log_left, b.square())
    quadratic = (a.square() + given_a).sum(dim=-1)
    return 0.5 * quadratic + a.shape[-1] * LOG_2PI - _wide(log_det_a) - _wide(log_det_b)


def _check_correlations(rho: Tensor, dim: int) -> None:
    if rho.shape != (dim,):
        raise ShapeError(f"rho has shape {tuple(rho.shape)}; accepted is a number, or ({dim},), one a dimension.")
    if not bool((rho.detach().abs() < 1).all()):
        raise ConfigError(f"rho must be in (-1, 1) in each dimension, got {rho.detach().tolist()}.")


def interaction_variance(values: Tensor) -> Tensor:
    """Return an unbiased estimate, one a row, of what in y(z, v) is neither of z alone nor of v alone, summed over D.

    ¼ ‖y(z, v) − y(z, v′) − y(z′, v) + y(z′, v′)‖². In expectation the variance of the interaction of z and v (the
    difference of total effect and first-order share in MSC eq. 20, before it is divided by the total). Of all t with
    the same likelihood, which differ by turns of v that depend on z, the one where this is least uses the same v for
    the same content.

    Args:
        values: y for two z and two v, (2, 2, B, D).

    Raises:
        ShapeError: `values` has another shape.

    >>> z, v = torch.randn(2, 1, 5, 3), torch.randn(1, 2, 5, 3)
    >>> bool((interaction_variance(z + v) < 1e-9).all())
    True
    """
    if values.ndim != 4 or values.shape[:2] != (2, 2):
        raise ShapeError(f"Values must be (2, 2, B, D), two z by two v, got {tuple(values.shape)}.")
    y = _wide(values)
    return 0.25 * (y[0, 0] - y[0, 1] - y[1, 0] + y[1, 1]).square().sum(dim=-1)
