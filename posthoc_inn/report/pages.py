"""Fills the templates of the pages. Every value is escaped where it is shown, and one that is missing is an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from posthoc_inn.drawing import to_data_uri
from posthoc_inn.names import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 2000
"""Letters of a text on a page, names that strangers gave included."""


def _fit(value: Any) -> Any:
    """Return a text as a page takes it: what no page can hold is written out, and no name fills it."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    text = visible(value[: LONGEST + 1], keep="\n\t")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


_ENVIRONMENT = Environment(
    loader=PackageLoader("posthoc_inn.report"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_fit,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Picture:
    """A figure inside a page.

    Attributes:
        source: The picture itself, as a data URI: nobody's text, and taken as it is.
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
