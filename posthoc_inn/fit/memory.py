"""What a fit holds at its peak beyond what its first steps have shown: counted, as it grows with z and the images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_inn.analysis.faithfulness import PICTURES
from posthoc_inn.analysis.measure import IMAGES
from posthoc_inn.autoencoders.base import CHUNK
from posthoc_inn.fit.concepts import INITIALIZATION_ROWS
from posthoc_inn.fit.linear import linear_bytes
from posthoc_inn.fit.parts import Parts
from posthoc_inn.flows.conditional import CONTEXT_CHUNK

_DOUBLE = 2
"""Floats that a number in double precision takes the place of."""


def beyond_steps(parts: Parts, row: dict[str, Tensor], rows: int | None, held_out: int | None) -> int:
    """Return the bytes that the hungriest moment of a fit takes for a while, besides weights and cached rows.

    The network that compares pictures is not in it: it gets as many in measuring as in a step.

    Args:
        parts: What the fit works with.
        row: What is cached of some images.
        rows: Training rows; None where their number is not known.
        held_out: Held-out rows; None likewise.
    """
    z = 4 * row["z"][0].numel()
    picture = 4 * row["images"][0].numel()
    many = INITIALIZATION_ROWS if rows is None else min(rows, INITIALIZATION_ROWS)
    shown = IMAGES if held_out is None else min(held_out, IMAGES)
    chunk = min(many, CONTEXT_CHUNK)
    fewest = min(PICTURES, 8 * shown)
    encoder, decoder = _activations(parts)
    some = torch.zeros_like(row["z"][:1], dtype=torch.float32, device=parts.device)
    embed = getattr(parts.flow.conditioner, "embed", None)  # the linear t has none
    context = 0 if embed is None else _widest(parts.flow.conditioner, lambda: embed(some))
    return max(
        linear_bytes(parts.flow),
        chunk * z * 3 * _DOUBLE,  # standardisation: in double precision, centred, squared
        many * z + chunk * (2 * z + context),
        # as bytes, as floats, and laid out as the convolutions want them
        min(CHUNK, many) * 2 * (picture + encoder),
        # z of the pictures, of their images, and both in double precision
        shown * z + fewest * (3 * picture + max(decoder, z * (2 + 2 * _DOUBLE))),
    )


@torch.no_grad()
def _activations(parts: Parts) -> tuple[int, int]:
    """Return the bytes an image that E, and D, hold between two layers."""
    adapter, device = parts.adapter, parts.device
    image = torch.zeros(1, adapter.channels, adapter.image_size, adapter.image_size, device=device)
    latent = torch.zeros(1, parts.config.latent_dim, device=device)
    can_encode = getattr(parts.autoencoder, "has_encoder", True)
    return (
        _widest(parts.autoencoder, lambda: parts.autoencoder.encode(image)) if can_encode else 0,
        _widest(parts.autoencoder, lambda: parts.autoencoder.decode(latent)),
    )


@torch.no_grad()
def _widest(module: Any, run: Callable[[], object]) -> int:
    """Return the most bytes that a layer takes and gives in `run`; 0 where the module does not show its layers."""
    if not isinstance(module, nn.Module):
        return 0
    most = 0

    def look(_: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal most
        tensors = [t for t in (*inputs, *(output if isinstance(output, tuple) else (output,))) if isinstance(t, Tensor)]
        most = max(most, sum(t.nbytes for t in tensors))

    flags = {m: m.training for m in module.modules()}
    handles = [m.register_forward_hook(look) for m in module.modules() if not list(m.children())]
    try:
        for m in flags:
            m.training = False
        with torch.random.fork_rng(devices=[]):
            run()
    finally:
        for handle in handles:
            handle.remove()
        for m, flag in flags.items():
            m.training = flag
    return most
