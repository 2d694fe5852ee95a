"""The fast path of training: a whole affine flow as one autograd function with a backward pass written by hand.

Same parameters, same mathematics as `Coupling` and `ActNorm`, which stay the readable version and the one that runs in
eval mode; tests hold the two together. (Forward hooks on the parts of a flow therefore run in eval mode only.) What it
saves at every step: autograd's bookkeeping for some fifty small operations a coupling; one product for the contexts of
all couplings instead of one each; casts, by keeping weights, hidden layers and their gradients in the compute
precision; joins and splits, by writing halves in place; and fresh pages for hundreds of megabytes of gradients, by
using the same memory again. Scale exponents, log-determinants, first and last layers of the forward pass stay in the
parameters' precision.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from posthoc_inn.config import FlowConfig
from posthoc_inn.flows.block import Block, are_affine
from posthoc_inn.flows.fast.workspace import Net, Workspace
from posthoc_inn.flows.subnet import draw_keep

_BACKWARD: dict[type[nn.Module], Callable[[Tensor, Tensor, Any, Tensor], Tensor]] = {
    nn.SiLU: lambda grad, pre, module, out: torch.ops.aten.silu_backward.grad_input(grad, pre, grad_input=out),
    nn.ReLU: lambda grad, pre, module, out: torch.ops.aten.threshold_backward.grad_input(grad, pre, 0, grad_input=out),
    nn.GELU: lambda grad, pre, module, out: torch.ops.aten.gelu_backward.grad_input(
        grad, pre, approximate=module.approximate, grad_input=out
    ),
    nn.LeakyReLU: lambda grad, pre, module, out: torch.ops.aten.leaky_relu_backward.grad_input(
        grad, pre, module.negative_slope, False, grad_input=out
    ),
}
"""Writes the gradient at the input of an activation, from the gradient at its output and the input, to `out`."""


def applies(blocks: Sequence[Block], x: Tensor, context: Any) -> bool:
    """Whether `forward` may stand in for `blocks` in training: with gradients, on affine couplings as built in."""
    if not (torch.is_grad_enabled() and are_affine(blocks)):
        return False
    if not (context is None or isinstance(context, Tensor)) or torch.is_autocast_enabled(x.device.type):
        return False
    # torch.func cannot see into a function like this one. Where torch does not tell whether it is at work, it may be.
    functorch = getattr(torch._C, "_functorch", None)
    peek = getattr(functorch, "peek_interpreter_stack", None)
    return peek is not None and peek() is None


def forward(config: FlowConfig, blocks: Sequence[Block], x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what `blocks` make of `x` (..., D), expanded to the context's rows: y (..., D) and log_det (...) in nats.

    Shapes were checked before. The result can be differentiated once.

    Raises:
        NotFittedError: The flow was not initialised.
    """
    lead = x.shape[:-1]
    rows = x.reshape(-1, x.shape[-1])
    if context is not None:
        context = context.expand(*lead, context.shape[-1]).reshape(-1, context.shape[-1])
    workspace = Workspace.of(config, blocks)
    y, log_det = cast(tuple[Tensor, Tensor], _Function.apply(workspace, rows, context, *workspace.parameters()))
    return y.reshape(*lead, -1), log_det.reshape(lead)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, workspace: Workspace, x: Tensor, context: Tensor | None, *parameters: Tensor) -> Any:
        run = _Pass(workspace, parameters, None if context is None else context.to(workspace.compute))
        out = run.forward(x)
        # Handed to autograd, which frees them in time, and notices when one is changed before the backward pass.
        lists = run.lists()
        ctx.save_for_backward(*(tensor for tensors in lists for tensor in tensors))
        ctx.lengths = [len(tensors) for tensors in lists]
        ctx.lent = run.lent
        ctx.workspace = workspace
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dlog_det: Tensor) -> Any:
        saved = iter(ctx.saved_tensors)
        run = _Pass.from_lists(ctx.workspace, [list(itertools.islice(saved, n)) for n in ctx.lengths])
        dx, dcontext, gradients = run.backward(dy, dlog_det, need_context=ctx.needs_input_grad[2])
        run.give_back()
        for name, buffer in ctx.lent.items():
            ctx.workspace.take_back(name, buffer)
        ctx.lent = {}
        return (None, dx, dcontext, *gradients)


