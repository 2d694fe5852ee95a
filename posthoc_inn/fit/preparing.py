"""What a fit is prepared from: the size of pictures, how tensors become them, the autoencoder, concepts, steps."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from posthoc_inn.analysis.image_metrics import check_image_metrics
from posthoc_inn.autoencoders import Autoencoder, as_autoencoder
from posthoc_inn.concepts import AttributeSource, ConceptModel, LabelsOf, Space, as_source, length_of
from posthoc_inn.config import AutoencoderConfig, ConceptConfig, FitConfig, ImageSpec, TrainConfig
from posthoc_inn.errors import ConfigError, DataError, UnknownNameError
from posthoc_inn.fit.concepts import ConceptRequest
from posthoc_inn.fit.parts import Parts, make_flow
from posthoc_inn.fit.request import FitRequest, Subject
from posthoc_inn.fit.stages import Fit
from posthoc_inn.images import BatchSource, InputAdapter, in_order, positions, recognize_normalization, split
from posthoc_inn.images.adapter import MODEL_DTYPES
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.progress import Reporter
from posthoc_inn.rows.cache import DEFAULT_BUDGET
from posthoc_inn.training.precision import choose_device, choose_precision


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


def make_adapter(source: BatchSource, subject: Subject, reporter: Reporter) -> InputAdapter:
    """Return how the images of `source` become pictures and model inputs.

    Raises:
        DataError: Their normalisation cannot be recognised.
    """
    channels, height, width = source.image_shape
    autoencoder, spec = subject.autoencoder, subject.spec
    if isinstance(autoencoder, nn.Module):
        shape = as_autoencoder(autoencoder).config
        size, picture_channels = shape.size, shape.channels
    elif isinstance(autoencoder, AutoencoderConfig):
        size, picture_channels = autoencoder.size, autoencoder.channels
    else:
        size, picture_channels = subject.image_size or choose_image_size(height, width), channels
    if spec is not None:
        # Pictures have the autoencoder's size: they must reach the model at the size the images did.
        spec = spec if spec.size is not None else spec.replace(size=(height, width))
        return InputAdapter(spec, None, size, picture_channels, own_dtype(subject.extractor.model))
    found = recognize_normalization(source, mean=subject.mean, std=subject.std)
    means, stds = (", ".join(f"{value:.4g}" for value in values) for values in (found.mean, found.std))
    reporter.note(f"images are taken as normalised with mean {means} and std {stds}: {found.source}")
    spec = ImageSpec(size=(height, width), mean=found.mean, std=found.std, channels=channels)
    adapter = InputAdapter(spec, found, size, picture_channels, str(source.source_dtype).removeprefix("torch."))
    if adapter.dtype == "uint8" and not takes_bytes(source, subject, adapter):
        adapter = dataclasses.replace(adapter, dtype="float32")
    return adapter


def own_dtype(model: nn.Module) -> str:
    """Return the number type of a model's floating-point parameters, where they have one; "float32" elsewhere."""
    found = {p.dtype for p in model.parameters() if p.is_floating_point()}
    name = str(found.pop()).removeprefix("torch.") if len(found) == 1 else "float32"
    return name if name in MODEL_DTYPES else "float32"


def takes_bytes(source: BatchSource, subject: Subject, adapter: InputAdapter) -> bool:
    """Whether the model can be given the data's bytes as they are: some networks scale them, most cannot."""
    device = choose_device(subject.device, like=subject.extractor.model)
    try:
        with torch.no_grad():
            subject.extractor.features(adapter.to_model(source.first(2).to(device)))
    except Exception:  # a stranger's model may raise anything over bytes
        return False
    return True


def make_autoencoder(subject: Subject, adapter: InputAdapter) -> tuple[Autoencoder, bool]:
    """Return the autoencoder, and whether it needs no training."""
    given, config = subject.autoencoder, subject.config
    if isinstance(given, nn.Module):
        return as_autoencoder(given), True
    wanted = given or AutoencoderConfig(
        size=adapter.image_size,
        channels=adapter.channels,
        latent_dim=config.latent_dim,
        width=config.autoencoder_width,
        seed=subject.seed,
    )
    manager = get_plugin_manager()
    built: nn.Module = manager.build(manager.autoencoders, wanted.kind, wanted)
    return as_autoencoder(built), not hasattr(built, "loss")


def configured(config: FitConfig, request: FitRequest, *, latent_dim: int, length: int | None, seed: int) -> FitConfig:
    """Return `config` for latents of this width, with the steps that were asked for.

    Raises:
        ConfigError: `epochs` is given for data of unknown length.
    """
    config = config.replace(latent_dim=latent_dim, flow=config.flow.replace(dim=latent_dim)).with_seed(seed)
    steps, training = request.steps, config.flow_training
    if request.epochs is not None:
        if length is None:
            raise ConfigError("epochs needs data of a known length; give steps instead.")
        steps = max(1, round(request.epochs * length * request.draws / training.batch_size))
    if steps is not None:
        config = config.replace(flow_training=of_length(training, steps))
    if request.autoencoder_steps is not None:
        own = config.autoencoder_training
        config = config.replace(autoencoder_training=of_length(own, request.autoencoder_steps))
    return config.replace(concepts=concepts_of_length(config.concepts, request.concept_steps))


