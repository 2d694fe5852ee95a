"""An autoencoder as a generative model: samples D(e⁻¹(n)), n ~ N(0, 1) (IIN eq. 13), and how good they are (tab. 2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posthoc_inn.analysis.frechet import (
    FeatureNetwork,
    Features,
    Frechet,
    Halving,
    batches,
    comparability,
    inception_weights,
)
from posthoc_inn.analysis.results import Result, by_name
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.drawing import columns_of, grid, shortened
from posthoc_inn.errors import ConfigError, DataError, Problems
from posthoc_inn.objectives import drawn
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.protocols import Decoder
from posthoc_inn.seeds import derived

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHUNK = 512
"""Images made at a time."""
SHOWN = 12
"""Pictures of each kind that are kept for the figure."""

REAL, RECONSTRUCTED, OF_E, OF_PRIOR = "real images", "reconstructions", "samples of e", "samples of N(0, 1)"


def generate_batches(
    decoder: Pipeline | Decoder, concepts: ConceptModel | None, n: int, seed: int = 0, *, dim: int | None = None
) -> Iterator[Tensor]:
    """Yield batches of `n` images in all, D(e⁻¹(n)) with n ~ N(0, s²) (IIN eq. 13).

    s is the deviation of each dimension of e over held-out images, which is 1 where e is a perfect density.

    Args:
        decoder: D, or the fitted parts.
        concepts: e over z_bar, best an unsupervised one; None decodes N(0, 1) itself, the autoencoder's prior.
        n: Images.
        seed: Of the draws.
        dim: D, width of z_bar; needed without e.

    Raises:
        ConfigError: e does not work on z_bar, `n` is not positive, or there is neither e nor `dim`.
    """
    width = sum(concepts.factor_dims) if concepts is not None else dim
    problems = Problems("generate")
    problems.check(
        concepts is None or concepts.space == "z_bar",
        "e must work on z_bar, to be decoded; this one works on a layer's z",
    )
    problems.check(n >= 1, f"n must be at least 1, got {n}")
    problems.check(width is not None, "without e, pass dim, the width of z_bar")
    problems.raise_if_any()
    return _generated(decoder, concepts, n, seed, width or 0)


@torch.no_grad()
def _generated(
    decoder: Pipeline | Decoder, concepts: ConceptModel | None, n: int, seed: int, width: int
) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, n, CHUNK):
        count = min(CHUNK, n - start)
        if concepts is None:
            yield decoder.decode(torch.randn(count, width, generator=generator)).cpu()
        else:
            yield decoder.decode(concepts.inverse(concepts.drawn(count, generator=generator))).cpu()


def generate(decoder: Pipeline | Decoder, concepts: ConceptModel, n: int, seed: int = 0) -> Tensor:
    """Return `n` images (n, C, H, W) in [0, 1]: D(e⁻¹(n)), n ~ N(0, s²) (IIN eq. 13), see `generate_batches`.

    Args:
        decoder: D, or the fitted parts.
        concepts: e over z_bar, best an unsupervised one.
        n: Images, all held at once; `generate_batches` yields them.
        seed: Of the draws.

    Raises:
        ConfigError: e does not work on z_bar, or `n` is not positive.
    """
    return torch.cat(list(generate_batches(decoder, concepts, n, seed)))


@dataclass(frozen=True)
class Comparison(Result):
    """One kind of image against the reference.

    Attributes:
        name: What it is.
        distance: Fréchet distance to the reference images, the mean over trials.
        deviation: Standard deviation over trials; nan for one.
        pictures: Some of them (S, C, H, W).
    """

    name: str
    distance: float
    deviation: float
    pictures: Tensor = field(repr=False)


@dataclass(frozen=True)
class GenerativeQuality(Result):
    """IIN tab. 2: how far what is generated is from real images.

    Attributes:
        comparisons: Real images of the other half (the floor), reconstructions of these, samples of e, and samples of
            N(0, 1).
        network: Whose features the distance is over.
        width: Their number.
        images: Images of each kind, and of the reference.
        trials: Independent sets of samples.
    """

    comparisons: tuple[Comparison, ...]
    network: str
    width: int
    images: int
    trials: int

    def __getitem__(self, name: str) -> Comparison:
        return by_name(self.comparisons, name, "comparison")

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        distances = "; ".join(f"{c.name} {_text(c)}" for c in self.comparisons)
        return (
            f"Fréchet distance to {self.images} real images over the {self.width} features of {self.network}, each for "
            f"as many images: {distances}. Other real images are the floor that nothing can beat. Reconstructions are "
            "the best that the decoder can do. What samples of e lose beyond reconstructions, e loses; what they gain "
            "over decoded samples of N(0, 1), e has learned. " + comparability(self.network, self.width, self.images)
        )

    def figure(self) -> Figure:
        """Draw pictures of each kind, one row a kind, with their distance."""
        return grid(
            columns_of(torch.stack([c.pictures for c in self.comparisons])),
            row_labels=[f"{shortened(c.name, 32)}\nFréchet {_text(c)}" for c in self.comparisons],
        )


def _text(comparison: Comparison) -> str:
    if math.isfinite(comparison.deviation):
        return f"{comparison.distance:.4g} ± {comparison.deviation:.2g}"
    return f"{comparison.distance:.4g}"


@torch.no_grad()
def generative_quality(
    pipeline: Pipeline,
    concepts: ConceptModel,
    images: Tensor | Iterable[Tensor],
    *,
    features: Features | None = None,
    name: str | None = None,
    trials: int = 1,
    seed: int = 0,
) -> GenerativeQuality:
    """Compare samples of e, of N(0, 1), and reconstructions with real images by their Fréchet distance.

    Half of the images are the reference. The other half are the floor, and what is reconstructed; as many samples are
    drawn. All distances so rest on equal numbers of images, and their bias is the same.

    Args:
        pipeline: The fitted parts.
        concepts: e over z_bar, best an unsupervised one.
        images: The user's held-out tensors (B, C, H, W), or batches of them, which are read once; thousands.
        features: As for `FeatureNetwork`. None takes Inception where its weights are on this machine, else the
            pipeline's own layer; the result says which.
        name: Of the network; needed for a function.
        trials: Sets of samples, for the deviation (the paper has three).
        seed: Of all draws.

    Raises:
        ConfigError: e does not work on z_bar, `trials` is not positive, or see `FeatureNetwork`.
        DataError: There are fewer than 4 images.
        PluginError: torchmetrics is not installed.
    """
    if trials < 1 or concepts.space != "z_bar":
        raise ConfigError(f"Samples need an e over z_bar and at least one trial; got {concepts.space} and {trials}.")
    if features is None and inception_weights() is None:
        features = pipeline
    network = FeatureNetwork(features, name=name)
    generator = torch.Generator().manual_seed(seed)
    floor, rebuilt, sampled, halving = Frechet(), Frechet(), Frechet(), Halving(seed)
    shown: dict[str, list[Tensor]] = {REAL: [], RECONSTRUCTED: []}
    for part in batches(images):
        real = pipeline.adapter.to_images(part).cpu()
        found = network(real)
        first, second = halving(len(part))
        for reference in (floor, rebuilt, sampled):
            reference.add(found[first], real=True)
        floor.add(found[second], real=False)
        others = part[second]
        if len(others):
            mean, std = pipeline.encode(others)
            decoded = pipeline.decode(drawn(mean, std, generator)).cpu()
            rebuilt.add(network(decoded), real=False)
            shown[REAL].append(real[second][:SHOWN])
            shown[RECONSTRUCTED].append(decoded[:SHOWN])
            shown = {key: [torch.cat(parts)[:SHOWN]] for key, parts in shown.items()}
    count = floor.generated
    if count < 2:
        raise DataError(
            f"Generative quality needs 4 images at least, and thousands to mean something; got {count * 2}."
        )
    results = [
        Comparison(REAL, floor.compute(), math.nan, shown[REAL][0]),
        Comparison(RECONSTRUCTED, rebuilt.compute(), math.nan, shown[RECONSTRUCTED][0]),
    ]
    for kind, model in ((OF_E, concepts), (OF_PRIOR, None)):
        results.append(_of_samples(kind, pipeline, model, network, sampled, count=count, trials=trials, seed=seed))
    return GenerativeQuality(tuple(results), network.name, floor.width, count, trials)


def _of_samples(
    kind: str,
    pipeline: Pipeline,
    model: ConceptModel | None,
    network: FeatureNetwork,
    sampled: Frechet,
    *,
    count: int,
    trials: int,
    seed: int,
) -> Comparison:
    """Compare `trials` sets of `count` samples of e, or of N(0, 1) without one, with the real images in `sampled`."""
    values, pictures = [], torch.empty(0)
    for trial in range(trials):
        sampled.forget_generated()
        made = generate_batches(pipeline, model, count, derived(seed, "trial", trial), dim=pipeline.latent_dim)
        for batch in made:
            sampled.add(network(batch), real=False)
            pictures = pictures if len(pictures) else batch[:SHOWN]
        values.append(sampled.compute())
    distance = torch.tensor(values, dtype=torch.float64)
    deviation = float(distance.std()) if trials > 1 else math.nan
    return Comparison(kind, float(distance.mean()), deviation, pictures)
