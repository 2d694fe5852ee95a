"""State that a model keeps outside of parameters and buffers: plain tensors, arrays, generators, objects in objects.

What can be put back is put back, in place; of the rest it is told by name. Not seen: what only a module's file holds
(its global variables), and what C code keeps to itself.
"""

from __future__ import annotations

import contextlib
import functools
import random
import types
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MAX_DEPTH = 5
"""Objects inside objects that are looked into, from a module's attribute on."""
MAX_OBJECTS = 20_000
"""Objects of a model that are looked into."""
COPY_LIMIT = 64 * 2**20
"""Bytes of tensors and arrays that are kept as copies; of what is beyond, it is only told whether it was written to."""

PLAIN_CONTAINERS: frozenset[type] = frozenset((dict, OrderedDict, list, set))
"""Containers whose first level is put back together with the attributes themselves."""
_VALUES: frozenset[type] = frozenset(
    (
        *(int, float, str, bool, bytes, complex, type(None), type(Ellipsis), range, slice, type, types.ModuleType),
        *(types.BuiltinFunctionType, torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
    )
)
_ATOMS = _VALUES | {nn.Parameter}
"""Types of what is not looked into: nothing in it changes, or (parameters) it is looked after elsewhere."""
_BASES: tuple[type, ...] = (OrderedDict, dict, list, deque, set, bytearray)
_CLOSED = ("torch", "threading", "_thread", "logging", "weakref", "concurrent", "multiprocessing", "asyncio", "typing")
"""Packages whose objects belong to them (caches of compiled code, locks), and are not looked into."""
_ELSEWHERE = frozenset(("_parameters", "_buffers", "_modules"))


@dataclass
class _Saved:
    """How to find out whether something changed, and how to put it back.

    Attributes:
        name: Dotted.
        is_changed: Whether it is another than it was.
        restore: Puts it back; None where that cannot be done.
    """

    name: str
    is_changed: Callable[[], bool]
    restore: Callable[[], None] | None


@dataclass
class HiddenState:
    """What the modules of a model keep outside of parameters, buffers, and the first level of their attributes.

    Args:
        modules: Dotted name -> module; scripted ones have no such state.
        copy_limit: Bytes that may be copied.

    >>> net = nn.Linear(2, 2)
    >>> net.seen = torch.zeros(2)
    >>> state = HiddenState({"": net})
    >>> _ = net.seen.add_(1)
    >>> list(state.changes())
    ['seen']
    >>> state.restore(), net.seen
    ([], tensor([0., 0.]))
    """

    modules: dict[str, nn.Module]
    copy_limit: int = COPY_LIMIT
    _saved: list[_Saved] = field(default_factory=list)
    _seen: dict[int, Any] = field(default_factory=dict)
    _known: set[int] | None = None
    _copied: int = 0

    def __post_init__(self) -> None:
        for module in self.modules.values():
            self._seen[id(module)] = module
        for name, module in self.modules.items():
            for key, value in module.__dict__.items():
                kind = type(value)
                # Most attributes are numbers and empty dicts: this loop runs before every pass.
                if kind in _ATOMS or (kind in PLAIN_CONTAINERS and not value) or key in _ELSEWHERE:
                    continue
                if key.endswith("_hooks"):
                    continue  # what hooks write down is meant to stay
                path = f"{name}.{key}" if name else key
                if kind in PLAIN_CONTAINERS:
                    self._seen[id(value)] = value
                    self._inside(value, path, 1)
                else:
                    self._visit(value, path, 1)
        for kind in {type(module) for module in self.modules.values()}:
            self._visit_class(kind)

    def changes(self) -> Iterator[str]:
        """Yield the name of everything that is not as it was."""
        return (saved.name for saved in self._saved if saved.is_changed())

    def restore(self) -> list[str]:
        """Put back what changed; return the names of what could not be."""
        failed = []
        for saved in self._saved:
            if not saved.is_changed():
                continue
            try:
                if saved.restore is not None:
                    saved.restore()
            except Exception:
                failed.append(saved.name)  # a stranger's __setattr__ may raise anything
                continue
            if saved.restore is None:
                failed.append(saved.name)
        return failed

    # ---- looking into things

    def _visit(self, value: Any, name: str, depth: int) -> None:
        kind = type(value)
        if kind in _ATOMS or id(value) in self._seen or len(self._seen) >= MAX_OBJECTS:
            return
        self._seen[id(value)] = value  # also keeps it, so that its id is nobody else's
        # A stranger's class may raise anything when it is looked at; the rest is looked after all the same.
        with contextlib.suppress(Exception):
            self._look(value, name, depth)

    def _look(self, value: Any, name: str, depth: int) -> None:
        if isinstance(value, Tensor):
            self._tensor(value, name)
        elif isinstance(value, np.ndarray):
            self._array(value, name)
        elif self._stream(value, name) or self._iterator(value, name):
            return
        elif isinstance(value, (tuple, frozenset)):
            self._inside(value, name, depth)
        elif isinstance(value, _BASES):
            self._container(value, name)
            self._inside(value, name, depth)
            self._fields(value, name, depth)
        elif isinstance(value, types.FunctionType):
            if not _is_closed(value.__module__):
                self._function(value, name, depth)
        elif isinstance(value, types.MethodType):
            self._below(value.__self__, f"{name}.__self__", depth)
        elif isinstance(value, functools.partial):
            self._below((value.func, value.args, value.keywords), name, depth)
        elif isinstance(value, nn.Module) or not _is_closed(type(value).__module__):
            self._fields(value, name, depth)

    def _below(self, value: Any, name: str, depth: int) -> None:
        if depth < MAX_DEPTH:
            self._visit(value, name, depth + 1)

    def _inside(self, container: Any, name: str, depth: int) -> None:
        if depth >= MAX_DEPTH or isinstance(container, bytearray):
            return
        pairs = container.items() if isinstance(container, dict) else enumerate(container)
        for key, item in list(pairs):
            if type(item) not in _ATOMS:
                self._visit(item, f"{name}[{key!r:.40}]", depth + 1)

    def _add(self, name: str, is_changed: Callable[[], bool], restore: Callable[[], None] | None) -> None:
        self._saved.append(_Saved(name, is_changed, restore))

    # ---- what there is

    def _has_room(self, size: int) -> bool:
        fits = self._copied + size <= self.copy_limit
        self._copied += size if fits else 0
        return fits

    def _is_weight(self, tensor: Tensor) -> bool:
        """Whether the tensor shares its memory with a parameter."""
        if self._known is None:
            own = [weight for module in self.modules.values() for weight in module._parameters.values()]
            self._known = {_memory(weight) for weight in own if weight is not None}
        return _memory(tensor) in self._known

    def _tensor(self, tensor: Tensor, name: str) -> None:
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or self._is_weight(tensor):
            return
        version, place = _version(tensor), tensor.detach()
        if not self._has_room(tensor.numel() * tensor.element_size()):
            self._add(name, lambda: _version(tensor) != version or not _is_same_place(tensor, place), None)
            return
        copied = place.clone()

        def is_changed() -> bool:
            if not _is_same_place(tensor, place):
                return True
            if version is not None and _version(tensor) == version and tensor.device.type != "cpu":
                return False  # comparing would wait for the device
            return not _equal(tensor.detach(), copied)

        def restore() -> None:
            with torch.no_grad():
                if not _is_same_place(tensor, place):
                    tensor.data = place
                tensor.detach().copy_(copied)

        self._add(name, is_changed, restore)

    def _array(self, array: np.ndarray[Any, Any], name: str) -> None:
        if not self._has_room(array.nbytes):
            before = _checksum(array)
            self._add(name, lambda: _checksum(array) != before, None)
            return
        copied = array.copy()

        def is_changed() -> bool:
            return array.shape != copied.shape or array.dtype != copied.dtype or not _same_array(array, copied)

        def restore() -> None:
            if array.shape != copied.shape:
                array.resize(copied.shape, refcheck=False)
            array[...] = copied

        self._add(name, is_changed, restore)

    def _stream(self, value: Any, name: str) -> bool:
        """Remember the state of a generator of random numbers."""
        if isinstance(value, torch.Generator):
            state = value.get_state()
            self._add(name, lambda: not torch.equal(value.get_state(), state), lambda: _ignore(value.set_state(state)))
        elif isinstance(value, (np.random.Generator, np.random.BitGenerator)):
            bits: Any = value.bit_generator if isinstance(value, np.random.Generator) else value
            told = bits.state
            self._add(name, lambda: not _same(bits.state, told), lambda: setattr(bits, "state", told))
        elif isinstance(value, np.random.RandomState):
            own = value.get_state(legacy=False)
            self._add(name, lambda: not _same(value.get_state(legacy=False), own), lambda: value.set_state(own))
        elif isinstance(value, random.Random):
            drawn = value.getstate()
            self._add(name, lambda: value.getstate() != drawn, lambda: value.setstate(drawn))
        else:
            return False
        return True

    def _iterator(self, value: Any, name: str) -> bool:
        """Remember how far an iterator is, so that it can at least be told that it moved on."""
        if isinstance(value, types.GeneratorType):
            state: Callable[[], Any] = functools.partial(_progress, value)
        elif type(value).__module__ == "itertools" or type(value).__name__.endswith("_iterator"):
            state = (
                functools.partial(repr, value) if type(value).__name__ == "count" else functools.partial(_left, value)
            )
        else:
            return False
        before = state()
        self._add(name, lambda: state() != before, None)
        return True

    def _container(self, value: Any, name: str) -> None:
        base: Any = next(b for b in _BASES if isinstance(value, b))
        before = list(base.items(value)) if isinstance(value, dict) else list(value)

        def is_changed() -> bool:
            now = list(base.items(value)) if isinstance(value, dict) else list(value)
            if len(now) != len(before):
                return True
            if isinstance(value, set):
                return any(item not in value for item in before)
            if isinstance(value, dict):
                pairs = zip(now, before, strict=True)
                return any(a[0] is not b[0] or _differs(a[1], b[1]) for a, b in pairs)
            return any(map(_differs, now, before))

        def restore() -> None:
            # By the base's own methods: a subclass's may do more.
            base.clear(value)
            (base.update if isinstance(value, (dict, set)) else base.extend)(value, before)

        self._add(name, is_changed, restore)

    def _fields(self, value: Any, name: str, depth: int) -> None:
        """Remember the attributes of an object, and look into them."""
        own = getattr(value, "__dict__", None)
        slots = _slots(value)
        if not isinstance(own, dict) and not slots:
            return
        before = dict(own) if isinstance(own, dict) else {}
        before_slots = {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}

        def is_changed() -> bool:
            now = own or {}
            return (
                now.keys() != before.keys()
                or any(_differs(now[key], item) for key, item in before.items())
                or any(_differs(getattr(value, slot, None), item) for slot, item in before_slots.items())
                or any(hasattr(value, slot) for slot in slots if slot not in before_slots)
            )

        def restore() -> None:
            if isinstance(own, dict):
                for added in own.keys() - before.keys():
                    del own[added]
                own.update(before)
            for slot in slots:
                if slot in before_slots:
                    object.__setattr__(value, slot, before_slots[slot])
                elif hasattr(value, slot):
                    object.__delattr__(value, slot)

        self._add(name, is_changed, restore)
        for key, item in (before | before_slots).items():
            self._below(item, f"{name}.{key}", depth)

    def _function(self, function: types.FunctionType, name: str, depth: int) -> None:
        """Remember what a function keeps in its closure, its defaults and its attributes."""
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._cell(cell, f"{name}.<{variable}>", depth)
        self._below((function.__defaults__, function.__kwdefaults__), name, depth)
        if function.__dict__:
            self._fields(function, name, depth)

    def _cell(self, cell: types.CellType, name: str, depth: int) -> None:
        if id(cell) in self._seen:
            return
        self._seen[id(cell)] = cell
        try:
            before = cell.cell_contents
        except ValueError:  # nothing in it yet
            return
        self._add(
            name,
            lambda: _differs(cell.cell_contents, before),
            lambda: setattr(cell, "cell_contents", before),
        )
        self._below(before, name, depth)

    def _visit_class(self, kind: type) -> None:
        """Remember what a class of the user's keeps for all its modules."""
        for owner in kind.__mro__:
            if owner is nn.Module or owner is object or id(owner) in self._seen:
                continue
            self._seen[id(owner)] = owner
            if _is_closed(owner.__module__):
                continue
            for key, value in list(vars(owner).items()):
                if key.startswith("__") or callable(value) or hasattr(type(value), "__get__"):
                    continue
                self._add(
                    f"{owner.__name__}.{key}",
                    functools.partial(lambda o, k, v: _differs(vars(o).get(k), v), owner, key, value),
                    functools.partial(setattr, owner, key, value),
                )
                self._visit(value, f"{owner.__name__}.{key}", 1)


def _is_closed(module: Any) -> bool:
    return str(module).partition(".")[0] in _CLOSED


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):
        return id(tensor)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else getattr(tensor, "_version", None)


