"""What z and v contribute to each concept (MSC eq. 20), apart from what depends on t's choice of v."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posthoc_inn import drawing
from posthoc_inn.analysis.intervals import LEAST, joint_freedom, share_interval
from posthoc_inn.analysis.results import Result, by_name
from posthoc_inn.concepts import RANDOM, RESIDUAL, ConceptModel
from posthoc_inn.errors import ConfigError, ShapeError
from posthoc_inn.pipeline import Pipeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_IMAGES = 3
"""Images, and draws, that shares need: the jackknife leaves one out, and two have to be left."""
MEASURES = ("total_effect", "first_order", "interaction", "explained_by_v")


@dataclass(frozen=True)
class Share(Result):
    """A share of a factor's variance.

    Attributes:
        value: The share; estimates are unbiased in each variance, so that one near 0 can come out slightly below it.
        standard_error: Jackknife over images and draws of v.
        interval: At 95 %, over images and draws of v (`share_interval`); nan for fewer than 10 images.
    """

    value: float
    standard_error: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class ConceptShares(Result):
    """How z and v share a factor's variance. With z and v independent these are Sobol indices.

    Attributes:
        name: The concept.
        total_effect: Of z, MSC eq. 20: E_v' Var_x e(t⁻¹(v' given Φ(x))) / Var. What the papers report. It rises with
            every turn of v that differs from z to z, which leaves t's likelihood as it is.
        first_order: Of z: 1 - E_x Var_v e / Var. Does not depend on which v stands for what.
        interaction: Their difference, where both matter together: t's choice of v, or a real interaction.
        explained_by_v: Total effect of v, MSC eq. 19 in the factor: 1 - first_order.
    """

    name: str
    total_effect: Share
    first_order: Share
    interaction: Share
    explained_by_v: Share


@dataclass(frozen=True)
class ConceptRelevance(Result):
    """Relevance of a layer for each concept.

    Attributes:
        concepts: One a factor, residual first, the random concept last where there is one.
        images: Images that gave a z.
        draws: Draws of v, each used with every z.
        layer: The layer.
    """

    concepts: tuple[ConceptShares, ...]
    images: int
    draws: int
    layer: str = ""

    def __getitem__(self, name: str) -> ConceptShares:
        return by_name(self.concepts, name, "concept")

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        return (
            "Dark: the part of each concept's variance that the layer fixes for every v (first-order share of z). Dark "
            "and light together: the papers' measure (total effect of z, MSC eq. 20). Conclude from the dark part. The "
            "light part depends on which v t happens to use for what; it also holds real interactions. A concept no "
            "higher than the random one (dashed) is not shown to be in the layer. What not to conclude: that the model "
            "uses what the layer holds."
        )

    def figure(self, ax: Axes | None = None) -> Figure:
        """Draw a bar a concept: first-order share, interaction on top of it, and the random concept's level."""
        figure, ax = drawing.axes(ax, 6.4, 0.42 * len(self.concepts) + 0.9)
        shown = [c for c in self.concepts if c.name != RANDOM]
        for row, concept in enumerate(reversed(shown)):
            first = max(0.0, concept.first_order.value)
            total = max(first, concept.total_effect.value)
            low, high = concept.total_effect.interval
            ax.barh(row, first, color=drawing.BLUE, height=0.62)
            ax.barh(row, total - first, left=first, color=drawing.BLUE, alpha=0.3, height=0.62)
            ax.plot([max(0, low), high], [row, row], color=drawing.INK, linewidth=1.2)
            text = f"{100 * concept.first_order.value:.1f} / {100 * concept.total_effect.value:.1f} %"
            ax.text(max(total, high) + 0.012, row, text, va="center", size=8, color=drawing.INK)
        null = next((c for c in self.concepts if c.name == RANDOM), None)
        if null is not None:
            ax.axvline(null.total_effect.value, color=drawing.SOFT, linewidth=1, linestyle=(0, (4, 3)))
            ax.text(
                null.total_effect.value,
                len(shown) - 0.42,
                "random concept, total",
                size=7.5,
                color=drawing.SOFT,
                ha="left",
                va="bottom",
            )
        ax.set_yticks(range(len(shown)), [drawing.as_label(c.name) for c in reversed(shown)])
        drawing.plain(ax)
        ax.tick_params(axis="y", labelsize=9, labelcolor=drawing.INK)
        ax.set(xlim=(0, 1.12), xlabel="share of the concept's variance that z explains: first order / total effect")
        return figure


