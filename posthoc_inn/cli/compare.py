"""`posthoc-inn compare`: what several fitted models make of groups of images, to an independent judge."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc_inn.cli.echo import echo
from posthoc_inn.errors import Problems, listed

if TYPE_CHECKING:
    from torch import Tensor

    from posthoc_inn.analysis.groups import Judge
    from posthoc_inn.bundle import Bundle
    from posthoc_inn.pipeline import Pipeline


@click.command("compare")
@click.option(
    "--bundle", "bundles", type=click.Path(path_type=Path), multiple=True, help="What fit wrote; one for each model."
)
@click.option("--group", "groups", metavar="NAME=FOLDER", multiple=True, help="A group of images; can be repeated.")
@click.option(
    "--judge",
    metavar="NAME|PACKAGE.MODULE:FACTORY",
    help="The independent classifier: a registered network, or your own, which gets its images in [0, 1].",
)
@click.option("--judge-weights", metavar="FILE|NAME", help="Its weights.")
@click.option("--model", "models", metavar="PACKAGE.MODULE:FACTORY", multiple=True, help="As in sample: one a bundle.")
@click.option("--weights", metavar="FILE|NAME", multiple=True, help="As in sample: one a bundle.")
@click.option("--images", "count", type=click.IntRange(min=2), default=100, show_default=True, help="Of each group.")
@click.option("-n", "samples", type=click.IntRange(min=1), default=8, show_default=True, help="Samples of each image.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("comparison"), show_default=True, help="Directory to write."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundles: tuple[Path, ...],
    groups: tuple[str, ...],
    judge: str | None,
    judge_weights: str | None,
    models: tuple[str, ...],
    weights: tuple[str, ...],
    count: int,
    samples: int,
    out: Path,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Compare what fitted models make of groups of images: photographs, the same stylised, drawings, another domain.

    Draws samples from each model's representation, and lets an independent classifier say whether they still show
    the image's class. A model that goes by texture loses it where texture is changed (texture bias).

    \b
    posthoc-inn compare --bundle runs/a --bundle runs/b --group photos=photos/ --group drawn=drawn/ --judge resnet50
    """  # noqa: D301 (click reads a real \b)
    from posthoc_inn.cli.options import device_option

    problems = Problems("posthoc-inn compare")
    problems.check(bool(bundles), "--bundle is missing: what fit wrote, once for each model")
    problems.check(bool(groups), "--group is missing: NAME=FOLDER, once for each group of images")
    problems.check(judge is not None, "--judge is missing: a classifier that has no part in the models")
    pairs = [group.partition("=") for group in groups]
    for given, (name, sign, folder) in zip(groups, pairs, strict=True):
        problems.check(bool(name and sign and folder), f"--group takes NAME=FOLDER, got {given!r}")
        problems.check(not folder or Path(folder).is_dir(), f"--group {name}: there is no folder {folder}")
    names = [name for name, _, _ in pairs]
    problems.check(len(set(names)) == len(names), f"each group needs a name of its own, got {listed(names)}")
    for option, values in (("--model", models), ("--weights", weights)):
        problems.check(
            len(values) in (0, 1, len(bundles)),
            f"{option} is given once, for all bundles, or once for each of the {len(bundles)}, got {len(values)}",
        )
    wrong = device_option(device)
    problems.check(wrong is None, wrong or "")
    problems.raise_if_any()

    from posthoc_inn import __version__
    from posthoc_inn.analysis import compare_groups
    from posthoc_inn.report.analyses import section_of, write_analyses

    fitted, shape, channels = _load(bundles, models, weights, device)
    classifier = open_judge(str(judge), judge_weights)
    images = {name: _read(Path(folder), shape, channels, count, seed) for name, _, folder in pairs}
    started = time.perf_counter()
    result = compare_groups(fitted, images, classifier, samples=samples, seed=seed, shown=min(3, count))
    section = section_of("Groups of images", result, time.perf_counter() - started)
    lead = [f"Judge: {judge}. " + "; ".join(f"{name}: {folder}" for name, _, folder in pairs) + "."]
    page, plain = write_analyses("What models make of groups of images", lead, [section], out, __version__)
    if as_json:
        echo(plain.read_text().rstrip())
        return
    for part in result.parts:
        echo(
            f"{part.name:40} {100 * part.kept:5.1f} ± {100 * part.kept_error:.1f} % of samples keep the image's class "
            f"(chance {100 * part.kept_by_chance:.0f} %, {part.images} images)"
        )
    echo(f"report    {page}   (open it in a browser)\nfigures   {plain}")


