"""Follows which tensor of a forward pass was computed from which, to tell a true cut from a skip connection.

Every operation below autograd is seen, so that `detach`, `argmax` and comparisons count as well as
differentiable operations. A layer is a true cut (f = Ψ ∘ Φ, MSC section 3) when no path leads from the inputs
to the output around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:

    class TorchDispatchMode:  # type: ignore[no-redef]
        """Stands where a version of torch has none: nothing can be followed, and cuts are measured instead."""

        def __init__(self) -> None:
            raise NotImplementedError("This version of torch does not let its operations be followed.")


_PASSED_THROUGH = frozenset(
    {
        *("alias", "view", "unsafe_view", "reshape", "squeeze", "unsqueeze", "clone", "detach", "contiguous"),
        *("select", "slice", "t", "transpose", "permute", "expand", "to_copy"),
        *("mean", "adaptive_avg_pool2d", "avg_pool2d"),
    }
)
"""Operations after which a result is what it was before: scores stay scores, and features features."""
_READS_BACK = frozenset({"_local_scalar_dense", "is_nonzero", "equal"})


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what an operation takes or returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors_in(inner)
    elif isinstance(value, Mapping):
        yield from _tensors_in(list(value.values()))


def _place(storage: Any) -> int:
    """Return what tells a storage from the others that live: where it is."""
    place: int | None = getattr(storage, "_cdata", None)
    return int(storage.data_ptr()) if place is None else place


def _carries_no_values(operation: str) -> bool:
    return operation.endswith("_like") or operation.startswith("new_")


class DataFlow(TorchDispatchMode):
    """Records the graph of a pass; its nodes are the tensors that depend on the inputs, in order of making.

    Views and their base are nodes of their own; a write in place becomes a node that every alias depends on
    from then on. Constants and parameters are no nodes.

    >>> import torch
    >>> x = torch.ones(2, 3)
    >>> with DataFlow([x]) as flow:
    ...     a = x * 2
    ...     b = a + x
    >>> flow.around(flow.nodes_of([a]), flow.nodes_of([b]))
    ['add']
    >>> flow.around(flow.nodes_of([b]), flow.nodes_of([b]))
    []
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parents: list[tuple[int, ...]] = []
        self.places: list[tuple[str, str]] = []
        self.module = ""
        self._node_of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        # The storages are kept alive: the address of a freed one could be given to another tensor.
        self._writes: dict[int, tuple[int, Any]] = {}
        self._read_back: set[int] = set()
        for tensor in inputs:
            self._node_of[tensor] = self._add((), "input")

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The wrapper that torch would put around __torch_dispatch__ imports all of torch._dynamo: seconds.
        return False

    def _add(self, parents: Iterable[int], operation: str) -> int:
        self.parents.append(tuple(parents))
        self.places.append((self.module, operation))
        return len(self.parents) - 1

    def _current(self, tensor: Tensor) -> set[int]:
        node: int = self._node_of.get(tensor, -1)
        written = self._writes.get(_place(tensor.untyped_storage()), (-1, None))[0] if self._writes else -1
        return {n for n in (node, written if written > node else -1) if n >= 0}

    def nodes_of(self, tensors: Iterable[Tensor]) -> set[int]:
        """Return the nodes that hold the values which `tensors` have now; empty for constants."""
        return set().union(*(self._current(t) for t in tensors))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and note what its results depend on."""
        result = func(*args, **(kwargs or {}))
        operation = func.overloadpacket.__name__
        parents = self.nodes_of(_tensors_in((args, kwargs)))
        if not parents or _carries_no_values(operation):
            return result
        if operation in _READS_BACK:
            self._read_back |= parents
        written = self._written(func, args, kwargs or {})
        for tensor in written:
            node = self._add(parents, operation)
            self._node_of[tensor] = node
            storage = tensor.untyped_storage()
            self._writes[_place(storage)] = (node, storage)
        for tensor in _tensors_in(result):
            if not any(tensor is w for w in written):
                self._node_of[tensor] = self._add(parents, operation)
        return result

    @staticmethod
    def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
        values: list[Any] = []
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                values.append(args[position] if position < len(args) else kwargs.get(argument.name))
        return list(_tensors_in(values))

    def _descendants(self, nodes: set[int]) -> set[int]:
        found = set(nodes)
        for node in range(min(nodes, default=0) + 1, len(self.parents)):
            if not found.isdisjoint(self.parents[node]):
                found.add(node)
        return found

    def _ancestors(self, nodes: set[int]) -> set[int]:
        found = set(nodes)
        for node in range(max(nodes, default=-1), -1, -1):
            if node in found:
                found.update(self.parents[node])
        return found

    def reaches(self, layer: set[int], output: set[int]) -> bool:
        """Say whether any of the nodes `output` depends on one of the nodes `layer`."""
        return bool(layer) and not self._descendants(layer).isdisjoint(output)

    def around(self, layer: set[int], output: set[int]) -> list[str]:
        """Name the places where the inputs reach `output` without passing `layer`; empty for a true cut.

        Args:
            layer: Nodes of the layer's output.
            output: Nodes of the model's output.

        Returns:
            ``"layer3.0 (add)"``: the module in which the other route joins, and the operation.
        """
        below = self._descendants(layer) if layer else set()
        useful = self._ancestors(output)
        joins = [
            self.places[n]
            for n in sorted((below - layer) & useful)
            if any(parent not in below for parent in self.parents[n])
        ]
        if output - below:
            joins.append(("", "output"))
        named = [
            f"{module} ({operation.rstrip('_')})" if module else operation.rstrip("_") for module, operation in joins
        ]
        return list(dict.fromkeys(named))

    def made_by(self, nodes: set[int]) -> str:
        """Name the operation that made a result, views, copies and means left aside; "" where there is none.

        >>> x = Tensor([[1.0, 2.0]])
        >>> with DataFlow([x]) as flow:
        ...     y = x.sigmoid()[:, :1].view(1)
        >>> flow.made_by(flow.nodes_of([y]))
        'sigmoid'
        """
        node = max(nodes, default=-1)
        while node >= 0 and self.places[node][1].strip("_") in _PASSED_THROUGH and self.parents[node]:
            node = max(self.parents[node])
        return self.places[node][1].rstrip("_") if node >= 0 else ""

    def is_sure(self, layer: set[int]) -> bool:
        """Say whether no value of the inputs was read into Python (`.item()`, `if tensor`) around `layer`."""
        return self._read_back <= (self._descendants(layer) if layer else set())
