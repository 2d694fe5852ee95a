"""What one plugin registers, checked and held back until all its hooks have gone well."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from posthoc_inn.errors import DuplicateNameError, PluginError, suggest
from posthoc_inn.plugins.hookspecs import METADATA_KEYS
from posthoc_inn.plugins.registry import Entry, OpenEnded

if TYPE_CHECKING:
    import click

Status = Literal["loaded", "disabled", "broken"]


@dataclass
class PluginInfo:
    """What is known of one installed plugin.

    Attributes:
        distribution: Name of the package that brings it.
        version: Its version, or "" where it states none.
        entry_point: Name of the entry point.
        status: "loaded", "disabled" (by POSTHOC_INN_PLUGINS) or "broken".
        error: Why it is broken, or "".
        hooks: Plugin hooks it implements.
        registered: Kind -> names it registered; open-ended ones as "prefix:*".
    """

    distribution: str
    version: str
    entry_point: str
    status: Status = "loaded"
    error: str = ""
    hooks: list[str] = field(default_factory=list)
    registered: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return {
            **vars(self),
            "hooks": list(self.hooks),
            "registered": {k: list(v) for k, v in self.registered.items()},
        }


class Staged:
    """What one plugin registers, held back until all its hooks have gone well."""

    def __init__(self, distribution: str) -> None:
        self.distribution = distribution
        self.entries: dict[tuple[str, str], Entry[Any]] = {}
        self.opened: dict[tuple[str, str], OpenEnded[Any]] = {}
        self.commands: dict[str, click.Command] = {}

    def register_for(self, kind: str) -> _Register:
        """Return the `register` callback of the hook that fills the registry of `kind`."""
        return _Register(self, kind)

    def names(self, kind: str) -> list[str]:
        """Return what is staged for the registry of `kind`, open-ended names as "prefix:*"."""
        return [n for k, n in self.entries if k == kind] + [f"{p}:*" for k, p in self.opened if k == kind]


class _Register:
    """The `register` a hook is handed; see `posthoc_inn.plugins.hookspecs.Register`."""

    def __init__(self, staged: Staged, kind: str) -> None:
        self._staged = staged
        self._kind = kind

    def __call__(self, name: str, factory: Callable[..., Any], **metadata: Any) -> None:
        key = (self._kind, self._checked_name(name, factory))
        self._check_keys(name, metadata)
        if key in self._staged.entries:
            raise DuplicateNameError(f"it registers the {self._kind} {name!r} twice")
        self._staged.entries[key] = Entry(name, factory, self._staged.distribution, metadata)

    def open_ended(
        self,
        prefix: str,
        *,
        names: Callable[[], Iterable[str]],
        factory: Callable[[str], Callable[..., Any] | None],
        metadata: Callable[[str], Mapping[str, Any]] | None = None,
    ) -> None:
        key = (self._kind, self._checked_name(prefix, factory))
        if key in self._staged.opened:
            raise DuplicateNameError(f"it registers the {self._kind}s '{prefix}:...' twice")

        def checked(name: str) -> Mapping[str, Any]:
            found = metadata(name) if metadata else {}
            self._check_keys(f"{prefix}:{name}", found)
            return found

        self._staged.opened[key] = OpenEnded(prefix, names, factory, checked, self._staged.distribution)

    def _checked_name(self, name: str, factory: object) -> str:
        if not isinstance(name, str) or not re.fullmatch(r"[^\s:]+", name):
            raise PluginError(
                f"it registers a {self._kind} as {name!r}; a name is text without white space or colon "
                "(names with a colon come from register.open_ended)"
            )
        if not callable(factory):
            raise PluginError(f"the factory of the {self._kind} {name!r} must be callable, got {factory!r}")
        return name

    def _check_keys(self, name: str, metadata: Mapping[str, Any]) -> None:
        known = METADATA_KEYS[self._kind]
        for key in metadata:
            if key not in known:
                raise PluginError(f"the {self._kind} {name!r} has unknown metadata {key!r}. {suggest(key, known)}")
