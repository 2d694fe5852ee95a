"""What a fit is prepared from: the size of pictures, how tensors become them, the autoencoder, the steps."""

from __future__ import annotations

from torch import nn

from posthoc_inn.autoencoders import Autoencoder, as_autoencoder
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.config import AutoencoderConfig, FitConfig, ImageSpec, TrainConfig
from posthoc_inn.errors import ConfigError
from posthoc_inn.images import BatchSource, recognize_normalization
from posthoc_inn.images.adapter import InputAdapter
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.progress import Reporter


def choose_image_size(height: int, width: int) -> int:
    """Return the built-in autoencoder's image size for pictures of a given size: 28, 32, 64 or 128 pixels.

    >>> [choose_image_size(s, s) for s in (8, 28, 32, 50, 224)]
    [28, 28, 32, 64, 128]
    """
    side = min(height, width)
    return next((size for size, limit in ((28, 28), (32, 40), (64, 96)) if side <= limit), 128)


def of_length(training: TrainConfig, steps: int) -> TrainConfig:
    """Return `training` with other steps, looking at held-out data at least five times where it can."""
    return training.replace(steps=steps, eval_every=max(1, min(training.eval_every, steps // 5)))


def check_space(concepts: ConceptModel, latent_dim: int) -> None:
    """Check that e is over the latents of an autoencoder.

    Raises:
        ConfigError: It is not.
    """
    if concepts.space != "z_bar" or concepts.shape != (latent_dim,):
        raise ConfigError(
            f"This e is over {concepts.space} of shape {concepts.shape}; the autoencoder's latents have shape "
            f"({latent_dim},). Give the e that was fitted over them."
        )


def make_adapter(
    source: BatchSource,
    autoencoder: nn.Module | AutoencoderConfig | None,
    *,
    spec: ImageSpec | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    image_size: int | None,
    reporter: Reporter,
) -> InputAdapter:
    """Return how the images of `source` become pictures and model inputs; see `Interpreter` for the arguments.

    Raises:
        DataError: Their normalisation cannot be recognised.
    """
    channels, height, width = source.image_shape
    if isinstance(autoencoder, nn.Module):
        shape = as_autoencoder(autoencoder).config
        size, picture_channels = shape.size, shape.channels
    elif isinstance(autoencoder, AutoencoderConfig):
        size, picture_channels = autoencoder.size, autoencoder.channels
    else:
        size, picture_channels = image_size or choose_image_size(height, width), channels
    if spec is not None:
        # Pictures have the autoencoder's size: they must reach the model at the size the images did.
        spec = spec if spec.size is not None else spec.replace(size=(height, width))
        return InputAdapter(spec, None, size, picture_channels)
    found = recognize_normalization(source, mean=mean, std=std)
    means, stds = (", ".join(f"{value:.4g}" for value in values) for values in (found.mean, found.std))
    reporter.note(f"images are taken as normalised with mean {means} and std {stds}: {found.source}")
    spec = ImageSpec(size=(height, width), mean=found.mean, std=found.std, channels=channels)
    return InputAdapter(spec, found, size, picture_channels)


def make_autoencoder(
    given: nn.Module | AutoencoderConfig | None, config: FitConfig, adapter: InputAdapter, seed: int
) -> tuple[Autoencoder, bool]:
    """Return the autoencoder, and whether it needs no training."""
    if isinstance(given, nn.Module):
        return as_autoencoder(given), True
    wanted = given or AutoencoderConfig(
        size=adapter.image_size,
        channels=adapter.channels,
        latent_dim=config.latent_dim,
        width=config.autoencoder_width,
        seed=seed,
    )
    manager = get_plugin_manager()
    built: nn.Module = manager.build(manager.autoencoders, wanted.kind, wanted)
    return as_autoencoder(built), not hasattr(built, "loss")


def configured(
    config: FitConfig,
    autoencoder: Autoencoder,
    *,
    length: int | None,
    draws: int,
    epochs: float | None,
    steps: int | None,
    autoencoder_steps: int | None,
    concept_steps: int | None,
    seed: int,
) -> FitConfig:
    """Return `config` for this autoencoder, with the steps that were asked for.

    Raises:
        ConfigError: `epochs` is given for data of unknown length.
    """
    dim = autoencoder.latent_dim
    config = config.replace(latent_dim=dim, flow=config.flow.replace(dim=dim)).with_seed(seed)
    training = config.flow_training
    if epochs is not None:
        if length is None:
            raise ConfigError("epochs needs data of a known length; give steps instead.")
        steps = max(1, round(epochs * length * draws / training.batch_size))
    if steps is not None:
        config = config.replace(flow_training=of_length(training, steps))
    if autoencoder_steps is not None:
        config = config.replace(autoencoder_training=of_length(config.autoencoder_training, autoencoder_steps))
    if concept_steps is not None:
        own = config.concepts
        config = config.replace(concepts=own.replace(training=of_length(own.training, concept_steps)))
    return config
