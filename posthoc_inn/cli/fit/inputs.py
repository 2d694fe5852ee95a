"""Opens what the options of `fit` name: images, model, autoencoder, device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posthoc_inn.autoencoders import Autoencoder, as_autoencoder
from posthoc_inn.bundle import load_bundle
from posthoc_inn.cli.autoencoders import chosen_autoencoder
from posthoc_inn.cli.bundles import bundle_of
from posthoc_inn.cli.data import Images, drawn_images, draws_wanted, folder_images, is_folder, registered_images
from posthoc_inn.cli.fit.options import Choice, FitOptions
from posthoc_inn.cli.models import (
    NONE,
    TRAIN,
    Model,
    backbone_spec,
    build_model,
    channels_of,
    import_autoencoder,
    means_import,
    own_spec,
    reading_shape,
    sides_of,
)
from posthoc_inn.concepts.model import LONGEST_NAME
from posthoc_inn.config import AutoencoderConfig, FitConfig, ImageSpec
from posthoc_inn.errors import ConfigError
from posthoc_inn.images import BatchSource
from posthoc_inn.names import encodable
from posthoc_inn.plugins import PluginManager


def given_autoencoder(options: FitOptions, manager: PluginManager) -> Autoencoder | None:
    """Return the trained autoencoder that --autoencoder names, of a bundle or the user's own; None where it has none.

    Raises:
        PosthocInnError: It cannot be loaded, or imported.
    """
    if options.autoencoder is None:
        return None
    path = Path(options.autoencoder)
    if path.is_dir():
        return as_autoencoder(load_bundle(bundle_of(path)).autoencoder)
    return import_autoencoder(options.autoencoder) if means_import(manager, options.autoencoder) else None


def told_of_autoencoder(options: FitOptions, manager: PluginManager) -> dict[str, str]:
    """Return what a bundle tells of the user's own autoencoder, for messages: it is never imported from there."""
    name = options.autoencoder
    is_own = name is not None and not Path(name).is_dir() and means_import(manager, name)
    return {"autoencoder": str(name)} if is_own else {}


def open_images(
    options: FitOptions,
    data: str,
    draws: int | None,
    manager: PluginManager,
    spec: ImageSpec | None,
    given: Autoencoder | None,
) -> Images:
    """Open the folder or data set `data`; `spec` is the model's, where it is known already, `given` the autoencoder."""
    if draws_wanted(data) is not None:
        return drawn_images(given, data, seed=options.seed)
    if is_folder(manager, data):
        images = folder_images(
            Path(data),
            size=options.image_size or (None if given is None else given.config.size),
            channels=3,
            held_out=options.held_out,
            seed=options.seed,
            needed=sides_of(options.input_size) or reading_shape(spec),
        )
        images.draws = draws or 1
        return images
    return registered_images(
        manager,
        data,
        options.data_dir,
        seed=options.seed,
        draws=draws,
        options={key: value for key, value in options.data_options},
    )


def open_model(options: FitOptions, choice: Choice, manager: PluginManager, images: Images, channels: int) -> Model:
    """Build the model that was chosen, and say how it gets its images."""
    changed: dict[str, Any] = {"input_size": options.input_size, "mean": options.mean, "std": options.std}
    notes = [*images.notes]
    classes = options.num_classes
    if classes is None and choice.weights == TRAIN and choice.backbone is not None:
        classes = len(images.classes) or None
    module = build_model(
        manager, backbone=choice.backbone, model=options.model, weights=choice.weights, num_classes=classes
    )
    if choice.weights == TRAIN:
        # A network that is trained here gets the images as they are, in [-1, 1].
        spec = own_spec(
            input_size=options.input_size or images.size,
            mean=options.mean or (0.5,),
            std=options.std or (0.5,),
            channels=channels_of(module) or channels,
        )
    elif choice.backbone is not None:
        spec = backbone_spec(manager, choice.backbone, choice.weights, **changed)
    else:
        spec = own_spec(channels=channels_of(module) or channels, **changed)
        if options.mean is None:
            notes.append(
                "Your model gets its images in [0, 1]. If it was trained on normalised ones, stop here and pass --mean "
                "and --std."
            )
    if spec.channels != channels:
        kind = "grey" if spec.channels == 1 else "colour"
        notes.append(f"The model takes {spec.channels} channels: it gets the images in {kind}.")
    if choice.weights == NONE:
        notes.append("The model has random weights, as asked for: what is found says nothing about a trained one.")
    origin = {
        "backbone": choice.backbone,
        "model": options.model,
        **told_of_autoencoder(options, manager),
        "weights": None if choice.weights is None else Path(choice.weights).name,
        "num_classes": classes,
        "data": Path(choice.data).name,
        "classes": [encodable(str(name))[:LONGEST_NAME] for name in images.classes[:1000]],
    }
    return Model(module, spec, choice.backbone or str(options.model), notes, origin)


def open_autoencoder(
    options: FitOptions, given: Autoencoder | None, config: FitConfig, size: int, channels: int
) -> Autoencoder | AutoencoderConfig | None:
    """Return None, a configuration, or the trained autoencoder that was given, once it fits the images.

    Raises:
        ConfigError: It does not.
    """
    if options.autoencoder is None and not options.autoencoder_options:
        return None
    if given is not None:
        own = given.config
        if options.image_size not in (None, own.size) or own.channels != channels:
            raise ConfigError(
                f"The autoencoder of {options.autoencoder} is for {own.size} px and {own.channels} channels; the "
                f"images have {channels} channels"
                + (f" and --image-size is {options.image_size}." if options.image_size else ".")
            )
        return given
    return chosen_autoencoder(options.autoencoder, options.autoencoder_options, config, size, channels, options.seed)


def check_canonical(source: BatchSource, name: str) -> None:
    """Make sure that a data set gives images in [0, 1].

    Raises:
        ConfigError: It does not.
    """
    first = source.first(64)
    low, high = float(first.min()), float(first.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ConfigError(
            f"The data set {name} gives values from {low:.3g} to {high:.3g}; a registered data set gives images in "
            "[0, 1]. "
            "Use the Python API for tensors that are normalised already."
        )
