"""Option types and parsers that several commands share; imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from posthoc_inn.config import FitConfig, preset, preset_names

F = TypeVar("F", bound=Callable[..., Any])

DEVICES = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")


if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    # Generic in newer versions of click only.
    ParamType = click.ParamType


class Floats(ParamType):
    """Numbers separated by commas, one a channel.

    >>> Floats().convert("0.5,0.25", None, None)
    (0.5, 0.25)
    """

    name = "number[,number...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse `value`."""
        if isinstance(value, (tuple, list)):
            return tuple(float(v) for v in value)
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(
                f"{value!r} is not a number, or numbers separated by commas (0.5 or 0.485,0.456,0.406)", param, ctx
            )


class Pixels(ParamType):
    """Height and width in pixels, or one number for a square.

    >>> Pixels().convert("64x128", None, None), Pixels().convert("224", None, None)
    ((64, 128), 224)
    """

    name = "PIXELS|HEIGHTxWIDTH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, int]:
        """Parse `value`."""
        parts = list(value) if isinstance(value, (tuple, list)) else str(value).lower().replace(",", "x").split("x")
        try:
            sides = [int(part) for part in parts]
        except ValueError:
            sides = []
        if len(sides) not in (1, 2) or min(sides) < 1:
            self.fail(f"{value!r} is no size in pixels (224, or height and width: 64x128)", param, ctx)
        return sides[0] if len(sides) == 1 else (sides[0], sides[1])


class Shape(ParamType):
    """Channels, height and width: 3x224x224, or one number for square colour images.

    >>> Shape().convert("1x28x28", None, None), Shape().convert("224", None, None)
    ((1, 28, 28), (3, 224, 224))
    """

    name = "CxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        """Parse `value`."""
        if isinstance(value, tuple):
            return value
        parts = re.split(r"[x,]", str(value).lower())
        if not all(part.isdigit() and int(part) > 0 for part in parts) or len(parts) not in (1, 3):
            self.fail(f"{value!r} is not a shape such as 3x224x224, or a size such as 224", param, ctx)
        sizes = [int(part) for part in parts]
        return (3, sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1], sizes[2])


class KeyValue(ParamType):
    """KEY=VALUE, the value read as a number or as true/false where it is one.

    >>> KeyValue().convert("size=64", None, None), KeyValue().convert("download=true", None, None)
    (('size', 64), ('download', True))
    """

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Parse `value`."""
        if isinstance(value, (tuple, list)):
            return str(value[0]), value[1]
        key, equals, text = str(value).partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        if text.lower() in ("true", "false"):
            return key, text.lower() == "true"
        for kind in (int, float):
            try:
                return key, kind(text)
            except ValueError:
                continue
        return key, text


