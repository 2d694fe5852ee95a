"""What every analysis returns: a frozen dataclass with plain data and a small table for notebooks."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from posthoc_inn.errors import listed, shown
from posthoc_inn.files import plain


@dataclass(frozen=True)
class Result:
    """Base of all results. Tensors, which figures are drawn from, are no part of the plain data."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; a figure that is not finite becomes None, which JSON can hold."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: plain(value) for name, value in values.items() if not isinstance(value, Tensor)}

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, self.to_dict())


def html_table(caption: str, values: Mapping[str, Any]) -> str:
    """Return names and values as an HTML table for notebooks, all text escaped and cut.

    >>> html_table("Share", {"value": 0.12345, "name": "<b>"}).count("&lt;b&gt;")
    1
    """

    def cell(value: Any) -> str:
        return html.escape(f"{value:.4g}" if isinstance(value, float) else shown(value, 2000))

    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(shown(name))}</th><td>{cell(value)}</td></tr>"
        for name, value in values.items()
    )
    return f"<table><caption>{html.escape(caption)}</caption>{rows}</table>"


class Named(Protocol):
    """A part of a result that has a name."""

    @property
    def name(self) -> str:
        """What it is called."""


N = TypeVar("N", bound=Named)


def by_name(parts: Iterable[N], name: str, kind: str) -> N:
    """Return the part of a result that is called `name`.

    Raises:
        KeyError: There is none; the message lists all.
    """
    found = {part.name: part for part in parts}
    if name not in found:
        raise KeyError(f"There is no {kind} {name!r}; there are {listed(list(found))}.")
    return found[name]


def share_with_error(hits: list[float]) -> tuple[float, float]:
    """Return the mean of per-image shares, and its standard error over images.

    >>> share_with_error([1.0, 1.0, 0.0, 1.0])
    (0.75, 0.25)
    """
    n = len(hits)
    mean = sum(hits) / n
    if n < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((h - mean) ** 2 for h in hits) / (n - 1) / n)
