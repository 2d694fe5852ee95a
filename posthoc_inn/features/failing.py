"""What a user is told when their own model fails: what it was given, its own words, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from posthoc_inn.errors import ModelError, PosthocInnError
from posthoc_inn.features.structure import leaves

MAX_WORDS = 240
"""Characters of the model's own words that are shown."""

ADVICE = (
    (
        r"missing \d+ required positional argument|unexpected keyword|takes \d+ positional argument",
        "It takes other inputs than images: wrap it in a module whose forward takes the images alone",
    ),
    (
        r"missing the required \"forward\"|has no attribute 'forward'|forward\(\) is not implemented",
        "It has no forward method: pass the module that you call on images",
    ),
    (r"to have (\d+) channels", "It takes {0} channels: convert the images"),
    (
        r"same dtype|expected scalar type|should be the same|not implemented for '(?:Half|BFloat16|Byte)'",
        "Give it images of the number type of its weights ({dtype}), or convert the model",
    ),
    (
        r"same device|not on the expected device|Expected all tensors",
        "Its parts lie on different devices: move all of it with model.to(device)",
    ),
    (r"more than 1 (?:value|spatial element)", "It cannot take one image alone: put it into eval mode"),
    (r"view size is not compatible", "It views its input: pass contiguous tensors"),
    (r"out of memory", "Use smaller images or a smaller batch"),
)
"""Pattern in the model's own words -> what to do; the first that fits is used."""
USUAL = "Is this the size and the number of channels that it takes? Call it on such a tensor to see"


@contextmanager
def explained(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Turn what a stranger's model raises into a `ModelError` that says what it was given.

    Raises:
        ModelError: The model raised an exception of its own, which is kept as the cause.
    """
    try:
        yield
    except (PosthocInnError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(failure(model, inputs, error)) from error


def failure(model: nn.Module, inputs: Any, error: BaseException) -> str:
    """Return one line: what the model was given, its own words, and what to do."""
    given = ", ".join(
        f"{str(leaf.tensor.dtype).removeprefix('torch.')} {tuple(leaf.tensor.shape)}" for leaf in leaves(inputs)[:4]
    )
    words = " ".join(str(error).split()) or "no reason given"
    shown = words if len(words) <= MAX_WORDS else words[:MAX_WORDS] + "…"
    return f"{type(model).__name__} fails on {given}: {type(error).__name__}: {shown}. {_advice(model, words)}."


def _advice(model: nn.Module, words: str) -> str:
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
    for pattern, text in ADVICE:
        found = re.search(pattern, words)
        if found:
            return text.format(*found.groups(), dtype=" and ".join(sorted(dtypes)) or "unknown")
    return USUAL