def _shares(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return total effect, first order, interaction of z and total effect of v, (R, 4), for weights (R, X) and (R, V).

    Two-way analysis of variance without replication, images × draws, summed over dimensions; the expectations of its
    mean squares give unbiased estimates of the three variances. Weights are numbers of times a row or column is used;
    a row used twice is not a second observation, which the coefficients allow for.
    """
    x, v, d = table.shape
    a, b = rows / rows.sum(1, keepdim=True), columns / columns.sum(1, keepdim=True)
    flat = table.reshape(x, v * d)
    by_image = torch.einsum("xvd,rv->rxd", table, b)
    by_draw = (a @ flat).reshape(len(a), v, d)
    mean = torch.einsum("rx,rxd->rd", a, by_image)
    squares = torch.einsum("rx,xv,rv->r", a, table.square().sum(-1), b)
    of_images = torch.einsum("rx,rx->r", a, by_image.square().sum(-1))
    of_draws = torch.einsum("rv,rv->r", b, by_draw.square().sum(-1))
    m = mean.square().sum(-1)
    # Var of a weighted sample: E[...] = (1 - Σ w²) σ².
    ka, kb = 1 - a.square().sum(1), 1 - b.square().sum(1)
    both = (squares - of_images - of_draws + m) / (ka * kb)  # σ²_xv
    image = (of_images - m) / ka - (1 - kb) * both  # σ²_x
    draw = (of_draws - m) / kb - (1 - ka) * both  # σ²_v
    total = (image + draw + both).clamp_min(1e-30)
    return torch.stack([(image + both) / total, image / total, both / total, (draw + both) / total], dim=1)


def variance_shares(values: Tensor, name: str = "") -> ConceptShares:
    """Return MSC eq. 20 and the first-order share from values on a grid of images and draws.

    Args:
        values: A factor's values (X, V, d), for X images and V draws of v, the same draws at every image.
        name: Of the concept.

    Raises:
        ShapeError: There are fewer than three images or draws (the jackknife leaves one out).

    >>> x = torch.randn(300, 1, 2, generator=torch.Generator().manual_seed(0))
    >>> v = torch.randn(1, 60, 2, generator=torch.Generator().manual_seed(1))
    >>> shares = variance_shares(x + v)
    >>> round(shares.total_effect.value, 1), round(shares.interaction.value, 3)
    (0.5, 0.0)
    """
    if values.ndim != 3 or min(values.shape[:2]) < LEAST_IMAGES or not values.shape[2]:
        raise ShapeError(f"Values must be (X, V, d) with at least 3 images and 3 draws, got {tuple(values.shape)}.")
    table = values.double()
    table = table - table.mean(dim=(0, 1))
    x, v, _ = table.shape
    ones_x, ones_v = torch.ones(1, x, dtype=torch.float64), torch.ones(1, v, dtype=torch.float64)
    value = _shares(table, ones_x, ones_v)[0]
    variances = []
    for n, is_image in ((x, True), (v, False)):
        left = []
        for part in torch.arange(n).split(64):
            weight = torch.ones(len(part), n, dtype=torch.float64)
            weight[torch.arange(len(part)), part] = 0
            fixed = (ones_v if is_image else ones_x).expand(len(part), -1)
            left.append(_shares(table, weight, fixed) if is_image else _shares(table, fixed, weight))
        joined = torch.cat(left)
        variances.append(((n - 1) / n * (joined - joined.mean(dim=0)).square().sum(dim=0)).tolist())
    shares = []
    for one, of_images, of_draws in zip(value.tolist(), *variances, strict=True):
        error = (of_images + of_draws) ** 0.5
        freedom = joint_freedom((of_images, of_draws), (x, v))
        shares.append(Share(one, error, share_interval(one, error, freedom) if x >= LEAST else (nan, nan)))
    return ConceptShares(name, *shares)


@torch.no_grad()
def concept_relevance(
    pipeline: Pipeline,
    concepts: ConceptModel,
    z: Tensor,
    *,
    samples: int = 10_000,
    draws: int | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> ConceptRelevance:
    """Return how much of each concept the layer determines (MSC eq. 20), for representations of held-out images.

    Every draw of v is used with every image: only so can the share of z be told from that of z and v together.

    Args:
        pipeline: The fitted parts.
        concepts: e over z_bar.
        z: Representations (B, *z_shape).
        samples: Latents in all (the paper's 10 000): images × draws.
        draws: Draws of v; by default about a quarter of the number of images.
        seed: Of v.
        names: Concepts to report; all, residual and random ones too, by default.

    Raises:
        ConfigError: e is over a layer's z, or there are too few samples.
        UnknownNameError: There is no such concept.
        ShapeError: There are fewer than 3 images.
    """
    if concepts.space != "z_bar":
        raise ConfigError("Concept relevance asks e about latents of the autoencoder; this e is over a layer's z.")
    if samples < 9 or (draws is not None and draws < 3):
        raise ConfigError(f"samples must be at least 9 and draws at least 3, got {samples} and {draws}.")
    count = draws or max(3, min(100, round((samples / 4) ** 0.5)))
    images = min(len(z), max(3, samples // count))
    shown = [RESIDUAL, *concepts.names] if names is None else [concepts.factor_names[concepts.index(n)] for n in names]
    context = pipeline.context(z[:images])
    v = torch.randn(count, pipeline.latent_dim, generator=torch.Generator().manual_seed(seed))
    tables = [concepts.joined(pipeline.sample_latents(part, v)).cpu() for part in context.split(max(1, 65536 // count))]
    table = torch.cat(tables)
    found = [variance_shares(table[..., concepts.part(name)], name) for name in shown]
    return ConceptRelevance(tuple(found), images, count, pipeline.extractor.layer)


def linear_gaussian_shares(z_part: Tensor, v_part: Tensor) -> Mapping[str, float]:
    """Return the exact shares of a factor A z + B v with z, v ~ N(0, 1): what estimates are checked against.

    Args:
        z_part: A, (d, dim of z).
        v_part: B, (d, dim of v).

    >>> linear_gaussian_shares(torch.tensor([[1.0]]), torch.tensor([[1.0]]))["total_effect"]
    0.5
    """
    from_z, from_v = float(z_part.double().square().sum()), float(v_part.double().square().sum())
    share = from_z / (from_z + from_v)
    return {"total_effect": share, "first_order": share, "interaction": 0.0, "explained_by_v": 1 - share}
