"""The built-in analyses as the plugin hook wants them: an interpreter and data in, a result out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from posthoc_inn import analysis
from posthoc_inn.analysis.comparable import check_gives_classes
from posthoc_inn.analysis.inversion import METHODS
from posthoc_inn.analysis.samples import class_names_of
from posthoc_inn.concepts import RANDOM, ConceptModel
from posthoc_inn.errors import ConfigError, DataError, Problems
from posthoc_inn.features import LayerExtractor
from posthoc_inn.features.outputs import is_classification
from posthoc_inn.images import BatchSource, apply_spec, some_of
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.progress import make_reporter

E = "e"
"""What an analysis may need besides t: a trained e."""
TRAIN = "train"
"""The other: training images, as its option `train`."""
WALKS = 3
"""Concepts that the map of a response shows walks in."""


class Fitted(Protocol):
    """What an analysis asks of a fitted Interpreter."""

    layer: str
    origin: dict[str, Any]

    @property
    def pipeline(self) -> Pipeline:
        """The fitted parts."""

    @property
    def concept_model(self) -> ConceptModel:
        """The fitted e."""

    def explained_by_invariances(
        self, data: Any = None, *, z: Tensor | None = None, samples: int = 10_000, seed: int = 0
    ) -> analysis.ExplainedByInvariances:
        """MSC eq. 19."""

    def concept_relevance(
        self, data: Any = None, *, z: Tensor | None = None, samples: int = 10_000, seed: int = 0
    ) -> analysis.ConceptRelevance:
        """MSC eq. 20."""

    def pair_shares(
        self, data: Any, concepts: Any = None, *, samples: int = 10_000, seed: int = 0
    ) -> analysis.PairShares:
        """The same by pairs."""


def needs_of(name: str) -> tuple[str, ...]:
    """Return what must have been fitted for an analysis.

    Raises:
        UnknownNameError: There is no such analysis.
    """
    return tuple(get_plugin_manager().analyses.get(name).metadata.get("needs") or ())


def check_options(name: str, options: Iterable[str]) -> None:
    """Check that an analysis takes these options.

    Raises:
        ConfigError: It does not.
        UnknownNameError: There is no such analysis.
    """
    known = get_plugin_manager().analyses.get(name).metadata.get("options") or {}
    problems = Problems(f"analysis {name}")
    for option in options:
        problems.check(option in known, f"it has no option {option!r}; it has {', '.join(known) or 'none'}")
    problems.raise_if_any()


def run_analysis(
    interpreter: Fitted, name: str, data: Any, *, z: Tensor | None, seed: int, options: Mapping[str, Any]
) -> Any:
    """Run a registered analysis; see `Interpreter.analyze`.

    Raises:
        UnknownNameError: There is no such analysis.
        ConfigError: An option is not the analysis' own; or images and z are both given, or neither, or it takes no z.
        NotFittedError: What it needs was not fitted.
    """
    entry = get_plugin_manager().analyses.get(name)
    check_options(name, options)
    if (data is None) == (z is None):
        raise ConfigError("Give either data (images) or z= (representations of the layer).")
    _ = interpreter.concept_model if E in needs_of(name) else interpreter.pipeline  # raises where there is none
    run = entry.factory()
    if z is None:
        return run(interpreter, data, seed=seed, **options)
    if "z" not in inspect.signature(run).parameters:
        raise ConfigError(f"The analysis {name} needs images; it cannot be made from representations alone.")
    return run(interpreter, None, z=z, seed=seed, **options)


def images_of(data: Any, count: int, *, seed: int, least: int = 2) -> Tensor:
    """Return `count` images of data, as the interpreter takes them: all, or some at random (`some_of`).

    Raises:
        DataError: There are too few.
    """
    images = BatchSource(some_of(data, count, seed=seed), batch_size=128, seed=seed).first(count)
    if len(images) < least:
        raise DataError(f"At least {least} images are needed, got {len(images)}.")
    return images


def _layer(interpreter: Fitted) -> dict[str, Any]:
    return {interpreter.layer or "output": interpreter.pipeline}


def explained(interpreter: Fitted, data: Any, *, seed: int, samples: int = 10_000, z: Tensor | None = None) -> Any:
    """MSC eq. 19."""
    return interpreter.explained_by_invariances(data, z=z, samples=samples, seed=seed)


def relevance(interpreter: Fitted, data: Any, *, seed: int, samples: int = 10_000, z: Tensor | None = None) -> Any:
    """MSC eq. 20, with the first-order share."""
    return interpreter.concept_relevance(data, z=z, samples=samples, seed=seed)


def pair_shares(
    interpreter: Fitted, data: Any, *, seed: int, concepts: str = "", samples: int = 10_000
) -> analysis.PairShares:
    """What of each concept the layer determines, by pairs."""
    return interpreter.pair_shares(data, concepts or None, samples=samples, seed=seed)


def edits(interpreter: Fitted, data: Any, *, seed: int, images: int = 200) -> Any:
    """MSC eq. 7: each concept taken from another image."""
    return analysis.edit_gallery(interpreter.pipeline, interpreter.concept_model, images_of(data, images, seed=seed))


def samples(interpreter: Fitted, data: Any, *, seed: int, images: int = 10, samples: int = 8, refine: int = 0) -> Any:
    """MSC eq. 2: pictures with what the layer sees of an image, all else drawn anew."""
    given = images_of(data, images, seed=seed, least=1)
    names = class_names_of(interpreter.origin)
    return analysis.samples(interpreter.pipeline, given, samples, seed, names, refine=refine)


def maps(interpreter: Fitted, data: Any, *, seed: int, images: int = 32, samples: int = 32) -> Any:
    """MSC fig. 3: where pictures vary."""
    return analysis.invariance_maps(_layer(interpreter), images_of(data, images, seed=seed), samples=samples, seed=seed)


def recombination(interpreter: Fitted, data: Any, *, seed: int, images: int = 6) -> Any:
    """What one image loses (v) with what the layer keeps of another (z)."""
    return analysis.recombine(interpreter.pipeline, images_of(data, images, seed=seed))


def attack(
    interpreter: Fitted, data: Any, *, seed: int, images: int = 64, method: str = "fgsm", epsilon: float = 8 / 255
) -> Any:
    """MSC fig. 5: what an attack changes of z."""
    given = images_of(data, images, seed=seed)
    return analysis.attack_view(_layer(interpreter), given, method=method, epsilon=epsilon, seed=seed)  # type: ignore[arg-type]


def response(interpreter: Fitted, data: Any, *, seed: int, images: int = 60, steps: int = 60) -> Any:
    """IIN 4.2: walks in one factor, through the decoder."""
    given = images_of(data, images, seed=seed)
    return analysis.response(
        interpreter.pipeline, interpreter.concept_model, given, images=len(given), steps=steps, seed=seed
    )


def response_map(interpreter: Fitted, data: Any, *, seed: int, images: int = 500, steps: int = 50) -> Any:
    """IIN fig. 10: walks in the first concepts among the latents of images, coloured by the model's prediction."""
    given = images_of(data, images, seed=seed, least=4)
    pipeline, concepts = interpreter.pipeline, interpreter.concept_model
    check_gives_classes(pipeline, "The map of a response")
    output = pipeline.predict(given)
    if not is_classification(output):
        raise DataError(
            "The map of a response is coloured by the model's classes, and this model gives no class scores."
        )
    names = [name for name in concepts.names if name != RANDOM][:WALKS]
    return analysis.response_embedding(
        concepts,
        pipeline.encode(given)[0],
        output.argmax(1).cpu(),
        names,
        steps=steps,
        neighbors=min(15, len(given) - 1),
        seed=seed,
    )


