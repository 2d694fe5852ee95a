"""One pass that listens to every module at once: shapes, calls, and the data flow between them."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from posthoc_inn.features.capture import call_model, check_runnable, input_tensors
from posthoc_inn.features.dataflow import DataFlow
from posthoc_inn.features.failing import explained
from posthoc_inn.features.isolation import is_scripted, left_alone, takes_hooks
from posthoc_inn.features.structure import Leaf, describe, leaves, map_tensors, pick

LOGITS = ("logits", "prediction_logits", "out")
"""Where libraries keep the prediction among other results."""


@dataclass(frozen=True)
class Seen:
    """One tensor that a module returned."""

    path: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    nodes: frozenset[int]


@dataclass(frozen=True)
class Call:
    """One call of a module: kind of output, and the tensors in it."""

    kind: str
    tensors: tuple[Seen, ...]

    @property
    def floats(self) -> list[Seen]:
        """The floating-point tensors."""
        return [t for t in self.tensors if t.dtype.is_floating_point]


@dataclass
class Trace:
    """What happened in one pass; `flow` is None where it could not be followed."""

    calls: dict[nn.Module, list[Call]] = field(default_factory=dict)
    output: tuple[Seen, ...] = ()
    flow: DataFlow | None = None

    def is_cut(self, nodes: frozenset[int]) -> bool | None:
        """Say whether the output depends on the inputs only through `nodes`; None when that is not known."""
        if self.flow is None:
            return None
        output = self.output_nodes
        if self.flow.around(set(nodes), output) or not self.flow.reaches(set(nodes), output):
            return False
        return True if self.flow.is_sure(set(nodes)) else None

    @property
    def output_nodes(self) -> set[int]:
        """Nodes that hold the prediction."""
        return set().union(*(seen.nodes for seen in self.output))

    @property
    def head(self) -> str:
        """The operation that made the prediction; "" where that is not known."""
        return self.flow.made_by(self.output_nodes) if self.flow is not None and len(self.output) == 1 else ""


def predicted(output: Any, which: int | str | None = None) -> Leaf:
    """Choose the prediction from what a model returns: the only tensor, or what is called logits.

    Raises:
        ConfigError: There are several candidates.
        ShapeError: There is none.
    """
    if which is None:
        for leaf in leaves(output):
            if len(leaf.path) == 1 and leaf.path[0] in LOGITS and leaf.tensor.is_floating_point():
                return leaf
    return pick(output, which, "The model", "prediction")


def _seen(output: Any, flow: DataFlow | None) -> tuple[Seen, ...]:
    return tuple(
        Seen(
            leaf.path,
            tuple(leaf.tensor.shape),
            leaf.tensor.dtype,
            frozenset(flow.nodes_of([leaf.tensor]) if flow else ()),
        )
        for leaf in leaves(output)
    )


def _pass(model: nn.Module, inputs: Any, names: dict[nn.Module, str], flow: DataFlow | None) -> Trace:
    trace = Trace(calls={module: [] for module in names}, flow=flow)
    entered: list[str] = []

    def enter(module: nn.Module, _args: Any) -> None:
        entered.append(names[module])
        if flow:
            flow.module = names[module]

    def leave(module: nn.Module, _args: Any, output: Any) -> Any:
        if flow:
            # What is returned becomes a node of its own: resuming replaces it, and not what the layer keeps of it.
            output = map_tensors(output, torch.ops.aten.alias.default)
        trace.calls[module].append(Call(describe(output), _seen(output, flow)))
        entered.pop()
        if flow:
            flow.module = entered[-1] if entered else ""
        return output if flow else None

    handles: list[RemovableHandle] = []
    device = input_tensors(inputs)[0].device
    with left_alone(model, track_grad=False, device=device), flow or nullcontext():
        try:
            for module in names.keys() - {model}:
                handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
            with explained(model, inputs):
                output = call_model(model, map_tensors(inputs, torch.clone))
        finally:
            for handle in handles:
                handle.remove()
        trace.calls[model] = [Call(describe(output), _seen(output, flow))]
        try:
            trace.output = _seen(predicted(output).tensor, flow)
        except ValueError:
            trace.output = tuple(seen for seen in _seen(output, flow) if seen.dtype.is_floating_point)
    return trace


def trace(model: nn.Module, inputs: Any, *, follow: bool = True) -> Trace:
    """Run `model`, unwrapped, once and note what every module returned.

    Args:
        model: The model, already unwrapped; left as it was.
        inputs: Tensor, tuple or dict.
        follow: Follow the data flow, which costs some time and memory, for cut detection.
    """
    check_runnable(model)
    names: dict[nn.Module, str] = {}
    _collect(model, "", names)
    if follow:
        # An operation may refuse to be followed. If the model is at fault, the second pass says so.
        with suppress(Exception):
            return _pass(model, inputs, names, DataFlow(input_tensors(inputs)))
    return _pass(model, inputs, names, None)


def _collect(module: nn.Module, name: str, names: dict[nn.Module, str]) -> None:
    if module in names or not (takes_hooks(module) or not name):
        return
    names[module] = name
    if not is_scripted(module):
        for key, child in module.named_children():
            _collect(child, canonical(f"{name}.{key}" if name else key), names)


def canonical(name: str) -> str:
    """Leave the part out of a dotted name that `torch.compile` adds for its wrapper."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
