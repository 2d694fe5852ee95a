"""What the commands that ask a fitted bundle share: their options, loading, reading images, writing the picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc_inn.cli.options import options
from posthoc_inn.errors import DataError, shown
from posthoc_inn.files import replace_file, writing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from posthoc_inn.bundle import Bundle
    from posthoc_inn.interpreter import Interpreter

MAX_ROWS = 50
"""Images a picture shows at the most, a row each."""


def bundle_of(path: Path) -> Path:
    """Return the bundle of a run's directory, or `path` itself."""
    return path / "bundle" if (path / "bundle").is_dir() else path


def bundle_options(command: Any) -> Any:
    """Add the options of every command that asks a fitted bundle."""
    return options(
        click.option(
            "--bundle", type=click.Path(path_type=Path), required=True, help="What fit wrote: a bundle, or a run."
        ),
    )(options_of_a_model(command))


def options_of_a_model(command: Any) -> Any:
    """Add those of them that say how the model is built, and how to answer."""
    return options(
        click.option(
            "--model",
            metavar="PACKAGE.MODULE:FACTORY",
            help="Your own model, when the bundle was fitted to one: a bundle never names code to import.",
        ),
        click.option("--weights", metavar="FILE|NAME", help="The model's weights, when the bundle does not hold them."),
        click.option(
            "--autoencoder",
            metavar="PACKAGE.MODULE:FACTORY",
            help="Your own autoencoder, when the bundle was fitted with one.",
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    )(command)


def load(
    path: Path, model: str | None, weights: str | None, device: str, autoencoder: str | None
) -> tuple[Interpreter, Bundle]:
    """Load a bundle, or that of a run, and rebuild the model it was fitted to.

    Raises:
        ConfigError: The model or the autoencoder cannot be imported.
        BundleError: The bundle is damaged, or for another model.
        DataError: The model cannot be rebuilt from what the bundle tells.
    """
    from posthoc_inn.bundle import load_bundle
    from posthoc_inn.cli.models import import_autoencoder, open_device
    from posthoc_inn.interpreter import Interpreter

    where = bundle_of(path)
    own = None if autoencoder is None else import_autoencoder(autoencoder)
    stored = load_bundle(where, autoencoder=own)
    module = rebuild(stored, where, model, weights)
    if device != "auto":
        module.to(open_device(device))
    return Interpreter.load(where, model=module, autoencoder=own, device=device), stored


def rebuild(stored: Bundle, where: Path, model: str | None, weights: str | None) -> nn.Module:
    """Build the explained model from a bundle's origin (a registered name, never code) or from what is given."""
    from posthoc_inn.bundle.backbone import rebuild_backbone
    from posthoc_inn.cli.models import build_model
    from posthoc_inn.plugins import get_plugin_manager

    origin = stored.origin
    if model is not None:
        built = build_model(get_plugin_manager(), backbone=None, model=model, weights=weights, num_classes=None)
        return built.eval()
    if not isinstance(origin.get("backbone"), str):
        was = origin.get("model")
        told = f" ({shown(was, 80)})" if isinstance(was, str) and was != "None" else ""
        raise DataError(
            f"The bundle {where} was fitted to a model of your own{told}. Pass it: --model PACKAGE.MODULE:FACTORY, and "
            "--weights FILE where the factory does not load them."
        )
    return rebuild_backbone(stored, where, weights)


def listed_images(files: list[Path]) -> list[Path]:
    """Return image files, those in folders included.

    Raises:
        DataError: They are more than a picture shows, or a folder holds none.
    """
    from posthoc_inn.images import find_image_files

    paths = [f for file in files for f in (find_image_files(file) if file.is_dir() else [file])]
    if len(paths) > MAX_ROWS:
        raise DataError(f"A grid takes up to {MAX_ROWS} images, got {len(paths)}; pass fewer.")
    return paths


def read_images(stored: Bundle, paths: list[Path]) -> Tensor:
    """Return images from files as the bundle's interpreter takes them, (B, C, H, W)."""
    from posthoc_inn.images import apply_spec, stack_image_files

    adapter = stored.adapter
    images = stack_image_files(list(paths), shape_of(stored), channels=adapter.channels)
    return images if adapter.normalization is None else apply_spec(images, adapter.spec)


def shape_of(stored: Bundle) -> tuple[int, int]:
    """Return the height and width at which files are read: what the model or the autoencoder needs, the larger one."""
    from posthoc_inn.cli.models import reading_shape

    size = stored.adapter.image_size
    return reading_shape(stored.adapter.spec, size) or (size, size)


def write_picture(out: Path, png: bytes) -> None:
    """Write a picture.

    Raises:
        DataError: It cannot be written.
    """
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, png)
