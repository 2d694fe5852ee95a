"""Text of figures: names are shown as they are, whatever matplotlib would make of them, and take a bounded space."""

from __future__ import annotations

import textwrap

from posthoc_inn.names import visible

LINES, LETTERS = 12, 100
"""Lines of a text, and letters of a line, that a figure has room for; few letters where a picture's width is all."""
FEW = 24


def shortened(text: str, width: int = 14) -> str:
    r"""Return `text` if it has at most `width` characters, else its beginning and "…"; control characters are visible.

    >>> shortened("tabby, tabby cat"), shortened("tabby"), shortened("a" + chr(10))
    ('tabby, tabby …', 'tabby', 'a\\n')
    """
    text = visible(text[: width + 1])
    return text if len(text) <= width else text[: width - 1] + "…"


def wrapped(layer: str, width: int = 14) -> str:
    """Return a layer's dotted name on as many lines as it takes.

    >>> print(wrapped("features.denseblock3.denselayer24"))
    features.
    denseblock3.
    denselayer24
    """
    return textwrap.fill(shortened(layer, 6 * width).replace(".", ". "), width).replace(". ", ".")


def as_label(name: str, width: int = 32) -> str:
    r"""Return a user's name as matplotlib takes it for a title, a tick or a legend.

    >>> as_label("$x^$"), as_label("_hidden"), as_label("")
    ('\\$x^\\$', ' _hidden', "''")
    """
    # An even number of dollar signs would be mathematics; a legend leaves out nothing, and what an underscore begins.
    name = shortened(name if name.strip() else repr(name), width).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def cleaned(text: str, letters: int = LETTERS, most: int = LINES) -> str:
    r"""Return a text of `most` lines at the most as matplotlib takes it.

    >>> cleaned("$x^$" + chr(10) + "y")
    '\\$x^\\$\ny'
    """
    lines = text.split("\n") if most > 1 else [text]
    more = ["…"] * (len(lines) > most)
    return "\n".join([*(shortened(line, letters) for line in lines[:most]), *more]).replace("$", r"\$")
