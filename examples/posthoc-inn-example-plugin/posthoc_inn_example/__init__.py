"""The plugin's hooks. This module is imported whenever posthoc-inn starts, so it imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc_inn import hookimpl
from posthoc_inn.config import ImageSpec
from posthoc_inn.plugins.hookspecs import FitEvent, Register

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset


def _stripe_net(*, weights: str | None, num_classes: int | None) -> nn.Module:
    from posthoc_inn_example.backbone import build_stripe_net

    return build_stripe_net(weights=weights, num_classes=num_classes)


def _stripes(root: str | None, *, train: bool, seed: int, count: int = 2000) -> Dataset[Any]:
    from posthoc_inn_example.dataset import Stripes

    return Stripes(count if train else max(1, count // 4), train=train, seed=seed)


@hookimpl
def register_backbones(register: Register[nn.Module]) -> None:
    register(
        "stripe-net",
        _stripe_net,
        spec=ImageSpec(size=(28, 28), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        layers=["features.1", "features.3", "head"],
        licence="MIT",
        description="two convolutions that tell how stripes lie",
    )


@hookimpl
def register_datasets(register: Register[Dataset[Any]]) -> None:
    register(
        "stripes",
        _stripes,
        image_size=28,
        channels=3,
        classes=["-", "/", "|", "\\"],
        needs_dir=False,
        fixed_split=False,
        attribute_names=["orientation", "color"],
        options={"count": "training images; a quarter as many are held out (2000)"},
        licence="MIT",
        description="coloured stripes in four orientations, drawn when asked for",
    )


@hookimpl
def register_commands(cli: click.Group) -> None:
    from posthoc_inn_example.commands import stripes

    cli.add_command(stripes)


@hookimpl
def fit_stage_finished(event: FitEvent) -> None:
    if event.out is not None:
        with Path(event.out, "stages.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": event.stage, **event.info}, default=str) + "\n")
