"""The plugin's hooks, one of each. This module is imported whenever posthoc-inn starts: it imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc_inn import hookimpl
from posthoc_inn.config import AutoencoderConfig, FlowConfig, ImageSpec
from posthoc_inn.plugins.hookspecs import FitEvent, Register

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.data import Dataset

    from posthoc_inn.protocols import ConceptSource

# ---- factories: what is heavy is imported in them, when the thing is really wanted


def _stripe_net(*, weights: str | None, num_classes: int | None) -> nn.Module:
    from posthoc_inn_example.backbone import build_stripe_net

    return build_stripe_net(weights=weights, num_classes=num_classes)


def _stripes(root: str | None, *, train: bool, seed: int, count: int = 2000) -> Dataset[Any]:
    from posthoc_inn_example.dataset import Stripes

    return Stripes(count if train else max(1, count // 4), train=train, seed=seed)


def _linear(config: AutoencoderConfig) -> nn.Module:
    from posthoc_inn_example.autoencoder import LinearAutoencoder

    return LinearAutoencoder(config)


def _additive(config: FlowConfig, index: int, *, generator: torch.Generator) -> nn.Module:
    from posthoc_inn_example.coupling import AdditiveCoupling

    return AdditiveCoupling(config, index, generator=generator)


def _same_color(data: Dataset[Any], *, seed: int, neighbors: int = 4) -> ConceptSource:
    from posthoc_inn_example.color import SameColor

    return SameColor(data, neighbors=neighbors)


def _color_distance() -> Callable[[Tensor, Tensor], Tensor]:
    from posthoc_inn_example.color import color_distance

    return color_distance


def _color_kept() -> Any:
    from posthoc_inn_example.color import color_kept

    return color_kept


# ---- hooks: names for the factories, and what is known of them beforehand


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
def register_autoencoders(register: Register[nn.Module]) -> None:
    register("linear", _linear, licence="MIT", description="one matrix in, one out")


@hookimpl
def register_flows(register: Register[nn.Module]) -> None:
    register(
        "additive", _additive, licence="MIT", reference="NICE (ICLR workshop 2015)", description="shifts, no scales"
    )


@hookimpl
def register_concept_sources(register: Register[ConceptSource]) -> None:
    register(
        "same-color",
        _same_color,
        options={"neighbors": "how many of the images nearest in colour count as sharing it (4)"},
        licence="MIT",
        description="pairs of images of much the same mean colour",
    )


@hookimpl
def register_image_metrics(register: Register[Callable[[Tensor, Tensor], Tensor]]) -> None:
    register("color-distance", _color_distance, licence="MIT", description="distance of the mean colours")


@hookimpl
def register_analyses(register: Register[Any]) -> None:
    register(
        "color-kept",
        _color_kept,
        needs=["t"],
        options={"images": "images (32)", "samples": "samples an image (8)"},
        licence="MIT",
        description="whether the layer keeps the mean colour",
    )


@hookimpl
def register_commands(cli: click.Group) -> None:
    from posthoc_inn_example.commands import stripes

    cli.add_command(stripes)


# ---- events of a fit: one line of JSON each, beside what the fit writes


def _note(name: str, event: FitEvent) -> None:
    if event.out is not None:
        with Path(event.out, "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": name, "stage": event.stage, **event.info}, default=str) + "\n")


@hookimpl
def fit_started(event: FitEvent) -> None:
    _note("started", event)


@hookimpl
def fit_stage_finished(event: FitEvent) -> None:
    _note("stage finished", event)


@hookimpl
def fit_finished(event: FitEvent) -> None:
    _note("finished", event)


@hookimpl
def fit_failed(event: FitEvent) -> None:
    _note("failed", event)
