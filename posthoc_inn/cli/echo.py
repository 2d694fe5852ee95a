"""Lines and JSON for the terminal, with what would steer it written out. Light: rich is not needed."""

from __future__ import annotations

import json
from typing import Any

import click

from posthoc_inn.files import plain
from posthoc_inn.names import visible


def echo(text: str, *, err: bool = False) -> None:
    """Print text of one or more lines."""
    click.echo(visible(text, keep="\n"), err=err)


def echo_json(value: Any) -> None:
    """Print JSON."""
    click.echo(json.dumps(plain(value), indent=2))