def concepts_of_length(config: ConceptConfig, steps: int | None) -> ConceptConfig:
    """Return `config` with other steps of e, where they are given."""
    return config if steps is None else config.replace(training=of_length(config.training, steps))


def is_share(held_out: Any) -> bool:
    """Whether `held_out` is a share of the data, rather than data."""
    return isinstance(held_out, (int, float)) and not isinstance(held_out, bool)


def find_concepts(request: FitRequest, *, seed: int, space: Space = "z_bar") -> tuple[Any, Any, ConceptRequest]:
    """Find out what a user means by concepts.

    Args:
        request: What is asked; its `concepts` are None for an e without any.
        seed: Of the split.
        space: What e is to be over.

    Returns:
        Training and held-out data, in an order that the concepts know, and what e is to learn.
    """
    data, held_out, concepts = _data(request.data), _data(request.held_out), request.concepts
    source = None if concepts is None else as_source(concepts, data, seed=seed)
    aside = None
    if request.held_out_concepts is not None and not is_share(held_out):
        aside = as_source(request.held_out_concepts, held_out, seed=seed)
    elif not is_share(held_out) and isinstance(source, AttributeSource) and not isinstance(concepts, Mapping):
        # A data set's own attributes: the held-out one has them too, unless it has none.
        with contextlib.suppress(DataError, UnknownNameError):
            found = as_source(list(source.names), held_out, seed=seed)
            aside = source.over(found.values) if isinstance(found, AttributeSource) else found
    wanted = ConceptRequest(source, aside, space, length=length_of(data))
    data = in_order(data)
    if is_share(held_out):
        data, held_out = split(data, float(held_out), seed=seed)
        wanted.positions = positions(data), positions(held_out)
    return data, in_order(held_out), wanted


def _data(given: Any) -> Any:
    return given.data if isinstance(given, BatchSource) and given.limit is None else given


def opened(data: Any, given: Any, *, seed: int) -> BatchSource:
    """Return a checked source of `data`: `given` where it is an opened source of the very same data."""
    if isinstance(given, BatchSource) and given.data is data:
        return given.check()
    return BatchSource(data, batch_size=128, seed=seed).check()


def prepare(
    subject: Subject,
    request: FitRequest,
    *,
    reporter: Reporter,
    budget: int = DEFAULT_BUDGET,
) -> Fit:
    """Open the data, probe the model, find the normalisation, and put the fit together; nothing is trained yet.

    Args:
        subject: What is explained, and with what.
        request: What is asked for.
        reporter: Gets notes, and shows how far it is once the fit runs.
        budget: Bytes of rows kept in memory where there is no directory.

    Raises:
        ConfigError: An argument is wrong; all problems at once.
        DataError: The images cannot be used, or their normalisation cannot be recognised.
        LayerNotFoundError: The layer is never reached.
    """
    request.check(subject)
    data, held_out, wanted = request.data, request.held_out, None
    if request.concepts is not None:
        data, held_out, wanted = find_concepts(request, seed=subject.seed)
    elif is_share(held_out):
        data, held_out = split(data, float(held_out), seed=subject.seed)
    source = opened(_data(data), request.data, seed=subject.seed)
    kept = opened(_data(held_out), request.held_out, seed=subject.seed)
    if source.image_shape[0] != kept.image_shape[0]:
        raise DataError(f"Training images have {source.image_shape[0]} channels, held-out ones {kept.image_shape[0]}.")
    if wanted is not None and isinstance(wanted.source, LabelsOf):
        wanted.source.check(source)
    for note in source.notes:
        reporter.note(note)
    device = choose_device(subject.device, like=subject.extractor.model)
    adapter = make_adapter(source, subject, reporter)
    check_image_metrics(request.image_metrics, (adapter.image_size, adapter.image_size))
    probe = subject.extractor.probe(adapter.to_model(source.first(4).to(device)))
    if probe.note:
        reporter.note(probe.note)
    autoencoder, is_fitted = make_autoencoder(subject, adapter)
    config = configured(
        subject.config, request, latent_dim=autoencoder.latent_dim, length=source.length, seed=subject.seed
    )
    parts = Parts(
        extractor=subject.extractor,
        adapter=adapter,
        probe=probe,
        autoencoder=autoencoder,
        autoencoder_is_fitted=is_fitted,
        flow=make_flow(config, probe.z_shape, subject.concept_model if wanted is None else None),
        config=config,
        data=source,
        held_out=kept,
        device=device,
        precision=choose_precision(subject.precision, device),
        concepts=wanted,
    )
    return Fit(parts, request, reporter=reporter, budget=budget)