class _Pass:
    """One forward pass, or its backward pass."""

    def __init__(self, workspace: Workspace, parameters: tuple[Tensor, ...], context: Tensor | None) -> None:
        self.workspace, self.parameters, self.context = workspace, parameters, context
        self.gain = 256 / (256 - workspace.dropped)
        self.lent: dict[str, Tensor] = {}
        self.masks: list[Tensor] = []  # one a hidden layer
        self.before: list[Tensor] = []  # the activations, one a hidden layer
        self.after: list[Tensor] = []
        self.scales: list[Tensor] = []  # one a coupling
        self.kept: list[Tensor] = []  # one a coupling
        self.inputs: list[Tensor] = []  # one a block, after actnorm
        self.tanhs = self.exps = parameters[0]

    def lists(self) -> list[list[Tensor]]:
        """Return everything that the backward pass needs."""
        single = [self.tanhs, self.exps] + ([] if self.context is None else [self.context])
        return [list(self.parameters), single, self.masks, self.before, self.after, self.scales, self.kept, self.inputs]

    @classmethod
    def from_lists(cls, workspace: Workspace, lists: list[list[Tensor]]) -> _Pass:
        """Undo `lists`."""
        parameters, single, *rest = lists
        run = cls(workspace, tuple(parameters), single[2] if len(single) == 3 else None)
        run.tanhs, run.exps = single[:2]
        run.masks, run.before, run.after, run.scales, run.kept, run.inputs = rest
        return run

    def _lend(self, name: str, *shape: int, dtype: torch.dtype) -> Tensor:
        buffer = self.workspace.lend(name, shape, dtype)
        self.lent[name] = buffer
        return buffer

    def give_back(self, *names: str) -> None:
        """Return the named buffers, or all, to the workspace."""
        for name in names or tuple(self.lent):
            self.workspace.take_back(name, self.lent.pop(name))

    # ---- forward

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        work = self.workspace
        config, half, rows = work.config, work.config.dim // 2, len(x)
        work.refresh(self.parameters)
        shifts, log_scales = (torch.stack(self.parameters[place]) for place in (work.shifts, work.log_scales))
        self.exps = log_scales.exp()
        offsets = shifts * self.exps
        terms = self._context_terms(rows, x.dtype)
        self.tanhs = self._lend("tanh", rows, config.blocks * config.dim, dtype=x.dtype)
        self._draw_masks(rows)
        tanhs = iter(self.tanhs.split(work.halves, dim=1))
        nets, permutations = iter(work.couplings), work.permutations
        for exp, offset, permutation in zip(self.exps.unbind(), offsets.unbind(), permutations, strict=True):
            x = torch.addcmul(offset, x, exp)
            self.inputs.append(x)
            y = torch.empty_like(x)
            first, second = x.split([half, config.dim - half], dim=1)
            moved_first, moved_second = y.split([half, config.dim - half], dim=1)
            self._couple(next(nets), first, second, terms, next(tanhs), moved_first)
            self._couple(next(nets), second, moved_first, terms, next(tanhs), moved_second)
            x = y.index_select(1, permutation)
        self.give_back("terms")
        precise = torch.promote_types(x.dtype, torch.float32)
        log_det = self.tanhs.sum(1, dtype=precise).mul_(config.scale_bound).add_(log_scales.sum(dtype=precise))
        return x, log_det

    def _context_terms(self, rows: int, dtype: torch.dtype) -> Iterator[Tensor]:
        """Return what each first layer adds to its product: offset and share of the context, (B, width)."""
        work = self.workspace
        bias = torch.cat(self.parameters[work.input_biases])
        terms = self._lend("terms", rows, len(bias), dtype=dtype)
        if self.context is None:
            terms.copy_(bias.expand_as(terms))
        elif not work.is_mixed:
            torch.addmm(bias, self.context, work.context_weight.t(), out=terms)
        else:
            product = self._lend("dterms", *terms.shape, dtype=work.compute)
            terms.copy_(torch.mm(self.context, work.context_weight.t(), out=product)).add_(bias)
            self.give_back("dterms")
        return iter(terms.split(work.config.width, dim=1))

    def _draw_masks(self, rows: int) -> None:
        """Draw the dropout masks of all layers at once; what is kept is scaled up within the next product."""
        work = self.workspace
        if work.dropped:
            shape = (work.subnets * work.config.depth, rows, work.config.width)
            masks = self._lend("masks", *shape, dtype=work.compute)
            self.masks = list(draw_keep(masks, work.dropped).unbind())

    def _couple(
        self, nets: tuple[Net, ...], moved: Tensor, kept: Tensor, terms: Iterator[Tensor], tanh: Tensor, out: Tensor
    ) -> None:
        """Write `moved` · s + shift to `out` and tanh(raw scale / bound) to `tanh`."""
        raw = [self._net(net, kept, next(terms)) for net in nets]
        scale, shift = raw if len(nets) == 2 else raw[0].chunk(2, dim=1)
        bound = self.workspace.config.scale_bound
        if bound == 1:
            s = torch.tanh(scale, out=tanh).exp()
        else:
            s = (torch.div(scale, bound, out=tanh).tanh_() * bound).exp_()
        torch.addcmul(shift, moved, s, out=out)
        self.scales.append(s)
        self.kept.append(kept)

    def _net(self, net: Net, kept: Tensor, term: Tensor) -> Tensor:
        """Return the subnet's output (B, outputs)."""
        work, p = self.workspace, self.parameters
        pre = torch.addmm(term, kept, p[net.input].t()).to(work.compute)
        h = self._activate(pre)
        for weight, bias in zip(net.hidden, net.hidden_biases, strict=True):
            pre = torch.addmm(work.copies[bias], h, work.transposed[weight], alpha=self.gain)
            h = self._activate(pre)
        return torch.addmm(p[net.output_bias], h.to(term.dtype), p[net.output].t(), alpha=self.gain)

    def _activate(self, pre: Tensor) -> Tensor:
        """Return the hidden layer (B, width), thinned out by its mask but not yet scaled up."""
        h: Tensor = self.workspace.activation(pre)
        if self.masks:
            h.mul_(self.masks[len(self.after)])
        self.before.append(pre)
        self.after.append(h)
        return h

    # ---- backward

    def backward(
        self, dy: Tensor, dlog_det: Tensor, *, need_context: bool
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...]]:
        """Return the gradients of the input, the context and every parameter."""
        work = self.workspace
        config, half, rows, dtype = work.config, work.config.dim // 2, len(dy), self.exps.dtype
        work.begin_gradients()
        sizes = [half, config.dim - half]
        width = config.width
        dterms = self._lend("dterms", rows, work.subnets * width, dtype=work.compute)
        dhidden = self._lend("dhidden", work.subnets * (config.depth - 1), rows, width, dtype=work.compute)
        draw = self._lend("draw", rows, 2 * config.blocks * config.dim, dtype=dtype)
        # One slice a layer, taken from the back.
        self.dterms, self.dhidden = list(dterms.split(width, dim=1)), list(dhidden.unbind())
        dlog_det = dlog_det.to(dtype)
        column = dlog_det[:, None]
        tanhs, draws = list(self.tanhs.split(work.halves, dim=1)), list(draw.split([2 * n for n in work.halves], dim=1))
        couplings = list(work.couplings)
        d_log_scale, d_shift = torch.empty_like(self.exps), torch.empty_like(self.exps)
        d = dy
        for k in reversed(range(config.blocks)):
            d = d.index_select(1, work.inverse_permutations[k])
            x = self.inputs.pop()
            (first, second), (d_first, d_second) = x.split(sizes, dim=1), d.split(sizes, dim=1)
            for moved, dm, dk in ((second, d_second, d_first), (first, d_first, d_second)):
                self._couple_back(couplings.pop(), moved, tanhs.pop(), draws.pop(), column, dm, dk)
            torch.sum(d * x, 0, out=d_log_scale[k])
            torch.sum(d, 0, out=d_shift[k])
            d.mul_(self.exps[k])
        return d, *self._finish(dterms, dhidden, draw, d_log_scale.add_(dlog_det.sum()), d_shift, need_context)

    def _couple_back(
        self,
        nets: tuple[Net, ...],
        moved: Tensor,
        tanh: Tensor,
        draw: Tensor,
        column: Tensor,
        dm: Tensor,
        dk: Tensor,
    ) -> None:
        """Turn `dm` from the gradient after the coupling into that before it; add its subnets' share to `dk`."""
        work = self.workspace
        s, kept = self.scales.pop(), self.kept.pop().to(work.compute)
        d_scale, d_shift = draw.chunk(2, dim=1)
        # d log s = dm · moved · s + d log_det, and log s = bound · tanh(raw / bound).
        torch.ops.aten.tanh_backward.grad_input(torch.addcmul(column, dm, moved * s), tanh, grad_input=d_scale)
        d_shift.copy_(dm)
        dm.mul_(s)
        parts = [draw] if len(nets) == 1 else [d_scale, d_shift]
        for net, part in zip(reversed(nets), reversed(parts), strict=True):
            self._net_back(net, part.to(work.compute), kept, dk)

    def _net_back(self, net: Net, g: Tensor, kept: Tensor, dk: Tensor) -> None:
        """Write the gradients of a subnet's weights; add that of its input to `dk`."""
        work = self.workspace
        weights = [*net.hidden, net.output]
        back = _BACKWARD[type(work.activation)]
        while weights:
            weight, pre = weights.pop(), self.before.pop()
            work.put_product(weight, g.t(), self.after.pop(), self.gain)
            dh = torch.addmm(pre, g, work.copies[weight], beta=0, alpha=self.gain)
            if self.masks:
                dh.mul_(self.masks.pop())
            g = back(dh, pre, work.activation, (self.dhidden if weights else self.dterms).pop())
        work.put_product(net.input, g.t(), kept)
        dk.add_(torch.mm(g, work.copies[net.input]))

    def _finish(
        self, dterms: Tensor, dhidden: Tensor, draw: Tensor, d_log_scale: Tensor, d_shift: Tensor, need_context: bool
    ) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
        """Sum up what is left to sum, and return the gradients of the context and the parameters."""
        work, dtype = self.workspace, self.exps.dtype
        dcontext = None
        if self.context is not None:
            work.put_context(dterms.t(), self.context)
            if need_context:
                dcontext = torch.mm(dterms, work.context_weight).to(dtype)
        exact = dterms.sum(0), dhidden.sum(1), draw.sum(0)
        gradients = work.collect(*exact, d_shift.mul_(self.exps), d_log_scale)
        return dcontext, gradients