def sensitivity(interpreter: Fitted, data: Any, *, seed: int, images: int = 200) -> Any:
    """MSC fig. 7, last row: how far an edit moves the representation."""
    latents = interpreter.pipeline.encode(images_of(data, images, seed=seed))[0]
    return analysis.concept_sensitivity(interpreter.pipeline, interpreter.concept_model, latents, seed=seed)


def generative(interpreter: Fitted, data: Any, *, seed: int, images: int = 1000) -> Any:
    """IIN tab. 2: samples of e beside reconstructions, by their Fréchet distance."""
    with torch.no_grad():
        return analysis.generative_quality(
            interpreter.pipeline, interpreter.concept_model, images_of(data, images, seed=seed), seed=seed
        )


def inversion(
    interpreter: Fitted,
    data: Any,
    *,
    seed: int,
    train: Any = None,
    images: int = 400,
    few: int = 16,
    methods: str | tuple[str, ...] = METHODS,
    steps: int = 1500,
    optimization_steps: int = 200,
    network: str | None = None,
    network_weights: str | None = None,
    network_layer: str = "output",
    out: str | None = None,
) -> Any:
    """MSC 4.1, tab. 1: what others make of z."""
    if isinstance(train, str):
        raise ConfigError(
            f"The option train takes images, as given to fit, not {train!r}; on the command line pass --train-data."
        )
    wanted = [part.strip() for part in methods.split(",")] if isinstance(methods, str) else list(methods)
    given: dict[str, Any] = {}
    if network is not None:
        given = _named_network(interpreter.pipeline, network, network_weights, network_layer)
    with make_reporter(None, stages=4) as reporter:
        return analysis.inversion(
            interpreter.pipeline,
            images_of(data, images, seed=seed),
            train,
            methods=wanted,
            few=few,
            steps=steps,
            optimization_steps=optimization_steps,
            out=out,
            seed=seed,
            reporter=reporter,
            **given,
        )


def _named_network(pipeline: Pipeline, name: str, weights: str | None, layer: str) -> dict[str, Any]:
    """Return a registered network's layer, for a Fréchet distance over its features."""
    manager = get_plugin_manager()
    model = manager.build_backbone(name, weights=weights).to(pipeline.device)
    spec = manager.image_spec(name, weights=weights)
    extractor = LayerExtractor(model, layer)

    def features(images: Tensor) -> Tensor:
        images = images.to(pipeline.device)
        return extractor.features(images if spec is None else apply_spec(images, spec))

    random = "" if weights is not None else " with random weights"
    return {"features": features, "name": f"{name} {layer}{random}"}
