"""Inversions of z by others beside samples of t (MSC section 4.1, fig. 2 and tab. 1), on the user's own model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posthoc_inn.ambient import in_plain_torch
from posthoc_inn.analysis.direct_decoder import Direct, trained_decoder, training_rows
from posthoc_inn.analysis.faithfulness import Asked, Faithfulness
from posthoc_inn.analysis.frechet import (
    FeatureNetwork,
    Features,
    comparability,
    distance,
    halves,
    inception_weights,
)
from posthoc_inn.analysis.optional import require
from posthoc_inn.analysis.preimages import check_gradients, preimages
from posthoc_inn.analysis.results import Result, by_name
from posthoc_inn.drawing import columns_of, grid
from posthoc_inn.errors import ConfigError, DataError, Problems, is_count
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.progress import Reporter
from posthoc_inn.seeds import derived

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECODER, OPTIMIZATION = "decoder", "optimization"
METHODS = (DECODER, OPTIMIZATION)
"""What is compared with samples of t."""
IMAGES, RECONSTRUCTIONS, SAMPLES = "other images", "reconstructions", "samples of t"
ON_Z, OPTIMIZED = "decoder on z", "optimised pixels"
PART = 32
"""Images that pictures are made for at a time."""
SHOWN = 8
"""Images in the figure."""
STARTS = 2
"""Noises that pixels are optimised from, for each image."""


@dataclass(frozen=True)
class Inverse(Result):
    """One way from z back to pictures.

    Attributes:
        name: What it is.
        distance: Fréchet distance of one picture an image to the reference images.
        distance_of_few: The same of the first `Inversion.few` images alone, which is larger, and to be compared only
            with that of the others: so many pictures all methods have.
        agreement: Share of pictures for which the model predicts what it predicts for their image; nan where
            predictions are neither classes nor sets of labels.
        agreement_error: Its standard error over images.
        similarity: Cosine similarity of Φ(picture) to z.
        similarity_error: Its standard error over images.
        diversity: How far apart two pictures of one z are, over how far apart two different images are (root mean
            squares): 0 for one picture a z, 1 for images that have nothing to do with z. Of optimised pixels it is that
            of two noises they started from.
        seconds: To make a picture, training aside.
        images: Images that pictures were made for.
        per_image: Pictures of each.
        output_similarity: Of embeddings: cosine similarity of the model's outputs; nan for other predictions.
        pictures: Those of the first images, (S, per_image, C, H, W).
    """

    name: str
    distance: float
    distance_of_few: float
    agreement: float
    agreement_error: float
    similarity: float
    similarity_error: float
    diversity: float
    seconds: float
    images: int
    per_image: int
    output_similarity: float = math.nan
    pictures: Tensor = field(repr=False, compare=False, default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Inversion(Result):
    """Pictures that others make of a layer's z, beside samples of t.

    Attributes:
        methods: Reconstructions and samples of t, and those of the others that were asked for.
        layer: The layer.
        network: Whose features the Fréchet distance is over.
        width: Their number.
        images: Images that were inverted; as many others are the reference.
        few: Images among them that pixels were optimised for.
        floor: Fréchet distance of the inverted images themselves to the reference: what equal distributions give.
        floor_of_few: The same of the first `few`.
        similarity_between: Cosine similarity of z between different images.
        agreement_between: Agreement of predictions between different images; nan without classes.
        decoder: How the decoder on z was trained; None where it was not.
        inputs: The first images, as the autoencoder sees them (S, C, H, W).
    """

    methods: tuple[Inverse, ...]
    layer: str
    network: str
    width: int
    images: int
    few: int
    floor: float
    floor_of_few: float
    similarity_between: float
    agreement_between: float
    decoder: Direct | None = None
    inputs: Tensor = field(repr=False, compare=False, default_factory=lambda: torch.empty(0))

    def __getitem__(self, name: str) -> Inverse:
        return by_name(self.methods, name, "method")

    def table(self) -> str:
        """Return the figures as a table in Markdown."""
        few = any(m.name == OPTIMIZED for m in self.methods)
        head = ["", f"Fréchet, {self.images} images", *([f"of {self.few} of them"] if few else [])]
        head += ["agreement", "cosine of z", "diversity", "seconds a picture"]
        rows = [head, ["---"] * len(head)]
        floors = [_number(self.floor), *([_number(self.floor_of_few)] if few else [])]
        others = [_percent(self.agreement_between), _number(self.similarity_between), "1", "-"]
        rows.append([IMAGES, *floors, *others])
        for m in self.methods:
            distances = [_number(m.distance), *([_number(m.distance_of_few)] if few else [])]
            rest = [_percent(m.agreement), _number(m.similarity), _number(m.diversity), f"{m.seconds:.2g}"]
            rows.append([m.name, *distances, *rest])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        told = "; ".join(_told(m) for m in self.methods)
        text = (
            f"Pictures of z at {self.layer}: {told}. Fréchet distances are over the {self.width} features of "
            f"{self.network}, to {self.images} images that are not inverted; the inverted ones themselves are "
            f"{_number(self.floor)} from these. What to conclude: a distance far above that of the reconstructions "
            "says that a method does not make images of the kind that the model was asked about; a cosine far below 1, "
            "that its pictures are not what the layer saw. One picture a z cannot show what the layer leaves open, "
            "however good it is: with squared error it is the mean of all images that share z, and blurred where they "
            "differ. "
        )
        if self.few < self.images and any(m.name == OPTIMIZED for m in self.methods):
            text += (
                f"Pixels were optimised for {self.few} images: compare their distance with that of the others for as "
                "many. "
            )
        text += (
            "What not to conclude: that t is right because its samples look better (the decoder of the autoencoder "
            "makes all of them look like reconstructions, whatever z is; cosine and agreement tell whether they belong "
            "to z), or that optimised pixels with a high cosine are images (they are made to have it). All but "
            "optimised pixels go through the autoencoder's kind of decoder, and lose what it loses. "
        )
        return text + comparability(self.network, self.width, self.images)

    def figure(self) -> Figure:
        """Draw an image a column: itself, its reconstruction, three samples of t, and what the others make of its z."""
        shape = self.inputs.shape
        rows, labels = [self.inputs], ["image"]
        for m in self.methods:
            for k in range(min(m.per_image, 3) if m.name == SAMPLES else 1):
                row = torch.full(shape, math.nan)
                row[: len(m.pictures)] = m.pictures[:, k]
                rows.append(row)
                labels.append(f"{m.name} {k + 1}" if m.name == SAMPLES else m.name)
        return grid(columns_of(torch.stack(rows)), row_labels=labels)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _told(method: Inverse) -> str:
    said = [f"Fréchet distance {_number(method.distance)}"] if not math.isnan(method.distance) else []
    said += [f"the model predicts the same for {_percent(method.agreement)}"] if method.agreement >= 0 else []
    said += [f"cosine of z {_number(method.similarity)}", f"diversity {_number(method.diversity)}"]
    return f"{method.name}: {', '.join(said)}"


class _Tally:
    """Collects what is measured of one method, part by part, so that no more pictures than a part's are held."""

    def __init__(
        self, name: str, pipeline: Pipeline, network: FeatureNetwork, reference: Tensor, per_image: int
    ) -> None:
        self.name, self.network, self.per_image = name, network, per_image
        self._reference, self._asked = reference, Asked(pipeline, per_image)
        self._features: list[Tensor] = []
        self._shown: list[Tensor] = []
        self._within = self._seconds = 0.0
        self.images = 0

    def add(self, pictures: Tensor, z: Tensor, prediction: Tensor | None, seconds: float) -> None:
        """Take in pictures (B, per_image, C, H, W) of images with z (B, *z_shape)."""
        self._asked.add(pictures.flatten(0, 1), z, prediction)
        pictures = pictures.cpu()
        self._features.append(self.network(pictures[:, 0]))
        if self.images < SHOWN:
            self._shown.append(pictures[: SHOWN - self.images])
        if self.per_image > 1:
            self._within += float(pictures.double().var(1).sum())
        self._seconds += seconds
        self.images += len(pictures)

    def result(self, few: int, inverted: int, variance: float) -> Inverse:
        """Return all of it; `inverted` images there are, whose `variance` is summed over pixels."""
        found = self.said()
        features = torch.cat(self._features)
        return Inverse(
            name=self.name,
            distance=math.nan if len(features) < inverted else distance(self._reference, features),
            distance_of_few=distance(self._reference, features[:few]),
            agreement=found.agreement,
            agreement_error=found.agreement_error,
            similarity=found.similarity,
            similarity_error=found.similarity_error,
            diversity=math.sqrt(self._within / self.images / variance),
            seconds=self._seconds / (self.images * self.per_image),
            images=self.images,
            per_image=self.per_image,
            output_similarity=found.output_similarity,
            pictures=torch.cat(self._shown),
        )

    def said(self) -> Faithfulness:
        """Return what the model said."""
        return self._asked.result()


