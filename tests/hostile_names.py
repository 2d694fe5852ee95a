"""Names that users really give, and some that only look like it: for tests of where names go."""

from __future__ import annotations

HOSTILE_NAMES = {
    "mathematics": "$x^$",
    "dollar": "a$b",
    "line break": "a\nb\r\n",
    "escape sequence": "\x1b[31mred\x1b[2J",
    "markup": "[red]x[/red] [/]",
    "tag": "<script>alert(1)</script>\"'&",
    "template": "{{ 7*7 }} {% raw %}",
    "long": "n" * 5000,
    "long lines": "n\n" * 2500,
    "Japanese": "日本",
    "emoji": "👩‍🔬🦜",
    "path": "../../etc/passwd",
    "reserved": "CON",
    "undecodable": "caf\udce9",
    "right to left": "\u202egnp.exe",
    "underscore": "_hidden",
    "backslash": "\\$x^\\frac{$",
    "null": "a\0b",
    "empty": "",
    "blank": "  ",
}
