"""Whether a layer is a true cut, measured: does f(A) with the layer's output of B equal f(B)?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from posthoc_inn.features.capture import batch_size
from posthoc_inn.features.structure import leaves, map_tensors

FeaturesAndOutput = Callable[[Any], tuple[Tensor, list[Tensor]]]
Resume = Callable[[Any, Tensor], list[Tensor]]


def few_rows(inputs: Any, rows: int = 2) -> Any:
    """Keep the first rows of every tensor that has as many as the batch, when there are more than 4."""
    size = batch_size(inputs)
    if size <= 4:
        return inputs
    return map_tensors(inputs, lambda t: t[:rows] if t.ndim and t.shape[0] == size else t)


def other_inputs(inputs: Any, attempt: int, generator: torch.Generator) -> Any:
    """Return inputs of the same shapes with other rows, the more different the higher `attempt`."""
    size = batch_size(inputs)

    def other(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or tensor.shape[0] != size:
            return tensor
        rolled = tensor.roll(1, 0)
        if attempt == 0 and size > 1 and bool((rolled != tensor).any()):
            return rolled
        flipped = tensor.flip(tuple(range(1, tensor.ndim)))
        if not tensor.is_floating_point():
            return flipped
        spread = tensor.float().std(correction=0) if tensor.numel() > 1 else tensor.new_zeros(())
        scale = float(spread if spread > 0 else torch.ones(())) * 3.0**attempt
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        return flipped + scale * noise

    return map_tensors(inputs, lambda t: other(t.detach()))


def _distance(a: list[Tensor], b: list[Tensor]) -> float:
    return max(
        (float((x.double() - y.double()).abs().amax()) for x, y in zip(a, b, strict=True) if x.numel()),
        default=0.0,
    )


def measure_cut(features: FeaturesAndOutput, resume: Resume, inputs: Any) -> bool | None:
    """Hand the model inputs A and the layer's output of B, and compare what comes out with f(B).

    Args:
        features: Returns z and the model's output tensors for inputs.
        resume: Returns the model's output tensors for inputs and the z that replaces the layer's.
        inputs: The inputs A; B are others of the same shapes.

    Returns:
        True for a cut, False where more than z decides, and None where f(A) and f(B) cannot be told apart.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        _, out = features(inputs)
        for attempt in range(3):
            others = other_inputs(inputs, attempt, generator)
            z_other, out_other = features(others)
            if [o.shape for o in out] != [o.shape for o in out_other]:
                return None
            spread = _distance(out, out_other)
            size = max((float(o.abs().amax()) for o in (*out, *out_other) if o.numel()), default=0.0)
            rounding = size * max((torch.finfo(o.dtype).eps for o in out), default=0.0)
            if spread > 128 * rounding and spread < float("inf"):
                return _distance(resume(inputs, z_other), out_other) <= max(32 * rounding, 1e-4 * spread)
    return None


def float_tensors(output: Any) -> list[Tensor]:
    """Return every floating-point tensor of a model's output."""
    return [leaf.tensor for leaf in leaves(output) if leaf.tensor.is_floating_point()]
