"""The fast path of sampling: t⁻¹ for many samples of each image, in chunks that stay in the processor's cache.

The same mathematics as `CouplingFlow.inverse`, which tests compare it with. What depends on the context alone is
computed once per image; weights are brought into the compute precision once per call; the rest happens in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posthoc_inn.config import FlowConfig
from posthoc_inn.flows.block import Block
from posthoc_inn.flows.fast.workspace import Net, Workspace

CHUNK = 512
"""Samples at a time: their hidden layers fit into a processor's cache, their products are still large enough."""


@torch.no_grad()
def inverse(config: FlowConfig, blocks: Sequence[Block], v: Tensor, context: Tensor) -> Tensor:
    """Return t⁻¹(v given the context), shape (B, N, D), without gradients.

    Args:
        config: Shape of a conditional flow.
        blocks: Its blocks, with built-in affine couplings only (`are_affine`), in eval mode.
        v: (B, N, D); may live on another device, from where it is brought chunk by chunk.
        context: (B, C).

    Raises:
        NotFittedError: The flow was not initialised.
    """
    work = Workspace.of(config, blocks)
    parameters = tuple(work.parameters())
    work.refresh(parameters)
    run = _Inverse(work, parameters)
    images, n, dim = v.shape
    out = torch.empty(images, n, dim, dtype=work.dtype, device=work.device)
    together = max(1, CHUNK // max(n, 1))
    for start in range(0, images, together):
        rows = slice(start, start + together)
        terms = run.terms(context[rows].to(work.device))
        for first in range(0, n, CHUNK):
            draws = slice(first, first + CHUNK)
            part = v[rows, draws].to(work.device, work.dtype)
            out[rows, draws] = run(part.flatten(0, 1), terms).view_as(part)
    Workspace.release(blocks)
    return out


class _Inverse:
    def __init__(self, work: Workspace, parameters: tuple[Tensor, ...]) -> None:
        self.work, self.parameters = work, parameters
        self.shifts = parameters[work.shifts]
        self.scales = torch.stack(parameters[work.log_scales]).neg().exp_()

    def terms(self, context: Tensor) -> list[Tensor]:
        """Return what each first layer adds to its product, (B, 1, width) each."""
        work, bias = self.work, torch.cat(self.parameters[self.work.input_biases])
        product = F.linear(context.to(work.compute), work.context_weight).to(work.dtype).add_(bias)
        return list(product.unsqueeze(1).split(work.config.width, dim=-1))

    def __call__(self, y: Tensor, terms: list[Tensor]) -> Tensor:
        """Return data (B · n, D) for base values `y` (B · n, D), n rows an image."""
        work, config = self.work, self.work.config
        half = config.dim // 2
        sizes = [half, config.dim - half]
        left, couplings = list(terms), list(work.couplings)
        for k in reversed(range(config.blocks)):
            y = y.index_select(1, work.inverse_permutations[k])
            first, second = y.split(sizes, dim=1)
            for moved, kept in ((second, first), (first, second)):
                self._move_back(couplings.pop(), moved, kept, left)
            y.mul_(self.scales[k]).sub_(self.shifts[k])
        return y

    def _move_back(self, nets: tuple[Net, ...], moved: Tensor, kept: Tensor, left: list[Tensor]) -> None:
        """Undo a coupling in place; takes its subnets' terms from the back of `left`."""
        raw = [self._net(net, kept, left.pop()) for net in reversed(nets)][::-1]
        scale, shift = raw if len(nets) == 2 else raw[0].chunk(2, dim=1)
        bound = self.work.config.scale_bound
        moved.sub_(shift).mul_((torch.tanh(scale / bound) * -bound).exp_())

    def _net(self, net: Net, kept: Tensor, term: Tensor) -> Tensor:
        """Return the subnet's output (B · n, outputs)."""
        work, p = self.work, self.parameters
        h = torch.mm(kept, p[net.input].t())
        h.view(len(term), -1, h.shape[1]).add_(term)
        h = self._activate(h.to(work.compute))
        for weight, bias in zip(net.hidden, net.hidden_biases, strict=True):
            h = self._activate(torch.addmm(work.copies[bias], h, work.transposed[weight]))
        return torch.addmm(p[net.output_bias], h.to(work.dtype), p[net.output].t())

    def _activate(self, h: Tensor) -> Tensor:
        """Return the activation of `h`, in its memory where the activation can."""
        activation = self.work.activation
        if isinstance(activation, nn.SiLU):
            return F.silu(h, inplace=True)
        if isinstance(activation, nn.LeakyReLU):
            return F.leaky_relu(h, activation.negative_slope, inplace=True)
        return cast(Tensor, activation(h))
