"""What a fit is prepared from: the size of pictures, how tensors become them, the autoencoder, concepts, steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from posthoc_inn.analysis.image_metrics import build_image_metrics
from posthoc_inn.analysis.relevance import LEAST_IMAGES
from posthoc_inn.autoencoders import Autoencoder, as_autoencoder, draws_of, latent_shape_of
from posthoc_inn.concepts import AttributeSource, ConceptModel, LabelsOf, Space, as_source, length_of
from posthoc_inn.concepts.tables import TABLE_ENDINGS
from posthoc_inn.config import AutoencoderConfig, ConceptConfig, FitConfig, ImageSpec, TrainConfig
from posthoc_inn.errors import ConfigError, DataError, PosthocInnError
from posthoc_inn.fit.binding import ConceptRequest, check_placed
from posthoc_inn.fit.drawing import with_draws
from posthoc_inn.fit.faithful import affordable, why_not
from posthoc_inn.fit.metric import Distance, check_trainable, settled, without_directory
from posthoc_inn.fit.parts import Parts, make_flow
from posthoc_inn.fit.pictures import with_pictures
from posthoc_inn.fit.refits import check_refits
from posthoc_inn.fit.request import FitRequest, Subject
from posthoc_inn.fit.stages import Fit
from posthoc_inn.fit.steps import started
from posthoc_inn.images import STREAM, BatchSource, InputAdapter, has_length, positions, recognize_normalization, split
from posthoc_inn.images.adapter import MODEL_DTYPES, Frame
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.progress import Reporter
from posthoc_inn.protocols import ConceptSource
from posthoc_inn.rows.cache import DEFAULT_BUDGET
from posthoc_inn.training.precision import choose_device, choose_precision
from posthoc_inn.training.tasks import compared_rows

FEWEST = 1_000
"""Images read of a stream without a known length, however few steps there are."""
LEAST_MAP = 32
"""Pixels of a side from which on codes are maps, where the configuration leaves the choice."""
HELD_OUT = 5_000
"""Images read of held-out data of unknown length."""


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
    if spec is None and draws_of(source.data) is not None:
        # Draws are canonical pictures, whatever the model wants.
        spec = ImageSpec(mean=subject.mean or (0.0,), std=subject.std or (1.0,), channels=channels)
    frame: Frame = "view"
    if isinstance(autoencoder, nn.Module):
        given = as_autoencoder(autoencoder)
        # A generator frames its pictures itself: the model gets them as it gets images.
        frame, shape = "square" if hasattr(given, "native") else "view", given.config
        size, picture_channels = shape.size, shape.channels
    elif isinstance(autoencoder, AutoencoderConfig):
        size, picture_channels = autoencoder.size, autoencoder.channels
    else:
        size, picture_channels = subject.image_size or choose_image_size(height, width), channels
    if spec is not None:
        # Pictures have the autoencoder's size: they must reach the model at the size the images did.
        if spec.size is None:
            left = max(1, round(height * spec.crop)), max(1, round(width * spec.crop))
            spec = spec.replace(size=left)
        own = own_dtype(subject.extractor.model)
        return InputAdapter(spec, None, size, picture_channels, own, frame)
    found = recognize_normalization(source, mean=subject.mean, std=subject.std)
    means, stds = (", ".join(f"{value:.4g}" for value in values) for values in (found.mean, found.std))
    reporter.note(f"images are taken as normalised with mean {means} and std {stds}: {found.source}")
    spec = ImageSpec(size=(height, width), mean=found.mean, std=found.std, channels=channels)
    adapter = InputAdapter(spec, found, size, picture_channels, str(source.source_dtype).removeprefix("torch."), frame)
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


def make_autoencoder(
    subject: Subject, adapter: InputAdapter, device: torch.device, reporter: Reporter
) -> tuple[Autoencoder, AutoencoderConfig | None, Distance | None]:
    """Return the autoencoder, the configuration that it is to be trained by, and its image metric besides the error.

    The configuration is None where it needs no training, the metric too where it is trained by the error alone.

    Raises:
        ConfigError: It cannot be trained by what the configuration asks for.
    """
    given, config = subject.autoencoder, subject.config
    if isinstance(given, nn.Module):
        return as_autoencoder(given), None, None
    wanted = given or usual_autoencoder(config, adapter, seed=subject.seed)
    autoencoder = _built(wanted)
    if not hasattr(autoencoder, "loss"):
        return autoencoder, None, None
    check_trainable(autoencoder, wanted)
    settled_config, metric, reason = settled(wanted, autoencoder, subject.extractor, adapter, device)
    if reason:
        reporter.note(f"Note: reconstructions are compared by squared error alone: {reason}")
    if settled_config != wanted:
        autoencoder = _built(settled_config)
    return autoencoder, settled_config, metric


def _built(config: AutoencoderConfig) -> Autoencoder:
    manager = get_plugin_manager()
    return as_autoencoder(manager.build(manager.autoencoders, config.kind, without_directory(config)))


def codes_are_maps(config: FitConfig, size: int) -> bool:
    """Whether the built-in autoencoder for pictures of `size` pixels is to code them as maps."""
    return config.latent == "map" or (config.latent == "auto" and size >= LEAST_MAP)


def usual_autoencoder(config: FitConfig, adapter: InputAdapter, *, seed: int) -> AutoencoderConfig:
    """Return the built-in autoencoder for pictures of this size: codes are vectors or maps, as `config` says."""
    size, channels, width = adapter.image_size, adapter.channels, config.autoencoder_width
    if codes_are_maps(config, size):
        return AutoencoderConfig.of_map(size, channels, width=width, seed=seed)
    return AutoencoderConfig(size=size, channels=channels, latent_dim=config.latent_dim, width=width, seed=seed)


def configured(config: FitConfig, request: FitRequest, *, latent_dim: int, length: int | None, seed: int) -> FitConfig:
    """Return `config` for latents of this width, with the steps that were asked for.

    Raises:
        ConfigError: `epochs` is given for data of unknown length.
    """
    flow = config.flow.replace(dim=latent_dim, context_dim=config.context_dim)
    config = config.replace(latent_dim=latent_dim, flow=flow).with_seed(seed)
    if request.epochs is not None:
        if length is None:
            raise ConfigError("epochs needs data of a known length; give steps instead.")
        batch_size = config.flow_training.batch_size
        steps = max(1, round(request.epochs * length * request.draws / batch_size))
        request = dataclasses.replace(request, steps=steps, epochs=None)
    autoencoder, e, t = _trainings(config, request)
    return config.replace(
        autoencoder_training=autoencoder, concepts=config.concepts.replace(training=e), flow_training=t
    )


def _trainings(config: FitConfig, request: FitRequest) -> tuple[TrainConfig, TrainConfig, TrainConfig]:
    """Return how autoencoder, e and t are trained, with the steps that were asked for."""
    t = config.flow_training if request.steps is None else of_length(config.flow_training, request.steps)
    autoencoder = config.autoencoder_training
    if request.autoencoder_steps is not None:
        autoencoder = of_length(autoencoder, request.autoencoder_steps)
    return autoencoder, concepts_of_length(config.concepts, request.concept_steps).training, t


def concepts_of_length(config: ConceptConfig, steps: int | None) -> ConceptConfig:
    """Return `config` with other steps of e, where they are given."""
    return config if steps is None else config.replace(training=of_length(config.training, steps))


def is_share(held_out: Any) -> bool:
    """Whether `held_out` is a share of the data, rather than data."""
    return isinstance(held_out, (int, float)) and not isinstance(held_out, bool)


def bounded(request: FitRequest, used: int, *, seed: int, reporter: Reporter) -> FitRequest:
    """Return `request` with a limit on data that does not tell how many images it holds: it may never end.

    Args:
        request: What is asked.
        used: Images that the steps of training can use.
        seed: Of whatever the data draws.
        reporter: Told of a limit.
    """
    most = {"data": min(STREAM, max(FEWEST, -(-used // request.draws))), "held_out": HELD_OUT}
    limited: dict[str, Any] = {}
    for name, count in most.items():
        given = getattr(request, name)
        if name == "held_out" and is_share(given):
            continue
        source = given if isinstance(given, BatchSource) else BatchSource(given, batch_size=128, seed=seed)
        if source.length is None and source.limit is None and not has_length(source.data):
            limited[name] = BatchSource(source, source.batch_size, limit=count, seed=source.seed)
            reporter.note(
                f"The {'held-out' if name == 'held_out' else 'training'} data does not tell how many images it holds: "
                f"the first {count:,} are read at the most. "
                "posthoc_inn.images.BatchSource(data, limit=...) sets another number."
            )
    return dataclasses.replace(request, **limited)


def used_images(*trainings: TrainConfig) -> int:
    """Return how many images the longest of some trainings takes up."""
    return max(training.steps * training.batch_size for training in trainings)


def find_concepts(request: FitRequest, *, seed: int, space: Space = "z_bar") -> tuple[Any, Any, ConceptRequest]:
    """Find out what a user means by concepts.

    Args:
        request: What is asked; its `concepts` are None for an e without any.
        seed: Of the split.
        space: What e is to be over.

    Returns:
        Training and held-out data, and what e is to learn.

    Raises:
        PosthocInnError: The concepts stand for nothing, or cannot be learned from the training images.
    """
    data, held_out, concepts = _data(request.data), _data(request.held_out), request.concepts
    known, options = _within(data), request.concept_options
    source = None if concepts is None else as_source(concepts, known, seed=seed, options=options)
    wanted = ConceptRequest(source, None, space, length=length_of(known))
    if is_share(held_out):
        data, held_out = split(data, float(held_out), seed=seed)
        wanted.positions = positions(data), positions(held_out)
        wanted.leave_out_copies()
        if wanted.positions[0] is not None and callable(getattr(source, "subset", None)):
            source.subset(wanted.positions[0])  # type: ignore[union-attr]
    elif request.held_out_concepts is not None:
        wanted.held_out_source = as_source(request.held_out_concepts, _within(held_out), seed=seed)
        names, theirs = (getattr(s, "names", None) for s in (source, wanted.held_out_source))
        if names is not None and theirs is not None and tuple(names) != tuple(theirs):
            raise ConfigError(
                f"concepts has {', '.join(names)}, held_out_concepts {', '.join(theirs)}; they must be the same, in "
                "the same order."
            )
    elif isinstance(source, ConceptSource) and wanted.extra is None:
        try:
            wanted.held_out_source = _same_concepts(source, concepts, _within(held_out), seed=seed, options=options)
        except PosthocInnError as error:
            wanted.reason = str(error)
    return data, held_out, wanted


def _same_concepts(
    source: ConceptSource, concepts: Any, held_out: Any, *, seed: int, options: Mapping[str, Any]
) -> ConceptSource | None:
    """Return what `concepts` means for held-out images that are other data; None where it means nothing for them.

    Raises:
        PosthocInnError: They lack what it needs.
    """
    is_named = isinstance(concepts, (str, Path))
    found: Any
    if is_named and str(concepts).lower().endswith(TABLE_ENDINGS):
        found = as_source(concepts, held_out, seed=seed, options={**options, "columns": list(source.names)})
        # Rows in the images' order are the training images', even if there are as many others.
        if not getattr(found, "is_by_file", False):
            raise DataError("the table names no files of theirs; give held_out_concepts, a table of their own.")
    elif isinstance(source, AttributeSource) and not isinstance(concepts, Mapping):
        # A data set's own attributes: the held-out one has them too, unless it has none.
        own = as_source(list(source.names), held_out, seed=seed)
        found = source.over(own.values) if isinstance(own, AttributeSource) else own
    elif is_named:
        found = as_source(concepts, held_out, seed=seed, options=options)
    else:
        return None
    return found if isinstance(found, ConceptSource) and tuple(found.names) == tuple(source.names) else None


def _data(given: Any) -> Any:
    return given.data if isinstance(given, BatchSource) and given.limit is None else given


def _within(data: Any) -> Any:
    """Return the data itself, of which a source reads as many images as it is told."""
    return data.data if isinstance(data, BatchSource) else data


def opened(data: Any, given: Any, *, seed: int, is_held_out: bool = False) -> BatchSource:
    """Return a checked source of `data`: `given` where it is an opened source of the very same data.

    Raises:
        DataError: The images cannot be used.
    """
    try:
        if isinstance(given, BatchSource) and (given is data or given.data is data):
            return given.check()
        return BatchSource(data, batch_size=128, seed=seed).check()
    except DataError as error:
        if not is_held_out:
            raise
        raise DataError(f"Held-out data: {error}") from error


def settle_faithful(parts: Parts, reporter: Reporter) -> Parts:
    """Return the parts with what t is trained further by, where that is asked for; a note says why it cannot be."""
    if not parts.config.faithful:
        return parts
    for part in (parts.autoencoder, parts.flow):
        part.to(parts.device)
    reason = why_not(parts) if parts.flow.is_trained else "t is fitted in closed form."
    if reason:
        reporter.note(f"Note: t is not trained by what the model sees of its samples: {reason}")
        return parts
    images = parts.adapter.to_model(parts.data.first(2).to(parts.device))
    with torch.no_grad():
        flow, z, _ = started(parts, parts.extractor.features(images))
    return dataclasses.replace(parts, faithful=affordable(parts, flow, z[:1]))


def check_measurable(held_out: BatchSource) -> None:
    """Check that there are enough held-out images to measure concepts on.

    Raises:
        DataError: There are not.
    """
    count = len(held_out.first(LEAST_IMAGES))
    if count < LEAST_IMAGES:
        raise DataError(
            f"The held-out data holds {count} images, and concepts are measured on at least {LEAST_IMAGES}; hold out "
            "more, or pass evaluate=False."
        )


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
    request = with_draws(request, subject)
    trainings = []
    for config in (subject.config, subject.config.of_maps()):  # which of them it will be, the images say
        autoencoder_training, e_training, t_training = _trainings(config, request)
        trainings += [autoencoder_training, t_training, *([e_training] if request.concepts is not None else [])]
    request = bounded(request, used_images(*trainings), seed=subject.seed, reporter=reporter)
    data, held_out, wanted = request.data, request.held_out, None
    if request.concepts is not None:
        data, held_out, wanted = find_concepts(request, seed=subject.seed)
    elif is_share(held_out):
        data, held_out = split(data, float(held_out), seed=subject.seed)
    source = opened(_data(data), request.data, seed=subject.seed)
    kept = opened(_data(held_out), request.held_out, seed=subject.seed, is_held_out=True)
    if wanted is not None:
        check_placed(wanted, source)
    if request.evaluate and (wanted is not None or subject.concept_model is not None):
        check_measurable(kept)
    if source.image_shape[0] != kept.image_shape[0]:
        raise DataError(f"Training images have {source.image_shape[0]} channels, held-out ones {kept.image_shape[0]}.")
    if wanted is not None and isinstance(wanted.source, LabelsOf):
        wanted.source.check(source)
    for note in source.notes:
        reporter.note(note)
    device = choose_device(subject.device, like=subject.extractor.model)
    adapter = make_adapter(source, subject, reporter)
    build_image_metrics(request.image_metrics, adapter.picture_shape)  # before training, not after it
    probe = subject.extractor.probe(adapter.to_model(source.first(4).to(device)))
    if probe.note:
        reporter.note(probe.note)
    autoencoder, trained_by, metric = make_autoencoder(subject, adapter, device, reporter)
    shape = latent_shape_of(autoencoder)
    config = configured(
        subject.config.of_maps() if len(shape) == 3 else subject.config,
        request,
        latent_dim=autoencoder.latent_dim,
        length=source.length,
        seed=subject.seed,
    )
    picture_shape = autoencoder.config.channels, autoencoder.config.size, autoencoder.config.size
    tried = with_pictures(config, autoencoder, probe.z_shape, picture_shape)
    concept_model = subject.concept_model if wanted is None else None
    flow = make_flow(tried or config, probe.z_shape, concept_model, shape, picture_shape)
    flow.set_encoder(autoencoder if flow.pictures is not None else None)
    parts = Parts(
        extractor=subject.extractor,
        adapter=adapter,
        probe=probe,
        autoencoder=autoencoder,
        autoencoder_is_fitted=trained_by is None,
        flow=flow,
        config=tried or config,
        data=source,
        held_out=kept,
        device=device,
        precision=choose_precision(subject.precision, device),
        concepts=wanted,
        trained_by=trained_by,
        tries_pictures=tried is not None,
    )
    if metric is not None:
        batch = config.autoencoder_training.batch_size
        rows = compared_rows(trained_by or autoencoder.config, batch)
        layers = f" at {', '.join(metric.layers)}," if metric.layers else ""
        reporter.note(f"pictures are compared by {metric.name} too,{layers} {rows} of the {batch} of a step")
    check_refits(request.refits, parts.flow)
    return Fit(settle_faithful(parts, reporter), request, reporter=reporter, budget=budget)
