"""Finds out what changed in a model, in the global generators and in torch's switches, and says so."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from posthoc_inn.errors import ModelTouchedError
from posthoc_inn.features.isolation import device_generators, is_scripted
from posthoc_inn.features.state import PLAIN_CONTAINERS, HiddenState

COPY_LIMIT = 256 * 2**20
"""Bytes up to which values are kept as copies, so that the report can tell by how much they changed."""

_PLAIN = (int, float, str, bool, bytes, complex, type(None), torch.dtype, torch.device, torch.Size)
_CONTAINERS = PLAIN_CONTAINERS | {tuple}


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else getattr(tensor, "_version", None)


def _digest(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous()
    return hashlib.blake2b(plain.reshape(-1).view(torch.uint8).numpy().data, digest_size=16).digest()


def _same_values(a: Tensor, b: Tensor) -> bool:
    if torch.equal(a, b):
        return True
    return a.is_floating_point() and bool(((a == b) | (a.isnan() & b.isnan())).all())


@dataclass(frozen=True)
class _Saved:
    """What is remembered of one tensor: who it is, how often it was written to, and its values."""

    tensor: Tensor
    pointer: int
    version: int | None
    kind: tuple[Any, ...]
    requires_grad: bool
    hooks: tuple[int, ...]
    copied: Tensor | None
    digest: bytes | None

    @classmethod
    def of(cls, tensor: Tensor, *, values: bool, copy: bool) -> _Saved:
        readable = values and tensor.layout == torch.strided and tensor.device.type != "meta"
        with torch.no_grad():
            copied = tensor.detach().clone() if readable and (copy or tensor.is_quantized) else None
            digest = _digest(tensor) if readable and copied is None else None
        return cls(
            tensor,
            _pointer(tensor),
            _version(tensor),
            _kind(tensor),
            tensor.requires_grad,
            _tensor_hooks(tensor),
            copied,
            digest,
        )

    def changes(self, now: Tensor) -> Iterator[str]:
        """Yield what differs, as ends of a sentence that begins with the tensor's name."""
        if now is not self.tensor:
            yield "was replaced by another tensor"
        if _kind(now) != self.kind:
            yield f"changed from {_kind_text(self.kind)} to {_kind_text(_kind(now))}"
            return
        if now.requires_grad != self.requires_grad:
            yield f"requires_grad changed from {self.requires_grad} to {now.requires_grad}"
        if _tensor_hooks(now) != self.hooks:
            yield "has other tensor hooks than before"
        with torch.no_grad():
            if self.copied is not None and not _same_values(self.copied, now.detach()):
                yield f"changed{_largest_change(self.copied, now.detach())}"
                return
            if self.digest is not None and _digest(now) != self.digest:
                yield "changed"
                return
        if now is self.tensor and _version(now) != self.version:
            yield "was written to in place with the same values (a pending backward pass would fail)"
        elif now is self.tensor and _pointer(now) != self.pointer:
            yield "was given other memory"


def _pointer(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # No storage: sparse tensors and the like.
        return 0


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return (type(tensor), tuple(tensor.shape), tensor.dtype, tensor.device)


def _kind_text(kind: tuple[Any, ...]) -> str:
    return f"{kind[0].__name__} {kind[1]} {kind[2]} on {kind[3]}"


def _tensor_hooks(tensor: Tensor) -> tuple[int, ...]:
    hooks: list[int] = []
    for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        hooks += [id(hook) for hook in (getattr(tensor, name, None) or {}).values()]
    return tuple(hooks)


def _largest_change(before: Tensor, now: Tensor) -> str:
    difference = (
        (now.to(torch.float64) - before.to(torch.float64)).abs() if not before.is_complex() else (now - before).abs()
    )
    finite = difference[difference.isfinite()]
    return f" (max |Δ| {float(finite.max()):.3g})" if finite.numel() else " (to or from values that are not finite)"


@dataclass(frozen=True)
class _Module:
    """What is remembered of one module."""

    module: nn.Module
    type: type
    is_training: bool
    attributes: dict[str, Any]
    contents: dict[str, tuple[Any, ...]]


def _contents(value: Any) -> tuple[Any, ...]:
    """Identify what is in a container, one level deep."""
    if isinstance(value, dict):
        return tuple((key, id(item)) for key, item in value.items())
    return tuple(map(id, value))


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules", "training")}


def _same_attribute(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, _PLAIN) and type(a) is type(b) and bool(a == b))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = {f"parameter {n}": t for n, t in model.named_parameters(remove_duplicate=False)}
    return named | {f"buffer {n}": t for n, t in model.named_buffers(remove_duplicate=False)}


