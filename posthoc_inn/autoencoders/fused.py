"""The autoencoder's training loss with its gradient written out: what autograd computes, in fewer and faster passes.

Same parameters, same numbers as `ConvAutoencoder.loss_figures`; `tests/autoencoders/test_fused.py` holds them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from posthoc_inn.objectives import kl_to_standard_normal

SLOPE = 0.2
"""Of the leaky ReLUs, below zero."""

MIN_LOG_VAR, MAX_LOG_VAR = -14.0, 4.0
"""Bounds of the encoder's log-variance: a density that is never degenerate, and no overflow."""

SPREAD_FLOOR = 0.05
"""Added to a channel's standard deviation (of values in [-1, 1]) before dividing by it: flat channels stay quiet."""

VARIANCE_FLOOR = 1e-3
"""Added to the variance of a decoded channel before it is divided by its root."""

_LANES = 16
"""Convolutions on CPUs are much slower when their output channels do not fill the vector registers."""


def upsampled(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `F.conv_transpose2d(x, weight, bias, stride=2, padding=1)` for 4x4 kernels, in channels-last order.

    Every output pixel sees 2x2 input pixels, through the quarter of the kernel that belongs to its row's and column's
    parity. One 2x2 convolution computes the four parities as channels; sorting them into the grid gives the picture.

    Args:
        x: (B, C, H, W), channels last.
        weight: (C, C', 4, 4).
        bias: (C',).

    Returns:
        (B, C', 2H, 2W).
    """
    (batch, _, height, width), (before, after) = x.shape, weight.shape[:2]
    # Row 2q + r of the kernel reaches output row 2(i + q) + r - 1 from input row i.
    kernel = weight.reshape(before, after, 2, 2, 2, 2).flip(2, 4).permute(3, 5, 1, 0, 2, 4)
    kernel = kernel.reshape(4 * after, before, 2, 2)
    biases = None if bias is None else bias.repeat(4)
    missing = -4 * after % _LANES
    if missing:
        kernel = F.pad(kernel, (0, 0, 0, 0, 0, 0, 0, missing))
        biases = None if biases is None else F.pad(biases, (0, missing))
    out = F.conv2d(x, kernel.contiguous(memory_format=torch.channels_last), biases, padding=1)
    out = out.permute(0, 2, 3, 1)[..., : 4 * after].reshape(batch, height + 1, width + 1, 2, 2 * after)
    rows = out.transpose(2, 3).reshape(batch, 2 * height + 2, (2 * width + 2) * after)
    out = rows[:, 1:-1, after:-after].reshape(batch, 2 * height, 2 * width, after)
    return out.permute(0, 3, 1, 2)


def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of a 4x4 kernel (C', C, 4, 4) with stride 2 and padding 1.

    Args:
        x: The convolution's input (B, C, 2H, 2W), channels last.
        gradient: That of its output, (B, C', H, W), channels last.
        weight: The kernel.
    """
    # Laid out as one matrix product with all patches, this is faster alone and slower within a step.
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
    )[1]
    return found


def _rows(x: Tensor) -> Tensor:
    """Return a channels-last map (B, C, H, W) as a matrix (B·H·W, C), without a copy."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _through_leaky_relu(gradient: Tensor, out: Tensor) -> Tensor:
    """Return the gradient before a leaky ReLU, from that after it and its output."""
    return torch.ops.aten.leaky_relu_backward(gradient, out, SLOPE, True)  # type: ignore[no-any-return]


class FusedLoss(torch.autograd.Function):
    """Loss, error and KL of `ConvAutoencoder.loss_figures` for kind "conv", in `dtype` where bulk arithmetic goes.

    Statistics, log-variances, KL and the loss itself are in the images' own precision. What the decoder's
    standardisation and the squared error need of a channel are three moments, of pixels and their product with the
    images': no pass over the pixels but those, and two for their gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, noise: Tensor, min_gamma: float, depth: int, dtype: torch.dtype, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, error and KL, scalars, for images (B, C, H, W) in [0, 1] and noise (B, D).

        `parameters`: weight and bias of `depth` convolutions, the encoder's linear layer and its one for statistics,
        the decoder's one for statistics and its linear layer, and `depth` transposed convolutions.
        """
        batch, channels, height, width = images.shape
        count = height * width
        low = [p.to(dtype) for p in parameters]
        pairs = [(low[k], low[k + 1]) for k in range(0, len(low), 2)]
        down, (to_latent, to_latent_bias) = pairs[:depth], pairs[depth]
        (from_latent, from_latent_bias), up = pairs[depth + 3], pairs[depth + 4 :]
        coded, coded_bias, stated, stated_bias = parameters[2 * depth + 2 : 2 * depth + 6]

        pixels = images.reshape(batch * channels, count)
        mean = pixels.mean(1, keepdim=True)
        centred = pixels - mean
        spread = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / math.sqrt(count - 1)
        # In [0, 1] deviations are half as large as in [-1, 1].
        content = (centred * (spread + SPREAD_FLOOR / 2).reciprocal()).to(dtype).view_as(images)
        statistics = torch.cat([(2 * mean - 1).view(batch, -1), (2 * spread).view(batch, -1)], dim=1)
        maps = [content.contiguous(memory_format=torch.channels_last)]
        for weight, bias in down:
            maps.append(F.leaky_relu_(F.conv2d(maps[-1], weight, bias, stride=2, padding=1), SLOPE))
        flat = maps[-1].flatten(1)
        out = F.linear(flat, to_latent, to_latent_bias).to(images.dtype) + F.linear(statistics, coded, coded_bias)
        latent_mean, raw = out.chunk(2, dim=1)
        std = (0.5 * raw.clamp(MIN_LOG_VAR, MAX_LOG_VAR)).exp()
        z_bar = latent_mean + std * noise

        z_low = z_bar.to(dtype)
        side = maps[-1].shape[2]
        grown = [F.linear(z_low, from_latent, from_latent_bias).unflatten(1, (-1, side, side))]
        grown[0] = grown[0].contiguous(memory_format=torch.channels_last)
        for number, (weight, bias) in enumerate(up):
            # What a bias adds to every pixel of a picture, its standardisation takes away.
            picture = upsampled(grown[-1], weight, bias if number < depth - 1 else None)
            if number < depth - 1:
                grown.append(F.leaky_relu_(picture, SLOPE))
        decoded = picture.to(images.dtype, memory_format=torch.contiguous_format).view(batch * channels, count)
        decoded = decoded - decoded.mean(1, keepdim=True)
        variance = torch.linalg.vector_norm(decoded, dim=1).square() / count
        covariance = (decoded * centred).sum(1) * (2 / count)
        offset, scale = F.linear(z_bar, stated, stated_bias).chunk(2, dim=1)
        offset = (offset - statistics[:, :channels]).reshape(-1)
        root = (variance + VARIANCE_FLOOR).sqrt()
        gain = scale.reshape(-1) / root
        own = spread.view(-1).square() * (4 * (count - 1) / count)
        error = (gain * (gain * variance - 2 * covariance) + offset.square() + own).mean()
        kl = kl_to_standard_normal(latent_mean, std).mean()
        gamma = error.clamp_min(min_gamma)
        loss = 0.5 * (error / gamma + torch.log(2 * math.pi * gamma)) + kl / (channels * count)

        ctx.depth, ctx.dtype, ctx.counts = depth, dtype, (batch, channels, count)
        ctx.save_for_backward(
            *(noise, centred, statistics, flat, latent_mean, raw, std, z_bar, z_low),
            *(decoded, variance, covariance, offset, root, gain, gamma, stated),
            *low,
            *maps,
            *grown,
        )
        ctx.mark_non_differentiable(error, kl)
        return loss, error, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the loss for each parameter."""
        (batch, channels, count), depth, dtype = ctx.counts, ctx.depth, ctx.dtype
        saved: Sequence[Tensor] = ctx.saved_tensors
        noise, centred, statistics, flat, latent_mean, raw, std, z_bar, z_low = saved[:9]
        decoded, variance, covariance, offset, root, gain, gamma, stated = saved[9:17]
        low, saved = saved[17 : 17 + 4 * depth + 8], saved[17 + 4 * depth + 8 :]
        maps, grown = saved[: depth + 1], saved[depth + 1 :]
        down, up = low[0 : 2 * depth : 2], low[2 * depth + 8 :: 2]
        to_latent, from_latent = low[2 * depth], low[2 * depth + 6]

        # The squared error of a channel is gain² variance - 2 gain covariance + offset² + the images' own variance.
        share = upstream * 0.5 / (gamma * (batch * channels))
        to_gain = 2 * (gain * variance - covariance)
        to_variance = gain.square() - 0.5 * to_gain * gain / root.square()
        to_statistics = torch.cat(
            [(share * 2 * offset).view(batch, -1), (share * to_gain / root).view(batch, -1)], dim=1
        )
        gradient = decoded * (share * to_variance * (2 / count))[:, None]
        gradient.addcmul_(centred, (share * gain * (-4 / count))[:, None])

        side = 2 ** (depth) * maps[-1].shape[2]
        g = gradient.to(dtype).view(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
        late: list[Tensor] = [torch.zeros_like(low[-1])]
        for number in range(depth - 1, -1, -1):
            late.insert(0, _weight_gradient(g, grown[number], up[number]))
            g = F.conv2d(g, up[number], stride=2, padding=1)
            if number:
                g = _through_leaky_relu(g, grown[number])
                late.insert(0, _rows(g).sum(0))
        g_flat = g.flatten(1)
        g_z = (g_flat @ from_latent).to(z_bar.dtype) + to_statistics @ stated
        middle = [to_statistics.t() @ z_bar, to_statistics.sum(0), g_flat.t() @ z_low, g_flat.sum(0)]

        kl_share = upstream / (batch * channels * count)
        g_mean = torch.addcmul(g_z, latent_mean, kl_share)
        g_log_var = 0.5 * (g_z * noise * std + kl_share * (std.square() - 1))
        g_log_var = g_log_var * ((raw >= MIN_LOG_VAR) & (raw <= MAX_LOG_VAR))
        g_out = torch.cat([g_mean, g_log_var], dim=1)
        g_low = g_out.to(dtype)
        middle = [g_low.t() @ flat, g_out.sum(0), g_out.t() @ statistics, g_out.sum(0), *middle]

        g = (g_low @ to_latent).view(maps[-1].shape).contiguous(memory_format=torch.channels_last)
        early: list[Tensor] = []
        for number in range(depth - 1, -1, -1):
            g = _through_leaky_relu(g, maps[number + 1])
            early = [_weight_gradient(maps[number], g, down[number]), _rows(g).sum(0), *early]
            if number:
                g = upsampled(g, down[number])
        return None, None, None, None, None, *(part.to(z_bar.dtype) for part in (*early, *middle, *late))
