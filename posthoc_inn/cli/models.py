"""Finds the model that the options name, and where it runs; heavy parts are imported where they are needed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from posthoc_inn.config import ImageSpec
from posthoc_inn.errors import ConfigError, LayerNotFoundError, PluginError, PosthocInnError
from posthoc_inn.plugins import PluginManager

if TYPE_CHECKING:
    import torch
    from torch import nn

    from posthoc_inn.autoencoders import Autoencoder

DEFAULT_BACKBONE, FALLBACK_BACKBONE = "squeezenet1_1", "small_cnn"
DEFAULT_LAYERS = {"squeezenet1_1": "features.11", "small_cnn": "stage3"}
TRAIN, NONE = "train", "none"
"""Values of --weights that are no names of weights."""


@dataclass
class Model:
    """The model to be explained.

    Attributes:
        module: In eval mode.
        spec: How it wants canonical images.
        name: As asked for.
        notes: What a user has to know.
        origin: Plain data for the bundle, so that `sample` can rebuild it.
    """

    module: nn.Module
    spec: ImageSpec
    name: str
    notes: list[str] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)


def default_backbone(manager: PluginManager) -> str:
    """Return the network of the embedded example: SqueezeNet 1.1 where its plugin is installed."""
    try:
        manager.backbones.get(DEFAULT_BACKBONE)
    except PosthocInnError:
        return FALLBACK_BACKBONE
    return DEFAULT_BACKBONE


def layers_worth_looking_at(manager: PluginManager, backbone: str) -> str:
    """Return advice about layers, for an error message."""
    layers = manager.backbones.get(backbone).metadata.get("layers") or ()
    listed = f"Worth looking at: {', '.join(layers)}. " if layers else ""
    return f"{listed}All of them: posthoc-inn layers --backbone {backbone}"


InputSize: TypeAlias = int | Sequence[int]
"""Side of a square, or height and width."""


def sides_of(size: InputSize | None) -> tuple[int, int] | None:
    """Return height and width.

    >>> sides_of(224), sides_of([64, 128]), sides_of(None)
    ((224, 224), (64, 128), None)
    """
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def reading_shape(spec: ImageSpec | None, image_size: int | None = None) -> tuple[int, int] | None:
    """Return the height and width at which files are read for a model with `spec`, its central crop's margin included.

    A file that covers them shows the model the pixels that `spec` would show it of the file itself.

    Args:
        spec: How the model wants its images.
        image_size: Side of the autoencoder's images: the shorter side is no smaller.

    Returns:
        None for a model that takes what it gets.

    >>> from posthoc_inn.config import ImageSpec
    >>> reading_shape(ImageSpec(size=(32, 64), crop=0.5), 128)
    (128, 256)
    """
    from posthoc_inn.images.spec import cover_of

    cover = None if spec is None else cover_of(spec)
    if cover is None:
        return None
    larger = max(1.0, (image_size or 0) / min(cover))
    return round(cover[0] * larger), round(cover[1] * larger)


def backbone_spec(
    manager: PluginManager,
    name: str,
    weights: str | None,
    *,
    input_size: InputSize | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> ImageSpec:
    """Return how a backbone wants its images, with what the options change."""
    named = None if weights in (TRAIN, NONE) else weights
    spec = manager.image_spec(name, weights=named, image_size=sides_of(input_size)) or ImageSpec()
    return _normalised(spec, mean, std)


def own_spec(
    *, input_size: InputSize | None, mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> ImageSpec:
    """Return how a model of the user's own, or one that is trained here, gets its images."""
    size = sides_of(input_size)
    return _normalised(ImageSpec(size=size, channels=channels), mean, std)


def _normalised(spec: ImageSpec, mean: Sequence[float] | None, std: Sequence[float] | None) -> ImageSpec:
    if mean is None or std is None:
        return spec
    return spec.replace(mean=tuple(mean), std=tuple(std))