def _called(name: str) -> str:
    return f"module {name}" if name else "the model"


def _generators(model: nn.Module) -> dict[str, Any]:
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=False),
        "python": random.getstate(),
    }
    devices = {t.device for t in _tensors(model).values()}
    if torch.cuda.is_initialized():
        devices |= {torch.device("cuda", n) for n in range(torch.cuda.device_count())}
    for device in sorted(devices, key=str):
        accelerator = device_generators(device)
        if accelerator:
            states[str(device)] = accelerator[0]()
    return states


def _same_state(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same_state(a[key], b[key]) for key in a)
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


def switches() -> dict[str, Any]:
    """Return torch's global switches by readable name."""
    devices = ("cpu", "cuda")
    autocast = {f"autocast on {d}": (torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices}
    return autocast | {
        "default dtype": torch.get_default_dtype(),
        "default device": str(torch.get_default_device()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "deterministic warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "number of threads": torch.get_num_threads(),
        "cudnn.enabled": torch.backends.cudnn.enabled,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "mkldnn.enabled": getattr(torch.backends.mkldnn, "enabled", None),
        "transformer fast path": torch.backends.mha.get_fastpath_enabled(),
        "attention kernels": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
    }


def _global_hooks() -> dict[str, tuple[Any, ...]]:
    kinds = ("forward_pre", "forward", "backward_pre", "backward")
    names = [f"_global_{kind}_hooks" for kind in kinds]
    return {name: _contents(getattr(nn.modules.module, name, {})) for name in names}


@dataclass(frozen=True)
class Snapshot:
    """A model, the global generators and torch's switches, as they were when `snapshot` was called.

    >>> net = nn.BatchNorm1d(2)
    >>> before = snapshot(net)
    >>> _ = net(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    >>> before.compare(net)[0]
    'buffer running_mean changed (max |Δ| 0.2)'
    """

    tensors: dict[str, _Saved]
    gradients: dict[str, _Saved | None]
    modules: dict[str, _Module]
    generators: dict[str, Any] | None
    hidden: HiddenState
    switches: dict[str, Any] = field(default_factory=switches)
    global_hooks: dict[str, tuple[Any, ...]] = field(default_factory=_global_hooks)

    def compare(self, model: nn.Module) -> list[str]:
        """Return a readable line for everything that is not as it was; nothing for an untouched model."""
        found = [*self._tensor_changes(model), *self._module_changes(model)]
        found += [f"{name}, no buffer, changed" for name in self.hidden.changes()]
        if self.generators is not None:
            states = _generators(model)
            found += [
                f"the global {name} generator moved on"
                for name, before in self.generators.items()
                if name in states and not _same_state(before, states[name])
            ]
        now = switches()
        found += [
            f"torch's {name} changed from {before} to {now[name]}"
            for name, before in self.switches.items()
            if now[name] != before
        ]
        if _global_hooks() != self.global_hooks:
            found.append("torch's global module hooks changed")
        return found

    def _tensor_changes(self, model: nn.Module) -> Iterator[str]:
        now = _tensors(model)
        seen: set[int] = set()
        for name, tensor in now.items():
            if name not in self.tensors:
                yield f"{name} was added"
                continue
            saved, gradient = self.tensors[name], self.gradients[name]
            if id(tensor) in seen and tensor is saved.tensor:
                continue  # The same tensor under a second name is reported once.
            seen.add(id(tensor))
            yield from (f"{name} {change}" for change in saved.changes(tensor))
            grad = tensor.grad if tensor.is_leaf else None
            if gradient is not None and grad is not None:
                yield from (f"gradient of {name} {change}" for change in gradient.changes(grad))
            elif (gradient is None) != (grad is None):
                yield f"gradient of {name} was {'removed' if grad is None else 'set, where there was none'}"
        yield from (f"{name} was removed" for name in self.tensors if name not in now)

    def _module_changes(self, model: nn.Module) -> Iterator[str]:
        now = dict(model.named_modules(remove_duplicate=False))
        for name, module in now.items():
            if name not in self.modules:
                yield f"{_called(name)} was added"
                continue
            saved = self.modules[name]
            if module is not saved.module:
                yield f"{_called(name)} was replaced by another module ({type(module).__name__})"
                continue
            if type(module) is not saved.type:
                classes = f"{saved.type.__name__} to {type(module).__name__}"
                yield f"{_called(name)} changed its class from {classes}"
            if module.training != saved.is_training:
                yield f"{_called(name)} changed its train flag from {saved.is_training} to {module.training}"
            yield from (f"{_called(name)} {change}" for change in _attribute_changes(saved, module))
        yield from (f"{_called(name)} was removed" for name in self.modules if name not in now)


def _attribute_changes(saved: _Module, module: nn.Module) -> Iterator[str]:
    now = _own_attributes(module)
    for name in now.keys() - saved.attributes.keys():
        yield f"has a new attribute {name!r}"
    for name in saved.attributes.keys() - now.keys():
        yield f"lost its attribute {name!r}"
    for name in saved.attributes.keys() & now.keys():
        what = name.strip("_").replace("_", " ") if name.endswith("_hooks") else f"attribute {name!r}"
        if not _same_attribute(saved.attributes[name], now[name]):
            yield f"has its {what} set anew"
        elif name in saved.contents and _contents(now[name]) != saved.contents[name]:
            yield f"has other {what} than before ({len(saved.contents[name])} before, {len(now[name])} now)"


def snapshot(model: nn.Module, *, check_values: bool = True, check_generators: bool = True) -> Snapshot:
    """Remember everything about `model` that an explanation must leave alone.

    Covered: parameters and buffers (identity, memory, count of writes, type, values), requires_grad,
    gradients, train flags, hooks of every kind, the set, identity and class of modules, their own attributes and
    what lies in them (tensors, arrays, generators, containers, objects, closures, the class's own attributes; see
    `HiddenState`), the global generators of torch, NumPy and Python, and torch's global switches. Values are
    compared exactly: with copies up to 256 MiB in all, beyond that with 128-bit digests.

    Args:
        model: Any module.
        check_values: Compare values; otherwise only identity and the count of writes, which costs next to
            nothing.
        check_generators: Compare the global generators, too.
    """
    named = _tensors(model)
    unique = {id(t): t for t in named.values()}
    gradients = {name: t.grad if t.is_leaf else None for name, t in named.items()}
    sizes = [t.numel() * t.element_size() * (2 if t.is_leaf and t.grad is not None else 1) for t in unique.values()]
    copy = sum(sizes) <= COPY_LIMIT
    saved = {key: _Saved.of(t, values=check_values, copy=copy) for key, t in unique.items()}
    modules = {
        name: _Module(
            module,
            type(module),
            module.training,
            attributes := _own_attributes(module),
            {k: _contents(v) for k, v in attributes.items() if type(v) in _CONTAINERS},
        )
        for name, module in model.named_modules(remove_duplicate=False)
    }
    return Snapshot(
        tensors={name: saved[id(t)] for name, t in named.items()},
        gradients={
            name: None if g is None else _Saved.of(g, values=check_values, copy=copy) for name, g in gradients.items()
        },
        modules=modules,
        generators=_generators(model) if check_generators else None,
        hidden=HiddenState(
            {name: module for name, module in model.named_modules() if not is_scripted(module)},
            COPY_LIMIT if check_values else 0,
        ),
    )


@contextmanager
def untouched(model: nn.Module, *, check_values: bool = True, check_generators: bool = True) -> Iterator[Snapshot]:
    """Guard `model`: whatever the body does, the model, generators and switches must be the same afterwards.

    When the body raises, its exception goes on, with a note that lists what was changed.

    Args:
        model: Any module.
        check_values: Compare values of parameters, buffers and gradients exactly.
        check_generators: The global generators must not move; switch it off for a body that draws from them
            on purpose.

    Raises:
        ModelTouchedError: Something changed; the message lists it line by line.

    >>> net = nn.Linear(2, 2)
    >>> with untouched(net):
    ...     _ = net.eval()
    Traceback (most recent call last):
    ...
    posthoc_inn.errors.ModelTouchedError: The model was not left alone (1 change):
      the model changed its train flag from True to False
    """
    before = snapshot(model, check_values=check_values, check_generators=check_generators)
    try:
        yield before
    except BaseException as error:
        changes = before.compare(model)
        if changes:
            error.add_note(_report(changes))
        raise
    changes = before.compare(model)
    if changes:
        raise ModelTouchedError(_report(changes))


def _report(changes: list[str], limit: int = 30) -> str:
    more = [f"and {len(changes) - limit} more"] if len(changes) > limit else []
    lines = "".join(f"\n  {line}" for line in [*changes[:limit], *more])
    return f"The model was not left alone ({len(changes)} change{'s' * (len(changes) > 1)}):{lines}"
