"""`posthoc-inn layers`: every layer of a model, with the shape of its output and whether it is a true cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from posthoc_inn.cli.echo import echo_json
from posthoc_inn.cli.options import Shape, model_options, options
from posthoc_inn.errors import Problems

if TYPE_CHECKING:
    from posthoc_inn.features import LayerInfo

DEFAULT_SIDE = 224


@click.command("layers")
@model_options(
    with_weights_help="A local file, or the name of published weights (may download); not needed for layers."
)
@options(
    click.option(
        "--input-shape", type=Shape(), help="Shape of one input; the backbone's own unless given, else 3x224x224."
    ),
    click.option("--no-cuts", is_flag=True, help="Do not find out which layers are true cuts (faster)."),
    click.option("--leaves", is_flag=True, help="Only layers without layers inside."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
)
def command(
    backbone: str | None,
    model: str | None,
    weights: str | None,
    num_classes: int | None,
    input_size: int | tuple[int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    input_shape: tuple[int, int, int] | None,
    no_cuts: bool,
    leaves: bool,
    as_json: bool,
) -> None:
    """List a model's layers: the names that --layer takes.

    A layer is a true cut when the image reaches the model's output through it alone.

    \b
    posthoc-inn layers --backbone timm:convnext_tiny
    posthoc-inn layers --model mycode.nets:build --input-shape 1x28x28
    """  # noqa: D301 (click reads a real \b)
    problems = Problems("posthoc-inn layers")
    problems.check(
        (backbone is None) != (model is None), "give --backbone (a registered network) or --model (your own)"
    )
    problems.check(input_shape is None or input_size is None, "give --input-shape or --input-size, not both")
    problems.raise_if_any()

    from posthoc_inn.cli.models import backbone_spec, build_model, sides_of
    from posthoc_inn.plugins import get_plugin_manager

    manager, size = get_plugin_manager(), sides_of(input_size)
    shape = input_shape or (None if size is None else (3, *size))
    if shape is None and backbone is not None:
        spec = backbone_spec(manager, backbone, weights, input_size=None, mean=None, std=None)
        if spec.size is not None:
            shape = (spec.channels, *spec.size)
    shape = shape or (3, DEFAULT_SIDE, DEFAULT_SIDE)
    module = build_model(manager, backbone=backbone, model=model, weights=weights, num_classes=num_classes)
    found = _list(module, shape, not no_cuts)
    if backbone is not None:
        found = _annotated(found, manager.backbones.get(backbone).metadata.get("layers"))
    if leaves:
        inner = {info.name.rpartition(".")[0] for info in found}
        found = [info for info in found if info.name not in inner]
    name = backbone or str(model)
    if as_json:
        rows = [{**vars(info), "shape": None if info.shape is None else list(info.shape)} for info in found]
        echo_json({"model": name, "input_shape": list(shape), "layers": rows})
        return
    _show(name, shape, found)


def _list(module: Any, shape: tuple[int, int, int], check_cuts: bool) -> list[LayerInfo]:
    import torch

    from posthoc_inn.errors import ModelError
    from posthoc_inn.features import list_layers

    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        return list_layers(module, images, check_cuts=check_cuts)
    except ModelError as error:
        raise ModelError(f"{str(error).rstrip('.')}. On the command line: pass --input-shape CxHxW.") from error


def _annotated(found: list[LayerInfo], told: Any) -> list[LayerInfo]:
    """Return the layers with what the network's plugin says of some, before what was found out."""
    if not isinstance(told, Mapping):
        return found
    return [dataclasses.replace(info, note="; ".join(filter(None, (told.get(info.name), info.note)))) for info in found]


def _show(name: str, shape: tuple[int, int, int], found: list[LayerInfo]) -> None:
    from rich.table import Table
    from rich.text import Text

    from posthoc_inn.cli.terminal import cell, out, print_lines

    console = out()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("layer", "type", "output", "cut", "calls"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "calls" else "left")
    table.add_column("note", overflow="fold", ratio=1)
    cuts = {True: Text("yes", style="green"), False: Text("no", style="yellow"), None: Text("?", style="dim")}
    for info in found:
        output = "x".join(map(str, info.shape)) if info.shape else info.output
        table.add_row(
            cell(info.name),
            cell(info.type, "dim"),
            cell(output),
            cuts[info.is_cut],
            str(info.calls),
            cell(info.note),
        )
    console.print(table)
    sizes = "x".join(map(str, shape))
    print_lines(console, ["", f"{name}: {len(found)} layers, for an input of {sizes}. Fit one with --layer NAME."])
