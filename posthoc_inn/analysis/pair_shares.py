"""What of a concept the layer determines, by pairs that share it: what their images do not share drops out.

MSC eq. 20 asks for the variance of a factor of e, of which a part, at times all, has nothing to do with the concept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posthoc_inn import drawing
from posthoc_inn.analysis.factor_quality import FactorQuality, factor_quality
from posthoc_inn.analysis.intervals import LEAST
from posthoc_inn.analysis.pair_covariance import NAN, covariance_ratio, pair_weights, slope_of
from posthoc_inn.analysis.results import Result, by_name
from posthoc_inn.concepts import RANDOM, ConceptModel, WithRandom
from posthoc_inn.errors import ConfigError, DataError, ShapeError, listed
from posthoc_inn.objectives import drawn
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.protocols import ConceptSource
from posthoc_inn.rows.pairs import RowPairs
from posthoc_inn.seeds import derived

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAIRS_AN_IMAGE = 16
"""Pairs drawn a concept and image: with more, the images and not the pairs limit what is known."""
MOST_IMAGES = 2000
"""Images that pairs are drawn from, at the most."""
ENCODINGS = 4
"""Draws of the encoder that a factor's values are averaged over."""


@dataclass(frozen=True)
class PairShare(Result):
    """What of a concept the layer determines.

    Attributes:
        name: The concept.
        value: Share of what pairs have in common that z determines; nan where e has not learned the concept.
        standard_error: Over images.
        interval: At 95 %, over images (Fieller); nan where e has not learned the concept, or for fewer than ten images.
        is_learned: Whether the images of a pair have anything in common in the factor: the interval of `common` lies
            above 0.
        common: What the images of a pair have in common in the factor, Σ_d cov(e_d(a), e_d(b)), in units of the
            factors' variance: about the number of dimensions that hold the concept.
        common_error: Its standard error.
        common_interval: At 95 %.
        quality: What the factor holds.
        images: Effective number of images in these pairs.
        note: Why there is nothing, or "".
        slope: What f was multiplied by, of a regression of each image's e on its own f: 1 where t is right. A t that
            is not, or an e that answers samples otherwise than images, makes f vary too much (below 1) or too little.
        slope_error: Its standard error, over images, which counts in the share's.
    """

    name: str
    value: float
    standard_error: float
    interval: tuple[float, float]
    is_learned: bool
    common: float
    common_error: float
    common_interval: tuple[float, float]
    quality: FactorQuality
    images: float
    note: str = ""
    slope: float = math.nan
    slope_error: float = math.nan

    @property
    def unscaled(self) -> float:
        """The share as f gives it, without the slope."""
        return self.value / self.slope if self.slope else math.nan


@dataclass(frozen=True)
class PairShares(Result):
    """What of each concept the layer determines, by pairs.

    Attributes:
        concepts: One a concept, the random one last where there is one.
        images: Images that pairs were drawn from.
        draws: Draws of v for each of them.
        are_held_out: Whether e was trained without these images. Pairs of training images flatter it.
        layer: The layer.
    """

    concepts: tuple[PairShare, ...]
    images: int
    draws: int
    are_held_out: bool
    layer: str = ""

    def __getitem__(self, name: str) -> PairShare:
        return by_name(self.concepts, name, "concept")

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        missing = [c.name for c in self.concepts if not c.is_learned and c.name != RANDOM]
        parts = [
            "Share of what the images of a pair have in common, in the concept's factor, that the layer determines: "
            "cov(f(z of one), e of the other) / cov(e of one, e of the other), f being the mean of e over samples. "
            "1: the layer fixes the concept as far as e knows it; 0: it holds nothing of it. Lines: 95 % intervals "
            "over images. Dimensions that pairs do not share drop out of both, which they do not in MSC eq. 20."
        ]
        if missing:
            parts.append(
                f"Not learned by e: {listed(missing)}: images that share it have nothing in common in its factor, so "
                "that nothing can be said of the layer."
            )
        above = [c.name for c in self.concepts if c.interval[0] > 1]
        if above:
            parts.append(
                f"Above 100 % ({listed(above)}): samples show e the concept more clearly than images do, and the "
                "scaling by a slope did not undo it all; read it as all of it."
            )
        if not self.are_held_out:
            parts.append("Measured on pairs of training images, for want of others: they flatter e.")
        parts.append("What not to conclude: that the model uses what the layer holds.")
        return " ".join(parts)

    def figure(self, ax: Axes | None = None) -> Figure:
        """Draw a bar a concept with its interval; concepts that e has not learned have words instead."""
        shown = [c for c in self.concepts if c.name != RANDOM]
        figure, ax = drawing.axes(ax, 6.4, 0.42 * len(shown) + 0.9)
        for row, concept in enumerate(reversed(shown)):
            if not concept.is_learned:
                ax.text(0.012, row, "not learned by e", va="center", size=8, color=drawing.SOFT)
                continue
            low, high = (min(max(x, 0.0), 1.0) if math.isfinite(x) else math.nan for x in concept.interval)
            value = min(max(concept.value, 0.0), 1.0)
            ax.barh(row, value, color=drawing.BLUE, height=0.62)
            ax.plot([low, high], [row, row], color=drawing.INK, linewidth=1.2)
            end = max(value, high if math.isfinite(high) else value)
            ax.text(end + 0.012, row, f"{100 * concept.value:.1f} %", va="center", size=8, color=drawing.INK)
        ax.set_yticks(range(len(shown)), [drawing.as_label(c.name) for c in reversed(shown)])
        drawing.plain(ax)
        ax.tick_params(axis="y", labelsize=9, labelcolor=drawing.INK)
        ax.set(xlim=(0, 1.12), xlabel="share of what pairs have in common that z determines")
        return figure


