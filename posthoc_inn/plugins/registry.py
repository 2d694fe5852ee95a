"""The registry plugins fill: entries, open-ended names (``timm:resnet18``), contested names, absent plugins."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from posthoc_inn.errors import DuplicateNameError, PluginError, PosthocInnError, UnknownNameError, quoted

T = TypeVar("T")

MAX_SHOWN = 12
"""How many names an error lists."""


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


@dataclass(frozen=True)
class OpenEnded(Generic[T]):
    """Everything that is asked for as ``prefix:NAME``; see `posthoc_inn.plugins.hookspecs.Register.open_ended`."""

    prefix: str
    names: Callable[[], Iterable[str]]
    factory: Callable[[str], Callable[..., T] | None]
    metadata: Callable[[str], Mapping[str, Any]] | None
    distribution: str


@dataclass(frozen=True)
class Absent:
    """A plugin that is installed and yet brings nothing.

    Attributes:
        distribution: Who.
        why: A clause that follows the name: "failed to load (...)", "is switched off by ...".
        prefixes: Prefixes it is known, or named such that it is expected, to bring.
        names: Names it was about to register.
    """

    distribution: str
    why: str
    prefixes: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


class Registry(Generic[T]):
    """Names to factories, filled by several distributions; it refuses to guess between them.

    A name that two of them register stays listed, and is an error for whoever asks for it, not for anybody
    else.

    >>> backbones = Registry("backbone")
    >>> backbones.add(Entry("tiny", lambda: 42, "mine"))
    >>> numbers = OpenEnded("n", lambda: ["1", "2"], lambda n: (lambda: int(n)), None, "numbers")
    >>> backbones.add_open_ended(numbers)
    >>> backbones.get("n:2").factory(), backbones.names(), backbones.prefixes()
    (2, ['tiny'], ['n'])
    >>> backbones.get("tinny")
    Traceback (most recent call last):
    ...
    posthoc_inn.errors.UnknownNameError: There is no backbone 'tinny'. Did you mean 'tiny'? Known: tiny, n:NAME.
    >>> backbones.add(Entry("tiny", lambda: 43, "theirs"))
    >>> sorted(backbones.contested)
    ['tiny']
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.contested: dict[str, str] = {}
        self.absent: list[Absent] = []
        self._entries: dict[str, Entry[T]] = {}
        self._open: dict[str, OpenEnded[T]] = {}

    def add(self, entry: Entry[T]) -> None:
        """Register `entry`; where its name is taken, mark the name as contested.

        Raises:
            UnknownNameError: Its name is no text, is empty or has white space.
        """
        name = entry.name
        if not isinstance(name, str) or not name.strip() or any(c.isspace() for c in name):
            raise UnknownNameError(
                f"{entry.distribution} registers a {self.kind} under {name!r}; a name is text without white space."
            )
        taken = self._entries.setdefault(name, entry)
        if taken is not entry:
            self.contested[name] = (
                f"The {self.kind} {name!r} is registered by both {taken.distribution} and "
                f"{entry.distribution}; uninstall one, or leave it out with POSTHOC_INN_PLUGINS."
            )

    def add_open_ended(self, opened: OpenEnded[T]) -> None:
        """Register a prefix; where it is taken, mark it as contested."""
        taken = self._open.setdefault(opened.prefix, opened)
        if taken is not opened:
            self.contested[f"{opened.prefix}:"] = (
                f"The {self.kind}s '{opened.prefix}:...' are registered by both {taken.distribution} and "
                f"{opened.distribution}; uninstall one, or leave it out with POSTHOC_INN_PLUGINS."
            )

    def names(self) -> list[str]:
        """Return every listed name, sorted."""
        return sorted(self._entries)

    def prefixes(self) -> list[str]:
        """Return every prefix of open-ended names, sorted."""
        return sorted(self._open)

    def open_ended_owner(self, prefix: str) -> str:
        """Return the distribution that registered `prefix`."""
        return self._open[prefix].distribution

    def open_ended_names(self, prefix: str | None = None) -> list[str]:
        """Return every open-ended name as ``prefix:NAME``; may import what is heavy.

        Raises:
            PluginError: A plugin fails to list its names.
        """
        found: list[str] = []
        for opened in self._open.values():
            if prefix in (None, opened.prefix):
                try:
                    found += [f"{opened.prefix}:{name}" for name in opened.names()]
                except Exception as error:
                    raise PluginError(
                        f"{opened.distribution} cannot list its {self.kind}s: {describe(error)}"
                    ) from error
        return found

    def get(self, name: str) -> Entry[T]:
        """Return the entry called `name`, listed or open-ended.

        Raises:
            DuplicateNameError: Two distributions register it.
            PluginError: It belongs to a plugin that is installed and failed to load, or is switched off.
            UnknownNameError: Nobody has it; the message lists the nearest names.
        """
        name = str(name)
        prefix, colon, _ = name.partition(":")
        for key in (name, prefix + colon):
            if key in self.contested:
                raise DuplicateNameError(self.contested[key])
        entry = self._find(name)
        if entry is not None:
            return entry
        for absent in self.absent:
            if name in absent.names or (colon and prefix in absent.prefixes):
                raise PluginError(f"The {self.kind} {name!r} comes with {absent.distribution}, which {absent.why}.")
        raise UnknownNameError(self._miss(name))

    def _find(self, name: str) -> Entry[T] | None:
        prefix, _, rest = name.partition(":")
        opened = self._open.get(prefix) if rest else None
        if opened is None:
            return self._entries.get(name)
        try:
            factory = opened.factory(rest)
            if factory is None:
                return None
            metadata = opened.metadata(rest) if opened.metadata else {}
        except PosthocInnError:
            raise
        except Exception as error:
            raise PluginError(f"{opened.distribution} fails over {name!r}: {describe(error)}") from error
        return Entry(name, factory, opened.distribution, dict(metadata))

    def _miss(self, name: str) -> str:
        prefix, colon, _ = name.partition(":")
        text = f"There is no {self.kind} {quoted(name)}."
        if colon and prefix not in self._open:
            text += f" Nothing installed brings '{prefix}:NAME'; is posthoc-inn-{prefix} missing?"
        open_names, failures = self._all_open_ended(prefix if colon and prefix in self._open else None)
        near = nearest(name, [*self.names(), *open_names])
        if near:
            text += " Did you mean " + " or ".join(map(repr, near)) + "?"
        known = self.names()[:MAX_SHOWN]
        if len(self) > MAX_SHOWN:
            known.append(f"{len(self) - MAX_SHOWN} more")
        known += [f"{p}:NAME" for p in self.prefixes()]
        text += f" Known: {', '.join(known)}." if known else " None are known."
        text += "".join(f" {a.distribution} might bring it, but {a.why}." for a in self.absent)
        return text + failures

    def _all_open_ended(self, only: str | None) -> tuple[list[str], str]:
        """Return every open-ended name, and a text about plugins that cannot list theirs."""
        names: list[str] = []
        failures = ""
        for prefix in self.prefixes():
            if only in (None, prefix):
                try:
                    names += self.open_ended_names(prefix)
                except PluginError as error:
                    failures += f" {error}."
        return names, failures

    def __contains__(self, name: object) -> bool:
        return self._find(str(name)) is not None

    def __iter__(self) -> Iterator[Entry[T]]:
        """Iterate over the listed entries by name; contested ones are left out."""
        return iter([self._entries[n] for n in self.names() if n not in self.contested])

    def __len__(self) -> int:
        return len(self._entries)


def nearest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Return the known names nearest to `name`; a bare one is compared with what follows their colons."""
    short: dict[str, list[str]] = {}
    for full in known:
        short.setdefault((full if ":" in name else full.rpartition(":")[2]).lower(), []).append(full)
    wanted = name.lower()
    close = [wanted] if wanted in short else difflib.get_close_matches(wanted, list(short), n=limit, cutoff=0.6)
    if not close:
        close = [s for s in short if wanted in s]
    return [full for s in close for full in short[s]][:limit]


def describe(error: BaseException) -> str:
    """Return an error as one line: its type and its text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
