"""Names that strangers give (classes, columns, files, layers), made fit for where they go."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

_JOINERS = "\u200c\u200d"
"""What holds letters of some scripts, and parts of emoji, together."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices, with any ending."""
LONGEST_FILE_NAME = 100
"""Letters; systems allow 255 bytes, and endings are added."""


def visible(text: str, keep: str = "") -> str:
    r"""Return `text` with control characters, and halves of characters that no file can hold, written out.

    Args:
        text: Anybody's.
        keep: Characters that stay as they are, such as line breaks.

    >>> visible("a\x1b[31m\n"), visible("a\n", keep="\n"), visible("\udcff"), visible("日本")
    ('a\\x1b[31m\\n', 'a\n', '\\udcff', '日本')
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or _is_harmless(c) else repr(c)[1:-1] for c in text)


def _is_harmless(c: str) -> bool:
    return c.isprintable() or c in _JOINERS or unicodedata.category(c) == "Zs"


def encodable(text: str) -> str:
    r"""Return `text` as UTF-8 can hold it: what an undecodable file name leaves behind is written out.

    >>> encodable("a\n\udcff日")
    'a\n\\udcff日'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def file_name(name: str) -> str:
    """Return a name for a file or directory, for any name: the same for the same, another for another.

    >>> file_name("layer3.0"), file_name("../a"), file_name("CON")
    ('layer3.0', '.._a-61b4c98b', 'CON-a3dbc4b6')
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:LONGEST_FILE_NAME]
    if plain == name and name.strip(".") and not name.endswith(".") and not _RESERVED.fullmatch(name):
        return plain
    return f"{plain}-{hashlib.sha256(encodable(name).encode()).hexdigest()[:8]}"


def without_blanks(names: Iterable[str]) -> list[str]:
    """Return names with a number for each that is blank, where blank means something else.

    >>> without_blanks(["crane", " ", "cat"])
    ['crane', '(1)', 'cat']
    """
    return [name if name.strip() else f"({number})" for number, name in enumerate(names)]