def import_factory(text: str, option: str = "--model") -> nn.Module:
    """Import PACKAGE.MODULE:FACTORY, from the current directory too, call it, and return the model in eval mode.

    Raises:
        ConfigError: It cannot be imported or called, or gives no torch.nn.Module.
    """
    from torch import nn

    made, called = _made(text, option)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{option} {text}: {called} a {type(made).__name__}, not a torch.nn.Module.")
    return made.eval()


def import_autoencoder(text: str) -> Autoencoder:
    """Import PACKAGE.MODULE:FACTORY as `import_factory` does, and return the trained autoencoder in eval mode.

    Raises:
        ConfigError: It cannot be imported or called, or gives nothing that can serve as an autoencoder.
    """
    from posthoc_inn.autoencoders import as_autoencoder

    made, called = _made(text, "--autoencoder")
    try:
        return as_autoencoder(made).eval()
    except PosthocInnError as error:
        raise ConfigError(f"--autoencoder {text}: {called} a {type(made).__name__}. {error}") from error


def means_import(manager: PluginManager, autoencoder: str) -> bool:
    """Say whether a value of --autoencoder is PACKAGE.MODULE:FACTORY, not a directory or a registered PREFIX:NAME."""
    prefix, colon, path = autoencoder.partition(":")
    registry = manager.autoencoders
    is_prefix = prefix in registry.prefixes() or any(prefix in absent.prefixes for absent in registry.absent)
    return bool(colon and prefix and path) and not is_prefix and not set("/\\") & set(autoencoder)


def _made(text: str, option: str) -> tuple[Any, str]:
    """Import what an option names; where it is no module, call it. Return it, and how it was come by, in words."""
    from torch import nn

    module_name, _, path = text.partition(":")
    if not module_name or not path:
        raise ConfigError(f"{option} takes PACKAGE.MODULE:FACTORY, got {text!r}.")
    # Left there: a model may import more of the user's code when it is first called.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"{option} {text}: {module_name} cannot be imported ({type(error).__name__}: {error}). It is looked "
            "for in "
            "the installed packages and in the current directory."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            public = [n for n in vars(found) if not n.startswith("_")] if hasattr(found, "__dict__") else []
            from posthoc_inn.errors import suggest

            raise ConfigError(f"{option} {text}: {module_name} has no {path!r}. {suggest(path, public)}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return found, f"{path} is"
    if not callable(found):
        raise ConfigError(f"{option} {text}: {path} is a {type(found).__name__}; a function or class is needed.")
    try:
        return found(), f"{path}() returned"
    except Exception as error:
        raise ConfigError(
            f"{option} {text}: calling {path}() raised {type(error).__name__}: {error}. It is called without arguments."
        ) from error


def build_model(
    manager: PluginManager,
    *,
    backbone: str | None,
    model: str | None,
    weights: str | None,
    num_classes: int | None,
) -> nn.Module:
    """Build the model that the options name, in eval mode.

    Raises:
        PosthocInnError: It cannot be built, or the weights cannot be loaded.
    """
    if model is not None:
        built = import_factory(model)
        if weights not in (None, NONE, TRAIN):
            from posthoc_inn.weights import is_weights_file, load_weights

            if not is_weights_file(str(weights)) and not Path(str(weights)).is_file():
                raise ConfigError(f"--weights of --model must be a local file, none or train, got {weights!r}.")
            load_weights(built, str(weights))
        return built
    if backbone is None:
        raise PluginError("No model was named: give --backbone or --model.")
    named = None if weights in (None, NONE, TRAIN) else weights
    return manager.build_backbone(backbone, weights=named, num_classes=num_classes)


def channels_of(model: nn.Module) -> int | None:
    """Return the channels that a model's first convolution takes, 1 or 3; None where there is no such one."""
    from torch import nn

    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3) else None


def missing_layer(error: LayerNotFoundError, command: str) -> LayerNotFoundError:
    """Return the same error with the command line's way of listing layers."""
    text = str(error).replace("list_layers(model, inputs) shows all of them.", f"{command} shows all of them.")
    return LayerNotFoundError(text)


def open_device(name: str) -> torch.device:
    """Return the device, after using it once.

    Raises:
        ConfigError: It is not there.
    """
    import torch

    from posthoc_inn.training.precision import choose_device

    try:
        device = choose_device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
