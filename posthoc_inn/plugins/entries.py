"""One generic registry: a name, a factory, who registered it, and what is known about it beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from posthoc_inn.errors import DuplicateNameError, UnknownNameError, suggest

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered thing.

    Attributes:
        name: The name users type.
        factory: Builds the thing; heavy imports happen in here.
        distribution: The distribution that registered it.
        metadata: What is known without building it (see the registering plugin hook for its keys).
    """

    name: str
    factory: Callable[..., T]
    distribution: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Registry(Generic[T]):
    """Names to factories; refuses duplicates, and lists what it knows on a miss.

    >>> backbones = Registry("backbone")
    >>> _ = backbones.add("tiny", lambda: 42, distribution="mine", layers=["a"])
    >>> backbones.names(), backbones.get("tiny").factory()
    (['tiny'], 42)
    >>> backbones.get("tinny")
    Traceback (most recent call last):
    ...
    posthoc_inn.errors.UnknownNameError: There is no backbone 'tinny'. Did you mean 'tiny'? Known: tiny.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

    def add(self, name: str, factory: Callable[..., T], *, distribution: str, **metadata: Any) -> Entry[T]:
        """Register `factory` under `name`.

        Raises:
            DuplicateNameError: `name` is taken; the message names both distributions.
        """
        if not isinstance(name, str) or not name.strip() or any(c.isspace() for c in name):
            raise UnknownNameError(
                f"{distribution} registers a {self.kind} under {name!r}; a name is text without white space."
            )
        if name in self._entries:
            raise DuplicateNameError(
                f"The {self.kind} {name!r} is registered by both {self._entries[name].distribution} and "
                f"{distribution}; uninstall one, or leave it out with POSTHOC_INN_PLUGINS."
            )
        entry = Entry(name, factory, distribution, dict(metadata))
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> Entry[T]:
        """Return the entry called `name`.

        Raises:
            UnknownNameError: It is not registered; the message lists the nearest names.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(f"There is no {self.kind} {name!r}. {suggest(str(name), self.names())}") from None

    def names(self) -> list[str]:
        """Return every name, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter([self._entries[n] for n in self.names()])

    def __len__(self) -> int:
        return len(self._entries)
