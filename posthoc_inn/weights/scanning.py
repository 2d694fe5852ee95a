"""Counts what unpickling a file of weights would take, before it is unpickled: the sizes in a pickle are anyone's."""

from __future__ import annotations

import io
import math
import mmap
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LEGACY_PICKLES = 5
"""A file of torch's older format begins with so many: magic number, protocol, system, content, keys of storages."""
_OBJECT, _SET, _ENTRY, _POINTER = 64, 216, 64, 8
"""Bytes of a small object, of an empty set, of an entry in a dict, and of a place in a list; about."""
MAX_DEPTH = 100
"""Tuples inside tuples: hashing one that is far deeper overflows the stack of the process."""

_COPYING = {"set", "bytearray", "complex", "encode", "Counter", "OrderedDict", "Size"}
"""Last parts of the names of callables that copy what they are given."""
_PUSHED = {
    "NONE", "NEWFALSE", "NEWTRUE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "BININT", "BININT1",
    "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class TooMuchError(ValueError):
    """The file would take more memory than its size explains, or is nested too deeply."""


@dataclass(slots=True)
class _Value:
    """What is known of an object without making it."""

    size: int = _OBJECT
    name: str = ""
    scalar: Any = None
    items: tuple[_Value, ...] | None = None
    depth: int = 0


def check_pickles(path: Path, limit: int) -> None:
    """Refuse a file of PyTorch's whose pickles would take more than `limit` bytes, storages included.

    Args:
        path: A zip archive as torch.save writes it, or a file of the older format.
        limit: In bytes.

    Raises:
        TooMuchError: It would take more.
        UnpicklingError: It holds what torch.save does not write.
        ValueError, LookupError, OSError: It is damaged.
    """
    scan = _Scan(limit)
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                # torch finds its entries whatever their letters' case.
                if "data.pkl" in entry.filename.lower():
                    scan.read(io.BytesIO(archive.read(entry)))
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for _ in range(_LEGACY_PICKLES):
            if content.tell() < len(content):
                scan.read(content)


class _Scan:
    """Follows a pickle as torch's own restricted unpickler does, with sizes in place of objects."""

    def __init__(self, limit: int) -> None:
        self.limit, self.total = limit, 0
        self.storages: set[Any] = set()

    def read(self, file: Any) -> None:
        """Follow one pickle up to its end."""
        self.stack: list[_Value] = []
        self.marks: list[list[_Value]] = []
        self.memo: dict[int, _Value] = {}
        for opcode, argument, _ in pickletools.genops(file):
            self._step(opcode.name, argument)

    def _take(self, size: int) -> None:
        self.total += size
        if self.total > self.limit:
            raise TooMuchError(f"unpickling it would take more than {self.limit} bytes")

    def _push(self, value: _Value) -> None:
        self._take(value.size)
        self.stack.append(value)

    def _pop_mark(self) -> list[_Value]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            large = len(argument) if isinstance(argument, (str, bytes)) else 0
            items = () if name == "EMPTY_TUPLE" else None
            size = _SET if name == "EMPTY_SET" else _OBJECT + 4 * large
            self._push(_Value(size, "", argument, items))
        elif name == "GLOBAL":
            self._push(_Value(0, str(argument).replace(" ", ".")))
        elif name in ("BINGET", "LONG_BINGET"):
            self._take(_POINTER)
            self.stack.append(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._take(_ENTRY)
            self.memo[argument] = self.stack[-1]
        elif name == "MARK":
            self._take(_OBJECT)
            self.marks.append(self.stack)
            self.stack = []
        elif name == "TUPLE":
            self._tuple(self._pop_mark())
        elif name in _TUPLES:
            count = _TUPLES[name]
            items_list = [self.stack.pop() for _ in range(count)][::-1]
            self._tuple(items_list)
        elif name not in _ACTIONS:
            if name not in ("PROTO", "STOP"):
                raise pickle.UnpicklingError(f"Unsupported operand {name}")
        else:
            _ACTIONS[name](self)

    def _tuple(self, items: list[_Value]) -> None:
        depth = 1 + max((item.depth for item in items), default=0)
        if depth > MAX_DEPTH:
            raise TooMuchError(f"it holds tuples nested more than {MAX_DEPTH} deep")
        self._push(_Value(_OBJECT + _POINTER * len(items), "", None, tuple(items), depth))

    def _grow(self, count: int, each: int) -> None:
        self._take(count * each)
        self.stack[-1].size += count * each

    def _append(self) -> None:
        self.stack.pop()
        self._grow(1, _POINTER)

    def _appends(self) -> None:
        self._grow(len(self._pop_mark()), _POINTER)

    def _setitem(self) -> None:
        self.stack.pop()
        self.stack.pop()
        self._grow(1, _ENTRY)

    def _setitems(self) -> None:
        self._grow(len(self._pop_mark()) // 2, _ENTRY)

    def _persistent(self) -> None:
        """Count the elements of a storage, once."""
        parts = self.stack.pop().items
        if parts is not None and len(parts) >= 5:
            key = parts[2].scalar
            if not isinstance(key, (str, int, bytes)) or key not in self.storages:
                self.storages.add(key if isinstance(key, (str, int, bytes)) else None)
                self._take(_whole(parts[4]))
        self._push(_Value())

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self._call(function, arguments)

    def _call(self, function: _Value, arguments: _Value) -> None:
        """Count what a call makes: tensors over their storages nothing, copies what is copied."""
        given = arguments.items or ()
        name = function.name.rpartition(".")[2]
        made = _Value(_OBJECT, f"a {name}")
        if name == "_rebuild_from_type_v2" and len(given) >= 3:
            self._call(given[0], given[2])
            self.stack.pop()
        elif name.startswith("_rebuild"):
            if len(given) > 2:
                # Without so many elements in its storage, torch would enlarge it.
                self._take(_elements(given[2]))
        elif name in _COPYING:
            # A number makes a byte array of that length.
            made.size += sum(max(value.size, _whole(value)) for value in given)
        elif name.endswith(("Tensor", "Storage")) and given:
            raise pickle.UnpicklingError(f"GLOBAL {function.name} is called to make a new one")
        self._push(made)

    def _build(self) -> None:
        state = self.stack.pop()
        parts = state.items or ()
        self._take(state.size + (_elements(parts[2]) if len(parts) > 2 else 0))


def _whole(value: _Value) -> int:
    return max(0, value.scalar) if type(value.scalar) is int else 0


def _elements(shape: _Value) -> int:
    """Return the elements of a tensor of this shape; 0 where it is none."""
    if shape.items is None or any(type(item.scalar) is not int for item in shape.items):
        return 0
    return abs(math.prod(int(item.scalar) for item in shape.items))


_ACTIONS: dict[str, Callable[[_Scan], None]] = {
    "APPEND": _Scan._append,
    "APPENDS": _Scan._appends,
    "SETITEM": _Scan._setitem,
    "SETITEMS": _Scan._setitems,
    "BINPERSID": _Scan._persistent,
    "REDUCE": _Scan._reduce,
    "NEWOBJ": _Scan._reduce,
    "BUILD": _Scan._build,
}