@dataclass(frozen=True)
class PairedRows:
    """Rows that pairs were drawn from, and the pairs.

    Attributes:
        index: Which rows, (N,).
        a: First images, as places in `index`, (P,).
        b: Second images, likewise.
        shared: Which factors a pair shares, residual first, (P, K + 1).
        values: Concept -> its values at these rows, where they are known.
    """

    index: Tensor
    a: Tensor
    b: Tensor
    shared: Tensor
    values: Mapping[str, Tensor] = field(default_factory=dict)


def paired_rows(
    source: ConceptSource, names: tuple[str, ...], count: int, *, limit: int = MOST_IMAGES, seed: int = 0
) -> PairedRows:
    """Draw pairs of some of `count` rows.

    Args:
        source: Numbers the rows.
        names: e's concepts; with "(random)" among them, pairs that share nothing are drawn too.
        count: Rows there are.
        limit: Rows that pairs are drawn from, at the most.
        seed: Of rows and pairs.

    Raises:
        DataError: The source has other concepts, or there are no pairs.
    """
    found = (*source.names, RANDOM) if RANDOM in names else tuple(source.names)
    if found != tuple(names):
        raise DataError(
            f"e knows the concepts {listed([n for n in names if n != RANDOM])}, these pairs are of "
            f"{listed(list(source.names))}: give the same, in the same order."
        )
    generator = torch.Generator().manual_seed(derived(seed, "paired rows"))
    index = torch.randperm(count, generator=generator)[:limit].sort().values
    subset = getattr(source, "subset", None)
    if count > limit and callable(subset):
        try:
            source = subset(index)
        except DataError:  # pairs are rare: rather those there are, of as many images as the limit allows
            index = torch.arange(count)
    else:
        index = torch.arange(count)
    wanted = PAIRS_AN_IMAGE * min(len(index), limit) * len(names)
    pairs = RowPairs(WithRandom(source) if RANDOM in names else source)
    a, b, shared = pairs.draw(wanted, seed=seed)
    while len(a) > 1 and len(torch.cat([a, b]).unique()) > limit:
        a, b, shared = (part[: len(a) // 2] for part in (a, b, shared))
    used, place = torch.unique(torch.cat([a, b]), return_inverse=True)
    values = getattr(source, "values", None) or {}
    return PairedRows(
        index[used],
        place[: len(a)],
        place[len(a) :],
        shared,
        {name: values[name][used] for name in source.names if name in values},
    )


@torch.no_grad()
def pair_shares(
    pipeline: Pipeline,
    concepts: ConceptModel,
    rows: PairedRows,
    z: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    images: Tensor | None = None,
    samples: int = 10_000,
    seed: int = 0,
    are_held_out: bool = True,
) -> PairShares:
    """Return what of each concept the layer determines, by pairs of images that share it.

    With f(z) the mean over v of e(t⁻¹(v given z)), for pairs (a, b) that share the concept and nothing else::

        Σ_d cov(f_d(z_a), e_d(b)) / Σ_d cov(e_d(a), e_d(b))

    is 1 where z determines what the pairs have in common, and 0 where it says nothing of it. t need not work on e.
    But it must be right: of a t that was trained for 20 steps f varies twice as much with z as images do, and shares
    of 1.6 come out. So f is multiplied by the slope of a regression of each image's e on its own f, in the dimensions
    that hold the concept; it is 1 where f is what its name says.

    Args:
        pipeline: The fitted parts.
        concepts: e over z_bar.
        rows: Which rows, and their pairs (`paired_rows`).
        z: Representations of these rows (N, *z_shape).
        mean: Means of their latents, (N, D).
        std: Deviations of their latents, (N, D).
        images: The image that each row is of, (N,); by default each is of its own.
        samples: Latents in all: images × draws of v.
        seed: Of v and of the encoder's noise.
        are_held_out: Whether e was trained without these images.

    Raises:
        ConfigError: e is over a layer's z, or knows no concepts.
        ShapeError: Numbers of rows differ.
    """
    if concepts.space != "z_bar" or not concepts.names:
        raise ConfigError("Shares by pairs ask an e over the autoencoder's latents that knows concepts.")
    count = len(rows.index)
    if not count == len(z) == len(mean) == len(std):
        raise ShapeError(f"There are {count} rows with pairs, {len(z)} z, {len(mean)} means and {len(std)} deviations.")
    images = torch.arange(count) if images is None else images
    draws = max(4, min(64, samples // count))
    halves = [_expected(pipeline, concepts, z, draws // 2, derived(seed, "half", k)) for k in (0, 1)]
    f = (halves[0] + halves[1]) / 2
    generator = torch.Generator().manual_seed(derived(seed, "encoder"))
    drawn_once = [concepts.joined(drawn(mean, std, generator)).cpu() for _ in range(ENCODINGS)]
    e = torch.stack(drawn_once).double().mean(dim=0)
    found = []
    for k, name in enumerate(concepts.names, 1):
        part = concepts.part(name)
        weights = pair_weights(rows.a, rows.b, rows.shared, k, images)
        quality = factor_quality(concepts, name, e, drawn_once[0], weights, rows.values.get(name), images, seed=seed)
        if weights is None:
            note = "its pairs differ in it alone; such pairs do not tell what images that share it have in common"
            found.append(PairShare(name, math.nan, math.nan, NAN, False, math.nan, math.nan, NAN, quality, 0.0, note))
            continue
        importance = torch.tensor(quality.correlations).clamp_min(0)
        slope = slope_of((halves[0][:, part], halves[1][:, part]), e[:, part], importance, images)
        ratio = covariance_ratio(f[:, part], e[:, part], weights, slope)
        is_learned = ratio.is_told_from_zero
        note = "" if is_learned else "images that share it have nothing in common in its factor"
        if not math.isfinite(ratio.lower_interval[0]):
            note = f"there are pairs of fewer than {LEAST} images, which tell nothing"
        found.append(
            PairShare(
                name,
                ratio.value if is_learned else math.nan,
                ratio.error if is_learned else math.nan,
                ratio.interval,
                is_learned,
                ratio.lower,
                ratio.lower_error,
                ratio.lower_interval,
                quality,
                ratio.images,
                note,
                slope.value,
                slope.error,
            )
        )
    return PairShares(tuple(found), len(images.unique()), draws, are_held_out, pipeline.extractor.layer)


def _expected(pipeline: Pipeline, concepts: ConceptModel, z: Tensor, draws: int, seed: int) -> Tensor:
    """Return f(z), the mean of e over samples, (N, D): each image has draws of v of its own, so that errors average."""
    generator = torch.Generator().manual_seed(derived(seed, "v"))
    means = []
    for part in pipeline.context(z).split(max(1, 16_384 // draws)):
        v = torch.randn(len(part), draws, pipeline.latent_dim, generator=generator)
        means.append(concepts.joined(pipeline.sample_latents(part, v)).cpu().double().mean(dim=1))
    return torch.cat(means)
