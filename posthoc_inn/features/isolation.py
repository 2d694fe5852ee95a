"""Runs somebody else's model in eval mode and leaves it, the generators and the gradients as they were.

Everything is undone in `finally`, whatever happens inside: train flags, requires_grad, buffers (also those
that a forward pass writes to), attributes and caches that a forward pass sets, what lies in them (`HiddenState`), and
the global generators.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from posthoc_inn.ambient import users_defaults
from posthoc_inn.errors import PosthocInnWarning
from posthoc_inn.features.state import PLAIN_CONTAINERS, HiddenState
from posthoc_inn.generators import GENERATORS

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()
_TOLD: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""Of each model, what could not be put back and was told of."""

ModuleList = list[nn.Module]
Undo = Callable[[], None]


def lock_of(model: nn.Module) -> threading.RLock:
    """Return the lock that lets one thread at a time run `model`; a thread may take it again (nested use)."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and `torch.compile` wrappers."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def is_scripted(module: nn.Module) -> bool:
    """Say whether `module` runs as TorchScript, where forward hooks inside do not fire."""
    return isinstance(module, torch.jit.ScriptModule)


def takes_hooks(module: nn.Module) -> bool:
    """Say whether `module` takes a forward hook: scripted modules do not, a traced one does."""
    return not is_scripted(module) or type(module).__name__ == "TopLevelTracedModule"


def _runs_compiled(module: nn.Module) -> bool:
    own = module.__dict__
    return (
        own.get("_compiled_call_impl") is not None
        or "_orig_mod" in module._modules
        or hasattr(own.get("forward"), "_torchdynamo_orig_callable")
    )


def _eager(modules: ModuleList) -> AbstractContextManager[Any]:
    # Compiled code ignores hooks that were registered after compilation.
    return torch.compiler.set_stance("force_eager") if any(map(_runs_compiled, modules)) else nullcontext()


def device_generators(device: torch.device) -> tuple[Callable[[], Tensor], Callable[[Tensor], None]] | None:
    """Return getter and setter of the global generator of an accelerator, or None for the CPU."""
    if device.type in ("cpu", "meta"):
        return None
    module = torch.get_device_module(device)
    if device.type == "mps":
        return module.get_rng_state, module.set_rng_state
    return lambda: module.get_rng_state(device), lambda state: module.set_rng_state(state, device)


def _save_generators(device: torch.device) -> Undo:
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    accelerator = device_generators(device)
    accelerator_state = accelerator[0]() if accelerator else None

    def undo() -> None:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if accelerator and accelerator_state is not None:
            accelerator[1](accelerator_state)

    return undo


def _save_attributes(modules: ModuleList) -> Undo:
    """Remember every module's own attributes and, one level deep, what is in its dicts, lists and sets."""
    saved = [(m.__dict__, m.__dict__.copy()) for m in modules if not is_scripted(m)]
    containers = [v for own, _ in saved for v in own.values() if type(v) in PLAIN_CONTAINERS]
    # Most containers are empty (hooks nobody registered): a copy of each would cost more than all the rest.
    filled, empty = [(c, c.copy()) for c in containers if c], [c for c in containers if not c]

    def undo() -> None:
        for own, before in saved:
            if not _same_items(own, before):
                for added in own.keys() - before.keys():
                    del own[added]
                own.update(before)
        for container in empty:
            if container:
                container.clear()
        for container, before in filled:
            if not _same_items(container, before):
                container.clear()
                container.extend(before) if isinstance(container, list) else container.update(before)

    return undo


def _same_items(now: Any, before: Any) -> bool:
    if len(now) != len(before):
        return False
    if isinstance(now, set):
        return bool(now == before)
    if isinstance(now, dict):
        return all(map(is_, now, before)) and all(map(is_, now.values(), before.values()))
    return all(map(is_, now, before))


def _save_train_flags(modules: ModuleList) -> Undo:
    # Not `model.eval()`: a module may do more than set the flag when it is asked to.
    trained = [m for m in modules if m.training]

    def undo() -> None:
        for module in trained:
            module.training = True

    for module in trained:
        module.training = False
    return undo


def _shield_tensors(modules: ModuleList, *, track_grad: bool) -> Undo:
    """Let the pass write to copies of buffers, and let no gradient reach a parameter.

    Copies stand in for buffers, for weights that `nn.Embedding(max_norm=...)` renormalises in its forward
    pass, and, with `track_grad`, for weights made in inference mode. `_save_attributes` puts the originals
    back.
    """
    copies: dict[int, Tensor] = {}
    scripted: list[tuple[Tensor, Tensor]] = []
    lowered: list[Tensor] = []

    def undo() -> None:
        for tensor in lowered:
            tensor.requires_grad_(True)
        with torch.no_grad():
            for original, before in scripted:
                if not torch.equal(original, before):
                    original.copy_(before)

    def copied(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().clone()
        return copies[id(tensor)]

    try:
        for module in modules:
            if is_scripted(module):
                scripted += [(b, b.detach().clone()) for b in module.buffers(recurse=False)]
                lowered_here = list(module.parameters(recurse=False))
            else:
                own_buffers, own_weights = module._buffers, module._parameters
                lowered_here = [p for p in own_weights.values() if p is not None]
                for name, buffer in own_buffers.items():
                    if buffer is not None:
                        own_buffers[name] = copied(buffer)
                renormalises = module.__dict__.get("max_norm") is not None
                for name, weight in own_weights.items():
                    if weight is not None and (renormalises or (track_grad and weight.is_inference())):
                        own_weights[name] = copied(weight)  # type: ignore[assignment]
            if track_grad:
                for weight in lowered_here:
                    if weight.requires_grad and weight.is_leaf and not weight.is_inference():
                        lowered.append(weight)
                        weight.requires_grad_(False)
    except BaseException:
        undo()
        raise
    return undo


@contextmanager
def left_alone(model: nn.Module, *, track_grad: bool, device: torch.device) -> Iterator[None]:
    """Run `model` inside this context: eval mode, and afterwards no trace of it.

    Args:
        model: The model, already unwrapped.
        track_grad: Whether autograd records the pass. Then gradients reach the inputs only: parameters do not
            require gradients for the time of the pass, so that a later `backward()` leaves their `.grad`
            alone.
        device: Where the inputs live; the global generator of this device is put back, too.
    """
    with GENERATORS, lock_of(model), users_defaults():
        named = dict(model.named_modules())
        modules = list(named.values())
        hidden = HiddenState({name: module for name, module in named.items() if not is_scripted(module)})
        failed: list[str] = []
        with ExitStack() as undone:
            undone.callback(_save_generators(device))
            undone.callback(lambda: failed.extend(hidden.restore()))
            undone.callback(_save_attributes(modules))
            undone.callback(_save_train_flags(modules))
            undone.callback(_shield_tensors(modules, track_grad=track_grad))
            with _eager(modules), torch.set_grad_enabled(track_grad):
                yield
        _tell_once(model, failed)


def _tell_once(model: nn.Module, changed: list[str]) -> None:
    """Warn of what a pass changed and nobody can put back, once for each name of a model's."""
    told = _TOLD.setdefault(model, set())
    new = [name for name in changed if name not in told]
    told.update(new)
    if new:
        more = f" and {len(new) - 4} more" if len(new) > 4 else ""
        warnings.warn(
            PosthocInnWarning(
                f"A forward pass of the {type(model).__name__} changed {', '.join(new[:4])}{more}, which cannot be put "
                "back. Look whether its predictions depend on that; if so, make it a buffer."
            ),
            stacklevel=4,
        )
