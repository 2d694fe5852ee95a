"""`posthoc-inn doctor`: is all here that is needed, and how fast is it?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from posthoc_inn.cli.echo import echo_json

MIN_PYTHON = (3, 11)
MIN_FREE = 5 * 2**30
"""Bytes on disk that a fit on a data set of middling size can need."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        status: "ok", "warn" (works, but) or "broken".
        told: What was found, and what to do about it.
    """

    name: str
    status: Literal["ok", "warn", "broken"]
    told: str


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Check this machine: Python, dependencies, threads, precision, plugins, disk space.

    The exit code is 1 where something is broken.
    """
    checks: list[Check] = []
    for look in (_python, _dependencies, _torch, _precision, _data, _plugins, _disk):
        try:
            checks += look()
        except Exception as error:
            # Whatever a broken installation does, the other checks are still worth having.
            checks.append(Check(look.__name__.strip("_"), "broken", f"{type(error).__name__}: {error}"))
    is_broken = any(check.status == "broken" for check in checks)
    if as_json:
        echo_json({"ok": not is_broken, "checks": [asdict(check) for check in checks]})
    else:
        _show(checks)
    ctx.exit(1 if is_broken else 0)


def _python() -> list[Check]:
    version = platform.python_version()
    if sys.version_info < MIN_PYTHON:
        return [Check("python", "broken", f"{version}; at least {'.'.join(map(str, MIN_PYTHON))} is needed")]
    return [Check("python", "ok", f"{version} on {platform.system()} {platform.machine()}")]


def _dependencies() -> list[Check]:
    try:
        required = importlib.metadata.requires("posthoc-inn") or []
    except importlib.metadata.PackageNotFoundError:
        return [Check("posthoc-inn", "warn", "is imported but not installed: plugins may be missing")]
    checks = [Check("posthoc-inn", "ok", importlib.metadata.version("posthoc-inn"))]
    for line in required:
        if "extra ==" in line:
            continue
        name, minimum = _requirement(line)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, "broken", f"is missing: pip install {name}"))
            continue
        is_old = _numbers(version) < _numbers(minimum)
        told = f"{version} is too old, at least {minimum} is needed: pip install -U {name}" if is_old else version
        checks.append(Check(name, "broken" if is_old else "ok", told))
    return checks


def _requirement(line: str) -> tuple[str, str]:
    """Split "torch>=2.6" into name and least version.

    >>> _requirement("torch>=2.6"), _requirement("rich")
    (('torch', '2.6'), ('rich', '0'))
    """
    name = re.match(r"[A-Za-z0-9._-]+", line)
    minimum = re.search(r">=\s*([0-9.]+)", line)
    return (name.group() if name else line), (minimum.group(1) if minimum else "0")


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else (0,)


def _torch() -> list[Check]:
    import torch

    from posthoc_inn.training.precision import choose_device

    device = choose_device("auto")
    told = f"{device.type}" + (f" ({torch.cuda.get_device_name(0)})" if device.type == "cuda" else "")
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    checks = [Check("device", "ok", told)]
    if cores is not None and threads > cores:
        told = f"{threads} for {cores} cores, which is slower than {cores}: set OMP_NUM_THREADS={cores}"
        checks.append(Check("threads", "warn", told))
    else:
        checks.append(Check("threads", "ok", f"{threads} of {cores} cores"))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if cores is not None and load > 1.25 * cores:
        checks.append(Check("load", "warn", f"{load:.1f} on {cores} cores. Other programs run, so a fit takes longer"))
    return checks


def _precision() -> list[Check]:
    import torch

    from posthoc_inn.training.precision import bf16_gain, choose_device, choose_precision

    gain = bf16_gain()
    chosen = choose_precision("auto", choose_device("auto"))
    a = torch.eye(64)
    if not torch.equal(a @ a, a):
        return [Check("arithmetic", "broken", "a matrix product gives wrong numbers. Install torch anew")]
    return [Check("precision", "ok", f"{chosen}. On this CPU, bf16 products are {gain:.1f} times as fast as fp32")]


def _data() -> list[Check]:
    from posthoc_inn.datasets import ColorDigits

    return [Check("embedded data", "ok", f"{len(ColorDigits()) + len(ColorDigits(train=False)):,} digits")]


def _plugins() -> list[Check]:
    from posthoc_inn.plugins import get_plugin_manager

    manager = get_plugin_manager()
    checks = []
    for plugin in manager.plugins():
        if plugin["entry_point"] == "core":
            continue
        status: Literal["ok", "warn"] = "ok" if plugin["status"] == "loaded" else "warn"
        told = plugin["version"] if plugin["status"] == "loaded" else f"{plugin['status']}. {plugin['error']}".strip()
        checks.append(Check(plugin["distribution"], status, told))
    checks += [Check("names", "warn", conflict) for conflict in manager.conflicts()]
    if not any("torchvision" in check.name for check in checks):
        checks.append(
            Check(
                "posthoc-inn-torchvision",
                "warn",
                "is not installed. The example takes the built-in small_cnn instead of SqueezeNet",
            )
        )
    return checks


def _disk() -> list[Check]:
    checks = []
    places: list[tuple[str, Callable[[], str]]] = [
        ("disk here", os.getcwd),
        ("disk for temporary files", tempfile.gettempdir),
    ]
    for name, place in places:
        where = Path(place())
        free = shutil.disk_usage(where).free
        status: Literal["ok", "warn", "broken"] = "ok" if free >= MIN_FREE else "warn"
        told = f"{free / 2**30:.0f} GiB free in {where}"
        if not os.access(where, os.W_OK):
            status, told = "warn", f"{where} cannot be written. Run fit with an --out elsewhere"
        elif status == "warn":
            told += ". The cache of a large data set may not fit"
        checks.append(Check(name, status, told))
    return checks


def _show(checks: list[Check]) -> None:
    from rich.table import Table

    from posthoc_inn.cli.terminal import cell, out, print_lines

    styles = {"ok": "green", "warn": "yellow", "broken": "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(cell(check.status, styles[check.status]), cell(check.name), cell(check.told))
    console = out()
    console.print(table)
    bad = [check.name for check in checks if check.status == "broken"]
    warned = sum(check.status == "warn" for check in checks)
    ending = f"Broken: {', '.join(bad)}." if bad else "Everything that is needed is here."
    if warned and not bad:
        ending += f" {warned} to look at."
    print_lines(console, ["", ending])
