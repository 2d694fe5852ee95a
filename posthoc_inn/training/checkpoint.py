"""Training checkpoints: one safetensors file (module, optimizer, best and averaged weights, and JSON in its header).

Fabric's own checkpoints are pickles; these are not, and are replaced atomically, so that a run killed at any moment
finds either the previous or the new one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from posthoc_inn.errors import TrainingError
from posthoc_inn.files import partial_of, writing

FORMAT = 2


def write_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write `tensors` and the JSON-able `state` to `path`, replacing it atomically.

    Raises:
        DataError: The disk refuses; the checkpoint that was there before is kept.
    """
    partial = partial_of(path)
    # clone(): tensors that share memory (tied weights, views) cannot be written by safetensors.
    flat = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    with writing(path, "Make room, then resume the run: what was written before is kept."):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(flat, str(partial), metadata={"format": str(FORMAT), "state": json.dumps(state)})
        with open(partial, "rb") as f:
            os.fsync(f.fileno())
        os.replace(partial, path)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_checkpoint` wrote.

    Raises:
        TrainingError: The file is not a checkpoint of this format.
    """
    try:
        with safe_open(str(path), framework="pt", device="cpu") as f:
            metadata = f.metadata() or {}
            if metadata.get("format") != str(FORMAT):
                raise TrainingError(
                    f"{path} has checkpoint format {metadata.get('format')!r}; this version reads {FORMAT}. "
                    "Start the run anew, without resuming."
                )
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (not a dict)
            return tensors, json.loads(metadata["state"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise TrainingError(f"{path} is not a readable checkpoint ({error}). Start the run anew.") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state (Adam's moments and step counts) as named tensors."""
    return {
        f"optimizer.{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(float(value))
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            parameter = parameters[int(index)]
            if value.shape == parameter.shape:
                # Fused optimizers walk raw memory: moments must lie in memory as their parameter does (channels last).
                value = torch.empty_like(parameter, device=value.device, dtype=value.dtype).copy_(value)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