def _load(
    bundles: Sequence[Path], models: Sequence[str], weights: Sequence[str], device: str
) -> tuple[dict[str, Pipeline], tuple[int, int], int]:
    """Return the fitted parts by name, height and width at which files are read for all of them, and their channels.

    Raises:
        DataError: They look at images of different ratios of sides.
        PosthocInnError: A bundle cannot be loaded.
    """
    from posthoc_inn.cli.bundles import load, shape_of
    from posthoc_inn.errors import DataError
    from posthoc_inn.images.adapter import ASPECT

    fitted: dict[str, Pipeline] = {}
    stored: list[Bundle] = []
    each = [[*values] * len(bundles) if len(values) == 1 else [*values] for values in (models, weights)]
    for k, bundle in enumerate(bundles):
        model, state = (values[k] if values else None for values in each)
        interpreter, found = load(bundle, model, state, device, None)
        stored.append(found)
        fitted[_name(bundle, fitted)] = interpreter.pipeline
    shapes = [shape_of(one) for one in stored]
    ratios = [width / height for height, width in shapes]
    if max(ratios) > min(ratios) * (1 + ASPECT):
        told = ", ".join(f"{name} {height} x {width}" for name, (height, width) in zip(fitted, shapes, strict=True))
        raise DataError(
            f"The models look at images of different ratios of sides ({told} pixels): the same files cannot be shown "
            "to all of them uncut. Compare those of one ratio."
        )
    return fitted, max(shapes), max(one.adapter.channels for one in stored)


def _name(bundle: Path, taken: dict[str, Any]) -> str:
    """Return what a model is called: its run's directory, with a number where that is taken."""
    where = bundle.resolve()
    name = where.parent.name if where.name == "bundle" else where.name
    number = 2
    while (name if number == 2 else f"{name} {number - 1}") in taken:
        number += 1
    return name if number == 2 else f"{name} {number - 1}"


def open_judge(name: str, weights: str | None) -> Judge:
    """Return a classifier of canonical pictures, in eval mode: a registered network, or the user's own.

    Raises:
        PosthocInnError: It cannot be built, imported or loaded.
    """
    import torch

    from posthoc_inn.cli.models import (
        NONE,
        backbone_spec,
        build_model,
        channels_of,
        import_factory,
        means_import,
        own_spec,
    )
    from posthoc_inn.errors import ConfigError
    from posthoc_inn.images import apply_spec
    from posthoc_inn.plugins import get_plugin_manager
    from posthoc_inn.weights import load_weights

    manager = get_plugin_manager()
    is_own = means_import(manager, name) and name not in manager.backbones
    if not is_own and weights is None:
        raise ConfigError(f"--judge {name} needs --judge-weights: a file, or the name of published weights.")
    if weights == NONE:
        raise ConfigError("--judge-weights none: a judge with random weights judges nothing.")
    if is_own:
        network = import_factory(name, "--judge")
        if weights is not None:
            load_weights(network, weights)
    else:
        network = build_model(manager, backbone=name, model=None, weights=weights, num_classes=None)
    network.eval()
    spec = (
        own_spec(input_size=None, mean=None, std=None, channels=channels_of(network) or 3)
        if is_own
        else backbone_spec(manager, name, weights, input_size=None, mean=None, std=None)
    )

    def judge(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            answer: Tensor = network(apply_spec(pictures, spec))
            return answer

    return judge


def _read(folder: Path, shape: tuple[int, int], channels: int, count: int, seed: int) -> Tensor:
    """Return up to `count` images below a folder, chosen at random, (B, C, *shape) in [0, 1].

    Raises:
        DataError: There are none, or they cannot be read.
    """
    from posthoc_inn.images import find_image_files, stack_image_files
    from posthoc_inn.images.splitting import some_places

    files = find_image_files(folder)
    chosen = [files[int(k)] for k in some_places(len(files), count, seed=seed)]
    return stack_image_files(chosen, shape, channels=channels)
