"""Where training runs, and in which precision its matrix products: measured once, on this machine."""

from __future__ import annotations

import functools
import logging
import time
from typing import Any, Literal, get_args

import torch

from posthoc_inn.config import Precision
from posthoc_inn.errors import ConfigError, suggest
from posthoc_inn.training.fabric import Fabric

MIN_GAIN = 1.3
"""bf16 has to be this much faster than fp32 before it is chosen on a CPU."""


@functools.cache
def bf16_gain() -> float:
    """Return how many times faster bf16 matrix products are than fp32 ones on this CPU.

    Machines without native bf16 arithmetic emulate it, slowly: only a measurement tells.
    """
    operands = {
        dtype: (torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    best = dict.fromkeys(operands, float("inf"))
    for _ in range(10):  # in turns, so that whatever else runs disturbs both alike
        for dtype, (a, b) in operands.items():
            started = time.perf_counter()
            for _ in range(4):
                torch.mm(a, b)
            best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.float32] / best[torch.bfloat16]


def check_precision(precision: str) -> None:
    """Check that `precision` is one of "auto", "32" and "bf16".

    Raises:
        ConfigError: It is none of the three.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"There is no precision {precision!r}. {suggest(str(precision), get_args(Precision))}")


def choose_precision(precision: Precision, device: torch.device) -> Literal["32", "bf16"]:
    """Return "bf16" where it is asked for, or where "auto" finds it faster; else "32".

    Raises:
        ConfigError: It is none of the three.
    """
    check_precision(precision)
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "32"
    return "bf16" if device.type == "cpu" and bf16_gain() >= MIN_GAIN else "32"


def fabric_for(device: torch.device, precision: Literal["32", "bf16"]) -> Fabric:
    """Return the Fabric that trains on `device`."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    accelerator = {"cuda": "cuda", "mps": "mps"}.get(device.type, "cpu")
    devices: Any = [device.index or 0] if accelerator == "cuda" else 1
    mixed: Any = "bf16-mixed" if precision == "bf16" else "32-true"
    return Fabric(accelerator=accelerator, devices=devices, precision=mixed)


def choose_device(device: str, *, like: torch.nn.Module | None = None) -> torch.device:
    """Return the device called `device`; "auto" is where the model is, or a GPU when it has no parameters there."""
    if device != "auto":
        return torch.device(device)
    parameter = next(iter(like.parameters()), None) if like is not None else None
    if parameter is not None:
        return parameter.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