def options(*decorators: Callable[[Any], Any]) -> Callable[[F], F]:
    """Apply several click options, so that they are shown in the order given."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def model_options(*, with_weights_help: str) -> Callable[[F], F]:
    """Return the options that choose the model to be explained."""
    return options(
        click.option(
            "--backbone",
            metavar="NAME",
            help="A registered network: squeezenet1_1, timm:NAME, ... (`posthoc-inn plugins` lists them).",
        ),
        click.option(
            "--model",
            metavar="PACKAGE.MODULE:FACTORY",
            help="Your own: a function (or class) without "
            "arguments that returns a torch.nn.Module; imported from the current directory too.",
        ),
        click.option("--weights", metavar="FILE|NAME", help=with_weights_help),
        click.option(
            "--num-classes",
            type=click.IntRange(min=1),
            help="Outputs of the backbone, where they cannot be told from weights or data.",
        ),
        click.option(
            "--input-size",
            type=Pixels(),
            help="Height and width at which the model gets its images (such as 64x128); the backbone's own by default.",
        ),
        click.option("--mean", type=Floats(), help="Mean the model's images are normalised with, in units of [0, 1]."),
        click.option("--std", type=Floats(), help="Deviation they are normalised with."),
    )


def data_options(command: F) -> F:
    """Add the options that choose images and concepts."""
    return options(
        click.option(
            "--data",
            metavar="NAME|FOLDER|draws:N",
            help="A registered data set, a folder of images, or N pictures of the generator that --autoencoder names.",
        ),
        click.option("--data-dir", type=click.Path(), help="Directory the data set is read from."),
        click.option(
            "--data-option",
            "data_options",
            type=KeyValue(),
            multiple=True,
            help="An option of the data set; can be repeated.",
        ),
        click.option(
            "--held-out",
            metavar="SHARE|FOLDER",
            help="For a folder: the share kept aside (0.1), or a folder of other images.",
        ),
        click.option(
            "--concepts",
            metavar="WHAT",
            help="Learn these concepts too (e): labels, attributes, names of the "
            "data set's attributes (digit,background), a table (.csv), or a registered source.",
        ),
        click.option(
            "--concept-option",
            "concept_options",
            type=KeyValue(),
            multiple=True,
            help="An option of a table (columns=a,b) or a registered source; can be repeated.",
        ),
    )(command)


def chosen_preset(name: str, code_noise: float, faithful: float | None) -> FitConfig:
    """Return the preset that was chosen, with what other options change of it.

    >>> chosen_preset("default", 0.1, None).code_noise
    0.1
    """
    config = preset(name).replace(code_noise=code_noise)
    return config if faithful is None else config.replace(faithful=faithful, map_faithful=None)


def training_options(command: F) -> F:
    """Add the options that say how everything is trained, and where."""
    return options(
        click.option("--draws", type=click.IntRange(min=1), help="Passes over randomly augmented data, each other."),
        click.option(
            "--prediction-kind",
            type=click.Choice(["auto", "classes", "multilabel", "embedding", "none"]),
            default="auto",
            show_default=True,
            help="What the model gives, and so what is compared for samples and images; auto recognises it.",
        ),
        click.option(
            "--autoencoder",
            metavar="NAME|BUNDLE|PACKAGE.MODULE:FACTORY",
            help="A registered one, a bundle to share the autoencoder of, or a trained one of your own, imported as "
            "--model is.",
        ),
        click.option(
            "--autoencoder-option",
            "autoencoder_options",
            type=KeyValue(),
            multiple=True,
            help="An option of a registered autoencoder that is to be trained (latent_channels=8); can be repeated.",
        ),
        click.option("--preset", type=click.Choice(preset_names()), help="Sizes and steps of everything."),
        click.option(
            "--image-size",
            type=click.IntRange(min=8),
            metavar="PIXELS",
            help="Side of the autoencoder's images: 28, 32, 64 or 128 for conv, any multiple of 8 for residual; chosen "
            "from the data unless given.",
        ),
        click.option("--epochs", type=click.FloatRange(min=0, min_open=True), help="Passes of t over the data."),
        click.option("--steps", type=click.IntRange(min=1), help="Steps of t."),
        click.option("--autoencoder-steps", type=click.IntRange(min=1), help="Steps of the autoencoder."),
        click.option("--concept-steps", type=click.IntRange(min=1), help="Steps of e, with --concepts."),
        click.option(
            "--code-noise",
            type=click.FloatRange(0, 1),
            default=0.0,
            show_default=True,
            metavar="SHARE",
            help="Noise added to codes before t sees them, of each channel's deviation; samples are decoded with it.",
        ),
        click.option(
            "--faithful",
            type=click.FloatRange(0, 100),
            default=None,
            metavar="SHARE",
            help="Train t further by what the model sees of its samples, for this share of its steps; 0 for not.  "
            "[default: the preset's]",
        ),
        click.option(
            "--image-metric",
            "image_metrics",
            metavar="NAME",
            multiple=True,
            help="Measure reconstructions by this registered image metric too; can be repeated.",
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
        click.option(
            "--precision",
            type=click.Choice(["auto", "32", "bf16"]),
            default="auto",
            show_default=True,
            help="auto measures which is faster here.",
        ),
        click.option(
            "--threads", type=click.IntRange(min=1), help="Threads on the CPU; 1 makes runs equal to the bit."
        ),
    )(command)


def device_option(value: str) -> str | None:
    """Return what is wrong with a device's name, or None."""
    if DEVICES.fullmatch(value):
        return None
    return f"--device must be auto, cpu, cuda, cuda:N, xpu or mps, got {value!r}"