def _is_same_place(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride() and a.data_ptr() == b.data_ptr()


def _equal(a: Tensor, b: Tensor) -> bool:
    if torch.equal(a, b):
        return True
    return (a.is_floating_point() or a.is_complex()) and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _same_array(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    if a.dtype.hasobject:
        return all(map(_is, a.ravel().tolist(), b.ravel().tolist()))
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def _is(a: Any, b: Any) -> bool:
    return not _differs(a, b)


def _checksum(array: np.ndarray[Any, Any]) -> int:
    if array.dtype.hasobject or not array.flags.c_contiguous:
        return 0
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)


def _differs(a: Any, b: Any) -> bool:
    """Whether two values are others; the numbers and texts of two objects are the same when they are equal."""
    if a is b:
        return False
    return type(a) is not type(b) or type(a) not in _VALUES or not bool(a == b)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


def _slots(value: Any) -> list[str]:
    named: list[str] = []
    for kind in type(value).__mro__:
        found = vars(kind).get("__slots__", ())
        named += [found] if isinstance(found, str) else list(found)
    return [name for name in named if name not in ("__dict__", "__weakref__") and not name.startswith("__")]


def _progress(value: types.GeneratorType[Any, Any, Any]) -> Any:
    frame = value.gi_frame
    if frame is None:
        return None
    return frame.f_lasti, {k: v for k, v in frame.f_locals.items() if type(v) in _VALUES}


def _left(value: Any) -> Any:
    hint = getattr(value, "__length_hint__", None)
    return hint() if hint is not None else None


def _ignore(_: object) -> None:
    return None
