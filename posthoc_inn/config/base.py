"""The base of every configuration: frozen dataclasses, checked, strictly to and from plain JSON."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

from posthoc_inn.errors import ConfigError, Problems, suggest
from posthoc_inn.files import plain

C = TypeVar("C", bound="Config")


def _fits(value: Any, hint: Any) -> bool:
    """Say whether a JSON value already converted to Python fits the annotation `hint`."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, h) for h in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        inner = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(_fits(v, inner[0]) for v in value)
        return len(value) == len(inner) and all(_fits(v, h) for v, h in zip(value, inner, strict=True))
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))
    if hint is int:
        return _is_whole(value)
    return isinstance(value, hint)


def _is_whole(value: Any) -> bool:
    # 63 bits are what torch's sizes and seeds hold; far longer numbers cannot even be written into a message.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _shown(value: Any) -> str:
    """Return `value` for a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4300 digits
        return f"a value of the type {type(value).__name__} that is too long to be shown"
    return text if len(text) <= 100 else f"{text[:100]}..."


def _from_plain(value: Any, hint: Any) -> Any:
    """Turn JSON lists into tuples and JSON objects into nested configurations where `hint` asks for it."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if isinstance(option, type) and issubclass(option, Config) and isinstance(value, Mapping):
            return option.from_dict(value)
        if typing.get_origin(option) is tuple and isinstance(value, list):
            inner = typing.get_args(option)
            return tuple(_from_plain(v, inner[0]) for v in value)
    return value


@dataclass(frozen=True)
class Config:
    """Base of every configuration: checked types, strict plain-JSON round trip."""

    def __post_init__(self) -> None:
        problems = Problems(type(self).__name__)
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if not _fits(value, hints[f.name]):
                problems.check(False, f"{f.name} must be {_readable(hints[f.name])}, got {_shown(value)}")
        problems.raise_if_any()
        self._check(problems)
        problems.raise_if_any()

    def _check(self, problems: Problems) -> None:
        """Add what is wrong with the values to `problems`; types are already right."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain data (dict, list, str, number, bool, None)."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls: type[C], data: Mapping[str, Any]) -> C:
        """Build from plain data.

        Raises:
            ConfigError: A key is unknown or missing, or a value has the wrong type or size.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{cls.__name__} is read from an object, got {type(data).__name__}.")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        problems = Problems(cls.__name__)
        for key in data:
            if key not in fields:
                problems.check(False, f"unknown key {_shown(key)}. {suggest(str(key)[:100], fields)}")
        for f in fields.values():
            has_default = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
            problems.check(f.name in data or has_default, f"missing key {f.name!r}")
        problems.raise_if_any()
        hints = typing.get_type_hints(cls)
        return cls(**{k: _from_plain(v, hints[k]) for k, v in data.items()})

    def replace(self: C, **changes: Any) -> C:
        """Return a copy with `changes`, checked anew."""
        return dataclasses.replace(self, **changes)


_WORDS = {int: "a whole number of at most 63 bits", float: "a finite number", bool: "true or false", str: "text"}


def _readable(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(a) for a in typing.get_args(hint))
    if hint in _WORDS:
        return _WORDS[hint]
    return getattr(hint, "__name__", str(hint)).replace("typing.", "")
