"""Memory that the fast path of a flow uses again at every step, and the order of parameters within it."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from posthoc_inn.config import FlowConfig
from posthoc_inn.flows.block import Block
from posthoc_inn.flows.subnet import Subnet

LARGE = 2**18
"""Elements from which on a hidden layer's gradient is worth an operation of its own."""

_WORKSPACES: weakref.WeakKeyDictionary[Block, Workspace] = weakref.WeakKeyDictionary()
"""First block of a flow -> workspace. A workspace holds parts of blocks, no block: both go when the flow goes."""


@dataclass(frozen=True)
class Net:
    """Where the parameters of one subnet lie among those of the flow.

    Attributes:
        input: Weight of the first layer.
        hidden: Weights of the layers between first and last.
        hidden_biases: Their biases.
        output: Weight of the last layer.
        output_bias: Its bias.
    """

    input: int
    hidden: tuple[int, ...]
    hidden_biases: tuple[int, ...]
    output: int
    output_bias: int


class Workspace:
    """What the fast path keeps of one flow between steps; see `posthoc_inn.flows.fast.training`.

    Parameters are taken in one order: weights of the first, hidden, last and context layers, then all that is no
    matrix: biases in the same order, shifts and log-scales of actnorm. Gradients lie side by side in that order.
    """

    def __init__(self, config: FlowConfig, blocks: Sequence[Block]) -> None:
        self.config = config
        nets = [cast(Subnet, net) for c in _couplings(blocks) for net in c.nets]
        self.activation: nn.Module = nets[0].activation
        self.subnets = len(nets)
        first, second = config.dim // 2, config.dim - config.dim // 2
        self.halves = [first, second] * config.blocks
        between = config.depth - 1
        groups = _groups(nets, [block.actnorm for block in blocks])
        ends = list(itertools.accumulate(len(group) for group in groups.values()))
        places = {name: slice(end - len(groups[name]), end) for name, end in zip(groups, ends, strict=True)}
        self.input_biases, self.shifts, self.log_scales = places["input_bias"], places["shift"], places["log_scale"]
        self._sources = [source for group in groups.values() for source in group]
        self._weights = slice(0, places["context"].stop)

        def described(i: int) -> Net:
            inner = range(i * between, (i + 1) * between)  # hidden layers of this subnet among those of all
            return Net(
                input=i,
                hidden=tuple(places["hidden"].start + j for j in inner),
                hidden_biases=tuple(places["hidden_bias"].start + j for j in inner),
                output=places["output"].start + i,
                output_bias=places["output_bias"].start + i,
            )

        step = self.subnets // (2 * config.blocks)
        self.couplings = [
            tuple(described(i) for i in range(k * step, (k + 1) * step)) for k in range(2 * config.blocks)
        ]
        parameters = self.parameters()
        example = parameters[0]
        self.key = _key(blocks)
        self.device, self.dtype = example.device, example.dtype
        self.compute = compute_dtype(blocks) or self.dtype
        self.dropped = nets[0].dropout.dropped if nets[0].dropout is not None else 0
        self._sizes = [p.numel() for p in parameters]
        self._shapes = [p.shape for p in parameters]
        self._hidden, self._context, self._hidden_biases = (places[k] for k in ("hidden", "context", "hidden_bias"))
        self._weight_size = sum(self._sizes[self._weights])
        self.is_mixed = self.compute != self.dtype
        self.copies: dict[int, Tensor] = {}
        self._written: list[Tensor] = []  # copies of weights and hidden biases, in the parameters' order
        columns = config.context_dim or 1
        if self.is_mixed:
            flat = torch.empty(self._weight_size, dtype=self.compute, device=self.device)
            self._written = _cut(flat, self._shapes[self._weights])
            self._written += [
                torch.empty(s, dtype=self.compute, device=self.device) for s in self._shapes[self._hidden_biases]
            ]
            self.copies = dict(zip(self._copied(), self._written, strict=True))
            self.context_weight = self._context_part(flat)
            # Large products are widened one by one, from a scratch that stays in the processor's cache.
            self._is_large = config.width**2 >= LARGE
        else:
            self.context_weight = torch.empty(
                sum(self._sizes[self._context]) // columns, columns, dtype=self.dtype, device=self.device
            )
        self._flat: Tensor | None = None
        self._narrow: Tensor | None = None
        self._references = 0
        self.permutations: list[Tensor] = []
        self.inverse_permutations: list[Tensor] = []
        self._free: dict[tuple[str, tuple[int, ...]], list[Tensor]] = {}

    @classmethod
    def of(cls, config: FlowConfig, blocks: Sequence[Block]) -> Workspace:
        """Return the workspace of a flow's blocks, made anew when their precision or device changed.

        Raises:
            NotFittedError: The flow was not initialised.
        """
        for block in blocks:
            block.actnorm.check_initialized()
        found = _WORKSPACES.get(blocks[0])
        if found is None or found.key != _key(blocks):
            found = _WORKSPACES[blocks[0]] = cls(config, blocks)
        found.permutations = [block.permutation.permutation for block in blocks]
        found.inverse_permutations = [block.permutation.inverse_permutation for block in blocks]
        return found

    @staticmethod
    def release(blocks: Sequence[Block]) -> None:
        """Give back the memory kept for a flow's blocks."""
        _WORKSPACES.pop(blocks[0], None)

    def parameters(self) -> list[Tensor]:
        """Return the flow's parameters in the workspace's order."""
        return [getattr(module, name) for module, name in self._sources]

    def _copied(self) -> list[int]:
        """Return the places of the parameters that are needed in the compute precision."""
        return [*range(self._weights.stop), *range(self._hidden_biases.start, self._hidden_biases.stop)]

    def refresh(self, parameters: tuple[Tensor, ...]) -> None:
        """Bring the copies in the compute precision, and the joined weight of the context, up to date."""
        needed = [parameters[i] for i in self._copied()]
        if self.is_mixed:
            _copy_all(self._written, needed)
        else:
            self.copies = dict(zip(self._copied(), needed, strict=True))
            if self.config.context_dim:
                torch.cat(parameters[self._context], out=self.context_weight)
        self.transposed = {i: self.copies[i].t() for i in range(self._hidden.start, self._hidden.stop)}

    def _context_part(self, flat: Tensor) -> Tensor:
        """Return the context layers' share of all weights, which follow each other, as one matrix."""
        start, size = sum(self._sizes[: self._context.start]), sum(self._sizes[self._context])
        return flat[start : start + size].view(-1, self.config.context_dim or 1)

    # ---- gradients

    def begin_gradients(self) -> None:
        """Find memory for all gradients: that of the step before, unless something still refers to it.

        Hundreds of megabytes of fresh pages take a CPU longer to get than to fill.
        """
        if self.is_mixed and self._narrow is None:
            size = max(self._sizes[self._weights]) if self._is_large else self._weight_size
            size = max(size, sum(self._sizes[self._context]))
            self._narrow = torch.empty(size, dtype=self.compute, device=self.device)
            self._products = [] if self._is_large else _cut(self._narrow, self._shapes[self._weights])
        if self._flat is None or self._references < 0 or _references(self._flat) != self._references:
            self._flat = torch.empty(sum(self._sizes), dtype=self.dtype, device=self.device)
            self._targets = _cut(self._flat, self._shapes[self._weights])
            self._references = _references(self._flat)

    def put_product(self, weight: int, a: Tensor, b: Tensor, gain: float = 1.0) -> None:
        """Write gain · a @ b as the gradient of the weight at place `weight`."""
        target = self._targets[weight]
        if not self.is_mixed:
            torch.addmm(target, a, b, beta=0, alpha=gain, out=target)
        elif self._is_large:
            product = cast(Tensor, self._narrow)[: target.numel()].view(target.shape)
            target.copy_(torch.addmm(product, a, b, beta=0, alpha=gain, out=product))
        else:
            product = self._products[weight]
            torch.addmm(product, a, b, beta=0, alpha=gain, out=product)

    def put_context(self, a: Tensor, b: Tensor) -> None:
        """Write a @ b as the gradient of all context layers."""
        target = self._context_part(cast(Tensor, self._flat))
        if not self.is_mixed:
            torch.mm(a, b, out=target)
        elif self._is_large:
            product = cast(Tensor, self._narrow)[: target.numel()].view(target.shape)
            target.copy_(torch.mm(a, b, out=product))
        else:
            torch.mm(a, b, out=self._context_part(cast(Tensor, self._narrow)))

    def collect(self, *others: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of all parameters: the products, and `others` for what is no weight, in order."""
        flat = cast(Tensor, self._flat)
        if self.is_mixed and not self._is_large:
            flat[: self._weight_size].copy_(cast(Tensor, self._narrow))
        torch.cat([part.reshape(-1).to(self.dtype) for part in others], out=flat[self._weight_size :])
        return tuple(_cut(flat, self._shapes))

    # ---- temporaries

    def lend(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised buffer, one that was taken back before if there is any."""
        free = self._free.get((name, shape))
        return free.pop() if free else torch.empty(shape, dtype=dtype, device=self.device)

    def take_back(self, name: str, buffer: Tensor) -> None:
        """Keep `buffer` for the next pass, and drop those of other shapes under that name."""
        key = (name, tuple(buffer.shape))
        if key not in self._free:
            self._free = {k: v for k, v in self._free.items() if k[0] != name}
        self._free.setdefault(key, []).append(buffer)


def _couplings(blocks: Sequence[Block]) -> list[Any]:
    return [coupling for block in blocks for coupling in block.couplings]


def _groups(nets: Sequence[Subnet], norms: Sequence[nn.Module]) -> dict[str, list[tuple[nn.Module, str]]]:
    """Return where the parameters are found, module and name, in the workspace's order."""
    hidden = [layer for net in nets for layer in net.hidden_layers()]
    return {
        "input": [(net.input, "weight") for net in nets],
        "hidden": [(layer, "weight") for layer in hidden],
        "output": [(net.output, "weight") for net in nets],
        "context": [(net.context, "weight") for net in nets if net.context is not None],
        "input_bias": [(net.input, "bias") for net in nets],
        "hidden_bias": [(layer, "bias") for layer in hidden],
        "output_bias": [(net.output, "bias") for net in nets],
        "shift": [(norm, "shift") for norm in norms],
        "log_scale": [(norm, "log_scale") for norm in norms],
    }


def _cut(flat: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """Return the beginning of `flat` as tensors of the given shapes, one after the other."""
    sizes = [shape.numel() for shape in shapes]
    return [piece.view(s) for piece, s in zip(flat[: sum(sizes)].split(sizes), shapes, strict=True)]


def _key(blocks: Sequence[Block]) -> tuple[Any, ...]:
    """Return what a workspace of `blocks` depends on."""
    example = blocks[0].actnorm.shift
    return example.device, example.dtype, compute_dtype(blocks)


def _copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Write each source to its target, in one go where torch can."""
    together = getattr(torch, "_foreach_copy_", None)
    if together is not None:
        together(targets, sources)
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _references(tensor: Tensor) -> int:
    """Return how many tensors use the memory of `tensor`; -1 where torch does not tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    place = getattr(tensor.untyped_storage(), "_cdata", None)
    return -1 if count is None or place is None else int(count(place))


def compute_dtype(blocks: Sequence[Block]) -> torch.dtype | None:
    """Return the precision set for the hidden layers of `blocks`, None for that of its parameters."""
    net = cast(Subnet, _couplings(blocks)[0].nets[0])
    layers = net.hidden_layers()
    return layers[0].compute_dtype if layers else None