def check_inversion(pipeline: Pipeline, images: int, methods: Sequence[str], **counts: Any) -> None:
    """Check what `inversion` is asked for, before anything is trained.

    Args:
        pipeline: The fitted parts.
        images: How many there are.
        methods: What is compared.
        counts: Arguments that are numbers, which must be at least 1, `samples` and `few` at least 2.

    Raises:
        ConfigError: An argument is wrong; all problems at once.
        DataError: There are fewer than 8 images.
        PluginError: torchmetrics is not installed.
    """
    require("torchmetrics.image.fid", "metrics", "The Fréchet distance")
    problems = Problems("inversion")
    known = bool(methods) and all(m in METHODS for m in methods)
    problems.check(known, f"methods are {' and '.join(map(repr, METHODS))}, one or both, got {list(methods)}")
    for name, value in counts.items():
        least = 2 if name in ("samples", "few") else 1
        problems.check(is_count(value, least), f"{name} must be at least {least}, got {value!r}")
    problems.check(
        bool(getattr(pipeline.autoencoder, "has_encoder", True)),
        "others' inversions are compared with an autoencoder's reconstructions, and this fit has a generator",
    )
    problems.raise_if_any()
    if images < 8:
        raise DataError(
            f"Inversions are compared on 8 images at least, half of which are the reference of the Fréchet distance, "
            f"and on hundreds to mean something; got {images}."
        )


