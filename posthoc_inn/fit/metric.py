"""The image metric that an autoencoder is trained by, besides squared error: its network, layers and inputs."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from posthoc_inn.analysis.image_metrics import check_image_metrics
from posthoc_inn.autoencoders import Autoencoder, GaussianAutoencoder
from posthoc_inn.config import AutoencoderConfig, ImageSpec
from posthoc_inn.errors import (
    ConfigError,
    LayerNotFoundError,
    PosthocInnWarning,
    Problems,
    UnknownNameError,
    suggest,
)
from posthoc_inn.features import LayerExtractor
from posthoc_inn.images import InputAdapter, apply_spec, resize
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.training.metric_distance import MetricDistance
from posthoc_inn.training.operations import operations
from posthoc_inn.training.perceptual import FeatureDistance, Prepare, choose_layers, copied

Distance = FeatureDistance | MetricDistance
"""What pictures can be compared by in training."""

MODEL = "model"
"""What `AutoencoderConfig.perceptual` calls the explained model."""
AUTO = "auto"
"""The same where its features can be trained by, and nothing elsewhere."""
COST, MOST = 0.5, 0.25
"""What the distance may cost, as a share of what the autoencoder does in a step; the largest share of a batch."""
PARTS = 64
"""Shares of a batch are multiples of one part of so many."""
LEAST_SEEN, ENLARGED = 64, 3
"""Pixels that a registered backbone sees at least, by enlarging images this many times at the most."""


def without_directory(config: AutoencoderConfig) -> AutoencoderConfig:
    """Return the configuration as a bundle keeps it: of a file of weights the name, not where it lies.

    >>> without_directory(AutoencoderConfig(perceptual="vgg", perceptual_weights="/home/me/vgg.pth")).perceptual_weights
    'vgg.pth'
    """
    return config.replace(perceptual_weights=Path(config.perceptual_weights).name)


def check_trainable(autoencoder: Autoencoder, config: AutoencoderConfig) -> None:
    """Check that an autoencoder can be trained by what its configuration asks for.

    Raises:
        ConfigError: It takes no image metric.
    """
    asked = [name for name in ("perceptual", "discriminator") if getattr(config, name) not in ("", 0, AUTO)]
    if asked and not isinstance(autoencoder, GaussianAutoencoder):
        raise ConfigError(
            f"Autoencoders of the kind {config.kind!r} are trained by a loss of their own: leave out "
            f"{' and '.join(asked)}, or take kind='residual', 'conv' or 'msc'."
        )


def settled(
    config: AutoencoderConfig,
    autoencoder: Autoencoder,
    extractor: LayerExtractor,
    adapter: InputAdapter,
    device: torch.device,
) -> tuple[AutoencoderConfig, Distance | None, str]:
    """Return the configuration with nothing about the image metric left open, the metric, and why there is none.

    Args:
        config: What is asked for.
        autoencoder: What it makes, whose work is counted; only its shape matters.
        extractor: Of the explained model.
        adapter: Makes what the model gets from pictures.
        device: Where everything runs.

    Returns:
        The configuration; the metric, or None; the reason, "" where there is a metric, and where none was asked for.

    Raises:
        PosthocInnError: A network that is named cannot compare pictures.
    """
    is_open = config.perceptual == AUTO
    if is_open and not isinstance(autoencoder, GaussianAutoencoder):
        return config.replace(perceptual=""), None, ""
    wanted = config.replace(perceptual=MODEL) if is_open else config
    try:
        metric = make_metric(wanted, extractor, adapter, device)
    except (ConfigError, LayerNotFoundError) as error:
        if not is_open or config.perceptual_layers:
            raise
        return config.replace(perceptual=""), None, str(error)
    if metric is not None and not wanted.perceptual_share:
        wanted = wanted.replace(perceptual_share=affordable_share(autoencoder, metric, device))
    return wanted, metric, ""


@torch.no_grad()
def affordable_share(autoencoder: Autoencoder, metric: Distance, device: torch.device) -> float:
    """Return the share of a batch that may be compared: by operations, which are the same on every machine.

    Training by a picture takes about three passes of the autoencoder, and three of the network: the image, the picture,
    and back to the picture.
    """
    config = autoencoder.config
    image = torch.zeros(1, config.channels, config.size, config.size, device=device)
    was_training = autoencoder.training
    autoencoder.to(device).eval()
    own = operations(lambda: autoencoder.decode(autoencoder.encode(image)[0]))
    autoencoder.train(was_training)
    other = operations(lambda: metric(image, image)) / 2  # of both
    share = COST * own / other if other else MOST
    return max(1, math.floor(PARTS * min(share, MOST))) / PARTS


def make_metric(
    config: AutoencoderConfig, extractor: LayerExtractor, adapter: InputAdapter, device: torch.device
) -> Distance | None:
    """Return the perceptual distance that a configuration asks for, checked; None where it asks for none.

    It is of the weights that the explained model has now.

    Raises:
        ConfigError: The network cannot compare pictures, or passes no gradient on to them.
        LayerNotFoundError: It lacks a layer that is named.
        PosthocInnError: The metric or backbone is not known, or its weights cannot be read.
    """
    if config.perceptual in ("", AUTO) or not config.perceptual_weight:
        return None
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, config.channels, config.size, config.size, generator=generator).to(device)
    if _is_image_metric(config.perceptual):
        found = _image_metric(config)
        found.net.to(device)
        found.check(images)
        return found
    network: nn.Module
    prepare: Prepare
    if config.perceptual == MODEL:
        # What is compared are the autoencoder's squares: the model sees them at their true ratio.
        network, name = extractor.model, "the explained model"
        prepare = lambda squares: adapter.pictures_to_model(adapter.from_square(squares))  # noqa: E731
        problems = Problems("perceptual='model'")
        problems.check(adapter.dtype != "uint8", "the model takes bytes, through which no gradient reaches a picture")
        problems.raise_if_any()
    else:
        network, prepare = _backbone(config)
        name = " ".join(filter(None, (config.perceptual, Path(config.perceptual_weights).name)))
    layers = config.perceptual_layers
    if not layers:
        layers = tuple(choose_layers(copied(network).eval().to(device), prepare(images)))
    distance = FeatureDistance(network, prepare, layers, name=name)
    distance.net.to(device)
    distance.check(images)
    return distance


def _is_image_metric(name: str) -> bool:
    """Whether `perceptual` names an image metric, rather than a backbone or the model.

    Raises:
        UnknownNameError: It names none of them.
        ConfigError: It names two.
    """
    if name == MODEL:
        return False
    manager = get_plugin_manager()
    metrics, backbones = manager.image_metrics, manager.backbones
    is_metric, is_backbone = name in metrics, name in backbones
    if is_metric and is_backbone:
        raise ConfigError(
            f"perceptual={name!r} is an image metric of {metrics.get(name).distribution} and a backbone of "
            f"{backbones.get(name).distribution}; leave one out with POSTHOC_INN_PLUGINS."
        )
    if not is_metric and not is_backbone:
        try:
            backbones.get(name)
        except UnknownNameError as error:
            near = suggest(name, metrics.names())
            raise UnknownNameError(f"{error} Nor is it an image metric to be trained by. {near}") from None
    return is_metric


def _image_metric(config: AutoencoderConfig) -> MetricDistance:
    manager, name, weights = get_plugin_manager(), config.perceptual, config.perceptual_weights
    known = manager.image_metrics.get(name).metadata
    problems = Problems(f"perceptual={name!r}")
    problems.check(not known.get("higher_is_better"), "it is higher for nearer pictures, and training needs a distance")
    problems.check(not config.perceptual_layers, "an image metric has its own layers: leave out perceptual_layers")
    problems.check("weights" in known or not weights, "it takes no weights: leave out perceptual_weights")
    problems.raise_if_any()
    check_image_metrics([name], (config.size, config.size))
    options = {"weights": weights or None} if "weights" in known else {}
    return MetricDistance(manager.build(manager.image_metrics, name, **options), name)


def _backbone(config: AutoencoderConfig) -> tuple[nn.Module, Prepare]:
    manager = get_plugin_manager()
    name, weights = config.perceptual, config.perceptual_weights or None
    network = manager.build_backbone(name, weights=weights)
    if weights is None:
        warnings.warn(
            f"Pictures are compared by {name} with random weights, which see little but edges and colours. Give "
            "perceptual_weights, a file or a published name.",
            PosthocInnWarning,
            stacklevel=3,
        )
    spec = (manager.image_spec(name, weights=weights) or ImageSpec()).replace(size=None, crop=1.0)

    def prepare(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        scale = max(1.0, min(float(ENLARGED), LEAST_SEEN / min(height, width)))
        if scale > 1:
            images = resize(images, (round(height * scale), round(width * scale)))
        return apply_spec(images, spec)

    return network, prepare
