"""`posthoc-inn plugins`: what is registered, and by whom."""

from __future__ import annotations

import json
from typing import Any

import click

from posthoc_inn.cli.echo import echo, echo_json


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--names", metavar="KIND", help="Print all names of one kind (backbone, dataset, ...), those with a prefix too."
)
def command(as_json: bool, names: str | None) -> None:
    """List what is registered, and by whom.

    To install a plugin is to trust it: its code runs. POSTHOC_INN_PLUGINS=none switches all of them off. A
    comma-separated list of distributions leaves only these on.
    """
    from posthoc_inn.errors import UnknownNameError, suggest
    from posthoc_inn.plugins import get_plugin_manager

    manager = get_plugin_manager()
    if names is not None:
        registries = {registry.kind: registry for registry in manager.registries.values()}
        kind = names if names in registries else names.removesuffix("s")
        if kind not in registries:
            raise UnknownNameError(f"There is no kind {names!r}. {suggest(names, registries)}")
        found = sorted([*registries[kind].names(), *registries[kind].open_ended_names()])
        echo(json.dumps(found) if as_json else "\n".join(found))
        return
    plugins, conflicts = manager.plugins(), manager.conflicts()
    if as_json:
        echo_json({"plugins": plugins, "conflicts": conflicts})
        return
    _show(plugins, conflicts)


def _show(plugins: list[dict[str, Any]], conflicts: list[str]) -> None:
    from rich.table import Table

    from posthoc_inn.cli.terminal import cell, out, print_lines

    console = out()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("plugin", "version", "status", "kind", "registers"):
        table.add_column(heading, no_wrap=heading != "registers", overflow="fold")
    for plugin in plugins:
        rows = sorted(plugin["registered"].items()) or [("", plugin["error"] or "")]
        for number, (kind, names) in enumerate(rows):
            own = (plugin["distribution"], plugin["version"], plugin["status"]) if number == 0 else ("", "", "")
            text = names if isinstance(names, str) else ", ".join(names)
            table.add_row(*map(cell, own), kind, cell(text))
    console.print(table)
    print_lines(console, [f"conflict: {conflict}" for conflict in conflicts])
    opened = sorted({n for p in plugins for names in p["registered"].values() for n in names if n.endswith(":*")})
    if opened:
        example = opened[0].replace("*", "NAME")
        console.print(
            f"\n{', '.join(opened)} stand for every name of that library, such as {example}. "
            "`posthoc-inn plugins --names backbone` lists them all.",
            markup=False,
            highlight=False,
        )