@in_plain_torch
def inversion(
    pipeline: Pipeline,
    images: Tensor,
    train: Any = None,
    *,
    methods: Sequence[str] = METHODS,
    samples: int = 3,
    few: int = 16,
    steps: int = 1500,
    batch_size: int = 64,
    train_images: int = 20_000,
    optimization_steps: int = 200,
    features: Features | None = None,
    name: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Inversion:
    """Compare samples of t with a decoder trained on z, and with pixels optimised to have z (MSC section 4.1).

    A random half of the images is inverted, and the rest are the reference of the Fréchet distance: no method is
    compared with the very images that it was given. Reconstructions, samples and the decoder's pictures are of equal
    number.

    Args:
        pipeline: The fitted parts; model, autoencoder and t are left as they are.
        images: The user's held-out tensors (B, C, H, W), hundreds; not those that the fit was stopped by.
        train: What the decoder on z is trained on: the rows of a fit (`fit.result.train`), or images as given to
            `fit`, in any form that it takes. Not needed without the decoder.
        methods: Which others: "decoder" (Dosovitskiy & Brox), "optimization" (Mahendran & Vedaldi), or both.
        samples: Of t, for each image.
        few: Images that pixels are optimised for, from two noises each.
        steps: Of the decoder's training.
        batch_size: Of it.
        train_images: Of `train`, at the most, where these are no rows.
        optimization_steps: Gradient steps on pixels.
        features: As for `FeatureNetwork`. None takes Inception where its weights are on this machine, else the
            pipeline's own layer; the result says which.
        name: Of the network; needed for a function.
        out: Directory for checkpoints of the decoder, which a second call goes on from.
        seed: Of everything random.
        reporter: Shows how far it is.

    Raises:
        ConfigError: An argument is wrong, no gradient comes through the model, or the decoder cannot be trained.
        DataError: There are too few images, or they cannot be used.
        PluginError: torchmetrics is not installed.
        TrainingError: Training diverged, or `out` holds another decoder.
    """
    check_inversion(
        pipeline,
        len(images),
        methods,
        samples=samples,
        few=few,
        steps=steps,
        batch_size=batch_size,
        train_images=train_images,
        optimization_steps=optimization_steps,
    )
    if DECODER in methods and train is None:
        raise ConfigError(
            "A decoder on z needs training images: pass train=, the rows of the fit (fit.result.train) or the images "
            "that it was given. On the command line: --train-data."
        )
    reporter = reporter or Reporter()
    images = pipeline.adapter.read(images)
    if OPTIMIZATION in methods:
        check_gradients(pipeline, pipeline.z_of(images[:1]))
    network = FeatureNetwork(pipeline if features is None and inception_weights() is None else features, name=name)
    inverted, others = (images[half] for half in halves(len(images), seed))
    few = min(few, len(inverted))
    reference = torch.cat([network(_shown(pipeline, part)) for part in others.split(PART)])
    direct, decoder = None, None
    if DECODER in methods:
        rows = training_rows(pipeline, train, limit=train_images, seed=seed, reporter=reporter)
        decoder, direct = trained_decoder(
            pipeline, rows, steps=steps, batch_size=batch_size, seed=seed, out=out, reporter=reporter
        )

    def tally(what: str, per_image: int) -> _Tally:
        return _Tally(what, pipeline, network, reference, per_image)

    tallies = [tally(RECONSTRUCTIONS, 1), tally(SAMPLES, samples)]
    tallies += [tally(ON_Z, 1)] if decoder is not None else []
    tallies += [tally(OPTIMIZED, STARTS)] if OPTIMIZATION in methods else []
    own: list[Tensor] = []
    spread = _Spread()
    reporter.stage("inverting", len(inverted))
    done = 0
    for part in inverted.split(PART):
        z = pipeline.z_of(part)
        said = pipeline.extractor.said(pipeline.ask(part))
        shown = _shown(pipeline, part)
        spread.add(shown)
        own.append(network(shown))
        # Of each image its own, whatever others it comes with.
        v = torch.stack([_noise(samples, pipeline.latent_dim, seed, done + k) for k in range(len(part))])
        makers: dict[str, Callable[[], Tensor]] = {
            RECONSTRUCTIONS: lambda x=part: pipeline.reconstructions(x)[:, None],  # type: ignore[misc]
            SAMPLES: lambda z=z, v=v: pipeline.pictures(pipeline.sample_latents(pipeline.context(z), v)),  # type: ignore[misc]
        }
        if decoder is not None:
            makers[ON_Z] = lambda z=z, d=decoder: pipeline.adapter.from_square(d.pictures(z))[:, None]  # type: ignore[misc]
        for one in tallies:
            if one.name in makers:
                started = time.perf_counter()
                pictures = makers[one.name]()
                one.add(pictures, z, said, time.perf_counter() - started)
        done += len(part)
        reporter.advance(done)
    if OPTIMIZATION in methods:
        _optimize(pipeline, inverted[:few], tallies[-1], optimization_steps, seed, reporter)
    between = tallies[0].said()
    own_features = torch.cat(own)
    return Inversion(
        methods=tuple(one.result(few, len(inverted), spread.variance) for one in tallies),
        layer=pipeline.extractor.layer,
        network=network.name,
        width=reference.shape[1],
        images=len(inverted),
        few=few,
        floor=distance(reference, own_features),
        floor_of_few=distance(reference, own_features[:few]),
        similarity_between=between.similarity_between,
        agreement_between=between.agreement_between,
        decoder=direct,
        inputs=_shown(pipeline, inverted[:SHOWN]),
    )


def _noise(samples: int, dim: int, seed: int, number: int) -> Tensor:
    """Return v of the image of this number, (samples, dim)."""
    return torch.randn(samples, dim, generator=torch.Generator().manual_seed(derived(seed, "v", number)))


def _shown(pipeline: Pipeline, images: Tensor) -> Tensor:
    """Return the user's tensors as pictures of the autoencoder's size, in [0, 1], on the CPU."""
    return pipeline.adapter.to_images(images.to(pipeline.device)).clamp(0, 1).cpu()


def _optimize(pipeline: Pipeline, images: Tensor, tally: _Tally, steps: int, seed: int, reporter: Reporter) -> None:
    parts = images.split(PART // STARTS)
    reporter.stage("optimising pixels", steps * len(parts))
    for k, part in enumerate(parts):
        z = pipeline.z_of(part)
        said = pipeline.extractor.said(pipeline.ask(part))
        started = time.perf_counter()
        found = preimages(
            pipeline, z.repeat_interleave(STARTS, 0), steps=steps, seed=derived(seed, "pixels", k), reporter=reporter
        )
        reporter.advance((k + 1) * steps)
        tally.add(found.unflatten(0, (len(part), STARTS)), z, said, time.perf_counter() - started)


class _Spread:
    """Variance of images, summed over pixels, from one pass over them."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, torch.zeros(()).double(), 0.0

    def add(self, images: Tensor) -> None:
        """Take in images (B, C, H, W)."""
        images = images.double() - 0.5
        self._count += len(images)
        self._sum = self._sum + images.sum(0)
        self._squares += float(images.square().sum())

    @property
    def variance(self) -> float:
        """Unbiased; of images that are all the same, the smallest number there is."""
        found = (self._squares - float(self._sum.square().sum()) / self._count) / (self._count - 1)
        return max(found, torch.finfo(torch.float32).tiny)
