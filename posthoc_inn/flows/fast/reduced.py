"""Standardise maps of many channels and bring them to few, a few images at a time, so that they stay in the cache.

A batch of 256 maps of 1024 × 14 × 14 takes 205 MB in float32: written, read and cast whole, it costs more than the
product. The same mathematics as `Standardization.standardize` and a 1 × 1 convolution, which tests compare it with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

VALUES = 1 << 19
"""Values of z at a time on a CPU: 2 MB in float32."""


def _parts(z: Tensor) -> Iterator[slice]:
    step = max(1, VALUES // max(1, z[0].numel())) if z.device.type == "cpu" else len(z)
    return (slice(k, k + step) for k in range(0, len(z), step))


class Reduced(torch.autograd.Function):
    """W · clip((z - mean) / std) + b at each place.

    Args:
        z: Maps (B, C, H, W), of any floating-point type.
        mean: (C, 1, 1).
        std: (C, 1, 1).
        clip: Standardised values are clipped at ± this.
        weight: W, (C', C, 1, 1).
        bias: b, (C').
        dtype: Of the products; None for that of the weights.

    Returns:
        (B, C', H, W), in the weights' type.
    """

    @staticmethod
    def _standardized(z: Tensor, mean: Tensor, std: Tensor, clip: float, dtype: torch.dtype) -> Tensor:
        return (z.to(mean.dtype) - mean).div_(std).clamp_(-clip, clip).to(dtype).flatten(2)

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        mean: Tensor,
        std: Tensor,
        clip: float,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """Return the product; z itself is kept for the gradient, as it came."""
        ctx.save_for_backward(z, mean, std, weight)
        ctx.clip, ctx.dtype = clip, dtype or weight.dtype
        w = weight.flatten(1).to(ctx.dtype)
        out = weight.new_empty(len(z), len(weight), *z.shape[2:])
        for rows in _parts(z):
            x = Reduced._standardized(z[rows], mean, std, clip, ctx.dtype)
            out[rows].flatten(2).copy_(torch.matmul(w, x))
        return out.add_(bias[:, None, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of z, of the weight and of the bias."""
        z, mean, std, weight = ctx.saved_tensors
        to_weight = torch.zeros_like(weight.flatten(1))
        to_z = torch.empty_like(z) if ctx.needs_input_grad[0] else None
        for rows in _parts(z):
            g = grad[rows].flatten(2).to(ctx.dtype)
            x = Reduced._standardized(z[rows], mean, std, ctx.clip, ctx.dtype)
            to_weight += torch.matmul(g, x.transpose(1, 2)).sum(dim=0, dtype=to_weight.dtype)
            if to_z is not None:
                back = torch.matmul(weight.flatten(1).T, grad[rows].flatten(2)).view_as(z[rows]) / std
                inside = ((z[rows].to(mean.dtype) - mean) / std).abs() <= ctx.clip
                to_z[rows] = (back * inside).to(z.dtype)
        return to_z, None, None, None, to_weight.view_as(weight), grad.sum(dim=(0, 2, 3)), None
