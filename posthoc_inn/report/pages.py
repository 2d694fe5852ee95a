"""Fills the templates of the pages. Every value is escaped where it is shown, and one that is missing is an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from posthoc_inn.drawing import to_data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ENVIRONMENT = Environment(
    loader=PackageLoader("posthoc_inn.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Picture:
    """A figure inside a page.

    Attributes:
        source: The picture itself, as a data URI.
        description: What it is, for readers who do not see it.
        caption: Below it, or "".
        width: On the page, in CSS units, or "" for its own.
    """

    source: str
    description: str
    caption: str = ""
    width: str = ""


def picture_of(figure: Figure, description: str, caption: str = "", *, width: str = "") -> Picture:
    """Return a figure as it goes into a page; see `Picture`."""
    return Picture(to_data_uri(figure), description, caption, width)


def fill(template: str, **values: Any) -> str:
    """Return a template with its values, all taken as text; macros of `parts.html` alone give HTML.

    Args:
        template: Its file name.
        values: All that it names.
    """
    return _ENVIRONMENT.get_template(template).render(values)
