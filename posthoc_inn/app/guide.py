"""Sections of the guide, which the page shows where a part links it: no network is needed to read them."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

PLACES = (Path(__file__).parent / "guide.md", Path(__file__).parents[2] / "docs" / "guide.md")
"""In an installed package, and in a checkout."""


@lru_cache(maxsize=1)
def guide() -> str:
    """Return the whole guide as Markdown; "" where it was not installed."""
    found = next((place for place in PLACES if place.is_file()), None)
    return "" if found is None else found.read_text(encoding="utf-8")


def section(heading: str) -> str:
    """Return the text of a section, without its heading; a sentence that says where to read it where it is not there.

    Args:
        heading: As the guide has it, of the second level.

    >>> section("No such thing")
    'Read "No such thing" in docs/guide.md of the project.'
    """
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", guide(), re.MULTILINE | re.DOTALL)
    if found is None:
        return f'Read "{heading}" in docs/guide.md of the project.'
    # Its links lead to files that a page does not have.
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", found[1]).strip()
