"""One pass of somebody else's model with at most one forward hook in it, removed before the pass returns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_inn.errors import ConfigError, ShapeError
from posthoc_inn.features.failing import explained
from posthoc_inn.features.isolation import left_alone
from posthoc_inn.features.structure import leaves, map_tensors

OnCall = Callable[[int, Any], Any]
"""Takes the number of the call and the layer's output; what it returns, unless None, replaces the output."""

# Passes under way, innermost last: a hook stays silent while a pass of another extractor runs inside its own.
_passes = threading.local()


def input_tensors(inputs: Any) -> list[Tensor]:
    """Return the tensors in `inputs`.

    Raises:
        ShapeError: `inputs` is no tensor, tuple, list or dict, holds no tensor, or its first one has no rows.
    """
    if not isinstance(inputs, (Tensor, tuple, list, Mapping)):
        raise ShapeError(
            f"The model's inputs must be a tensor (B, C, H, W), a tuple of positional arguments or a dict of "
            f"keyword arguments, got {type(inputs).__name__}. For an array, pass torch.as_tensor(array)."
        )
    found = [leaf.tensor for leaf in leaves(inputs)]
    if not found:
        raise ShapeError(f"The model's inputs are an empty {type(inputs).__name__}: pass at least one tensor.")
    if found[0].ndim == 0 or found[0].shape[0] == 0:
        raise ShapeError(
            f"The first input must be a batch (B, ...) with at least one row, got shape {tuple(found[0].shape)}."
        )
    return found


def batch_size(inputs: Any) -> int:
    """Return B, the first size of the first tensor in `inputs`."""
    return int(input_tensors(inputs)[0].shape[0])


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call `model` with a tensor, with positional (tuple, list) or with keyword (dict) arguments."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def check_runnable(model: nn.Module) -> None:
    """Refuse a model whose lazy parameters have no values yet.

    Raises:
        ConfigError: The model was never run, so that a first pass would create its parameters.
    """
    lazy = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)
    names = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if isinstance(t, lazy)]
    if names:
        raise ConfigError(
            f"The model has parameters without values (lazy modules): {', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}. Run the model once on a batch before it is explained."
        )
    meta = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if meta:
        raise ConfigError(
            f"The model has {len(meta)} tensors on the meta device, which have no values ({', '.join(meta[:3])}"
            f"{', ...' if len(meta) > 3 else ''}). Load its weights first, for example with "
            "model.to_empty(device='cpu') and load_state_dict."
        )


def run(
    model: nn.Module,
    inputs: Any,
    layer: nn.Module | None = None,
    on_call: OnCall | None = None,
    *more: Tensor,
) -> Any:
    """Run `model` once, and leave it as it was.

    Gradients flow only when autograd is on and an input (or a tensor of `more`) asks for them; they reach the
    inputs and `more`, never a parameter.

    Args:
        model: The model, already unwrapped.
        inputs: Tensor, tuple or dict; handed on as copies, so that a model that writes to its input harms
            nobody.
        layer: Module to listen to, if any.
        on_call: Called after each call of `layer`.
        more: Tensors that `on_call` brings in.

    Returns:
        What the model returns.
    """
    tensors = input_tensors(inputs)
    check_runnable(model)
    track_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *more))
    me, my_thread, calls = object(), threading.get_ident(), 0
    stack: list[object] = _passes.__dict__.setdefault("stack", [])

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal calls
        if threading.get_ident() != my_thread or stack[-1] is not me:
            return None
        calls += 1
        return on_call(calls - 1, output) if on_call else None

    with left_alone(model, track_grad=track_grad, device=tensors[0].device):
        # The model's own output needs no hook, and a scripted model takes none.
        is_whole = layer is model
        handle = layer.register_forward_hook(hook) if layer is not None and not is_whole else None
        stack.append(me)
        try:
            with explained(model, inputs):
                output = call_model(model, map_tensors(inputs, torch.clone))
            replaced = on_call(0, output) if is_whole and on_call else None
            return output if replaced is None else replaced
        finally:
            stack.pop()
            if handle is not None:
                handle.remove()
