"""Covariances within pairs of images, and ratios of them, with intervals over images: each is in many pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from posthoc_inn.analysis.intervals import LEAST, LEVEL

NAN = (math.nan, math.nan)
LEAST_VARIATION = 3.0
"""Standard errors that the variance of f has to be above 0, for f to be scaled."""


@dataclass(frozen=True)
class Weights:
    """Pairs, and how much each counts in the covariance that goes with a concept.

    Attributes:
        a: First rows of the pairs, (P,).
        b: Second rows, (P,).
        each: Weight of each pair, (P,).
        mean: Weight of each row in the mean, (N,), adding up to 1.
        expected: Projection that takes products of pairs to what is expected of them, as two factors (P, J) and
            (J, P): of their masks, or of the group of images that they are in, such as a class.
        images: The image that each row is of, (N,), from 0.
    """

    a: Tensor
    b: Tensor
    each: Tensor
    mean: Tensor
    expected: tuple[Tensor, Tensor]
    images: Tensor


def pair_weights(a: Tensor, b: Tensor, shared: Tensor, k: int, images: Tensor) -> Weights | None:
    """Return what pairs count in the covariance that goes with sharing concept `k`; None where no pair shares it.

    Pairs that share `k` and nothing else are averaged. Where there are not enough of them, because pairs share several
    concepts at once, cov(x^a, x^b) = Σ_j shared_j C_j is solved for C_k by least squares over all pairs, as
    `posthoc_inn.training.moments.pair_moments` does. Pairs of one image with itself are left out, and so are pairs that
    share the residual, which differ in one concept alone.

    Args:
        a: Rows of the first images, (P,).
        b: Rows of the second images, (P,).
        shared: Which factors they share, residual first, (P, K + 1).
        k: Which concept, from 1.
        images: The image that each row is of, (N,); several rows can be draws of one.
    """
    keep = ~shared[:, 0] & (images[a] != images[b])
    alone = keep & shared[:, k] & (shared.sum(dim=1) == 1)
    sharing = keep & shared[:, k]
    if not bool(sharing.any()):
        return None
    _, images = torch.unique(images, return_inverse=True)
    count = len(images)
    if int(alone.sum()) >= max(2, int(sharing.sum()) // 4):
        a, b = a[alone], b[alone]
        each = torch.full((len(a),), 1 / len(a), dtype=torch.float64)
        return Weights(a, b, each, _frequency(a, b, count), _groups(a, b, images), images)
    used = shared[keep].any(dim=0).nonzero()[:, 0]
    masks = shared[keep][:, used].double()
    solve = torch.linalg.pinv(masks.T @ masks, hermitian=True) @ masks.T  # (J, P)
    each = solve[int((used == k).nonzero())]
    return Weights(a[keep], b[keep], each, _frequency(a[sharing], b[sharing], count), (masks, solve), images)


def _groups(a: Tensor, b: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the projection onto means within groups of images that pairs join, where a group has many images.

    Pairs of a category join the images of one value. The values are given: that they differ in how much they share is
    no error of the estimate. Small groups, such as pairs that have no image in common, tell of images alone.
    """
    count = int(images.max()) + 1
    graph = coo_array((np.ones(len(a)), (images[a].numpy(), images[b].numpy())), shape=(count, count))
    label = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
    sizes = torch.bincount(label)
    group = torch.where(sizes[label[images[a]]] >= LEAST, label[images[a]], -1)
    values, group = torch.unique(group, return_inverse=True)
    onto = torch.zeros(len(a), len(values), dtype=torch.float64)
    onto[torch.arange(len(a)), group] = 1
    return onto, (onto / onto.sum(dim=0)).T


def _frequency(a: Tensor, b: Tensor, count: int) -> Tensor:
    found = torch.bincount(torch.cat([a, b]), minlength=count).double()
    return found / found.sum()


@dataclass(frozen=True)
class Ratio:
    """A covariance within pairs divided by another, over the same pairs.

    Attributes:
        value: The ratio.
        error: Its standard error, over images.
        interval: At 95 %, by Fieller's theorem; nan where the lower one is not told from 0, or for fewer than ten
            images.
        lower: The covariance that is divided by.
        lower_error: Its standard error.
        lower_interval: At 95 %.
        images: Images in these pairs, those that are in more of them counting for more.
    """

    value: float
    error: float
    interval: tuple[float, float]
    lower: float
    lower_error: float
    lower_interval: tuple[float, float]
    images: float

    @property
    def is_told_from_zero(self) -> bool:
        """Whether the lower covariance's interval lies above 0."""
        return self.lower_interval[0] > 0


@dataclass(frozen=True)
class Slope:
    """How much of f's variance over images is in e: of a regression of each image's e on its own f.

    Attributes:
        value: The slope: 1 where f is the mean of e given z, below 1 where it varies too much with z.
        error: Its standard error, over images.
        scores: What each image adds to it, (number of images,).
    """

    value: float
    error: float
    scores: Tensor


def slope_of(halves: tuple[Tensor, Tensor], e: Tensor, importance: Tensor, images: Tensor) -> Slope:
    """Return the slope of e on f, and 1 without an error where f hardly varies: there is nothing to scale.

    Args:
        halves: f from two independent sets of draws, whose covariance is free of their noise, (N, d) each.
        e: Values of the factor, (N, d).
        importance: How much each dimension counts, (d,), not negative.
        images: The image that each row is of, (N,).
    """
    _, images = torch.unique(images, return_inverse=True)
    count = int(images.max()) + 1
    first, second, e = (x.double() - x.double().mean(dim=0) for x in (*halves, e))
    products = torch.stack([(first + second) / 2 * e, first * second], dim=1) @ importance.double()
    own = torch.zeros(count, 2, dtype=torch.float64).index_add_(0, images, products)
    both, alone = own.sum(dim=0).tolist()
    noise = float(own[:, 1].std()) * count**0.5 if count > 1 else math.inf
    if not alone > LEAST_VARIATION * noise:
        return Slope(1.0, 0.0, torch.zeros(count, dtype=torch.float64))
    value = both / alone
    scores = (own[:, 0] - value * own[:, 1]) / alone
    return Slope(value, float(scores.square().sum() * count / (count - 1)) ** 0.5, scores)


def covariance_ratio(f: Tensor, e: Tensor, weights: Weights, slope: Slope | None = None) -> Ratio:
    """Return Σ_d cov(f_d(a), e_d(b)) / Σ_d cov(e_d(a), e_d(b)) over pairs (a, b), with intervals over images.

    Both covariances are unbiased: the product of the means, of which each is estimated from the same images, is taken
    over different images. An image is in many pairs: the variance adds up pairs that have an image in common (Cameron
    and Miller: Robust inference for dyadic data, 2014). The interval of the ratio is Fieller's, which is finite exactly
    where the interval of what is divided by excludes 0.

    Args:
        f: What is asked about each row, (N, d).
        e: The factor's values, (N, d).
        weights: Of the pairs.
        slope: What f is multiplied by, whose own error counts too.

    >>> g = torch.Generator().manual_seed(0)
    >>> c = torch.randn(500, 1, generator=g).repeat_interleave(2, dim=0)  # each two rows share a value
    >>> e = c + torch.randn(1000, 1, generator=g)
    >>> a = torch.arange(0, 1000, 2)
    >>> pairs = pair_weights(a, a + 1, torch.tensor([[False, True]]).expand(500, 2), 1, torch.arange(1000))
    >>> found = covariance_ratio(0.5 * c, e, pairs)
    >>> found.is_told_from_zero, 0.4 < found.value < 0.6
    (True, True)
    """
    w = weights
    used = w.mean > 0
    f, e = (x.double() - (w.mean[:, None] * x.double()).sum(dim=0) for x in (f, e))
    a, b = w.a, w.b
    f = f if slope is None else slope.value * f
    # Each pair in both orders.
    products = torch.stack([(f[a] * e[b] + f[b] * e[a]).sum(dim=1) / 2, (e[a] * e[b]).sum(dim=1)], dim=1)
    found = w.each @ products
    clusters = int(w.images.max()) + 1
    own = torch.zeros(clusters, 2, f.shape[1], dtype=torch.float64)
    own.index_add_(0, w.images, torch.stack([w.mean[:, None] * f, w.mean[:, None] * e], dim=1))
    weight = torch.zeros(clusters, dtype=torch.float64).index_add_(0, w.images, w.mean)
    same = float(weight.square().sum())
    # The means are 0 by now; what is left of their product over different images is minus that over equal ones.
    found = found + w.each.sum() * torch.stack([(own[:, k] * own[:, 1]).sum() for k in (0, 1)]) / max(1e-12, 1 - same)
    expected = w.expected[0] @ (w.expected[1] @ products)
    leverage = (w.expected[0] * w.expected[1].T).sum(dim=1)
    of_images = torch.zeros(clusters, 2, dtype=torch.float64)
    if slope is not None and slope.value:
        of_images[:, 0] = float(found[0]) / slope.value * slope.scores
    scores = w.each[:, None] * (products - expected)
    variance = _dyadic_variance(scores, w.images[a], w.images[b], leverage, of_images)
    count = 1 / same if same > 0 else 0.0
    reach = float(stats.t.ppf((1 + LEVEL) / 2, max(1.0, count - 1)))
    has_interval = len(torch.unique(w.images[used])) >= LEAST
    upper, lower = found.tolist()
    of_upper, of_both, of_lower = float(variance[0, 0]), float(variance[0, 1]), float(variance[1, 1])
    value = upper / lower if lower else math.nan
    error = (
        math.sqrt(max(0.0, of_upper - 2 * value * of_both + value**2 * of_lower)) / abs(lower) if lower else math.nan
    )
    lower_error = math.sqrt(of_lower)
    below = (lower - reach * lower_error, lower + reach * lower_error) if has_interval else NAN
    interval = _fieller(upper, lower, variance, reach) if below[0] > 0 else NAN
    return Ratio(value, error, interval, lower, lower_error, below, count)


def _fieller(upper: float, lower: float, variance: Tensor, reach: float) -> tuple[float, float]:
    """Return the θ with (upper - θ lower)² ≤ reach² Var(upper - θ lower)."""
    (of_upper, of_both), (_, of_lower) = (reach**2 * variance).tolist()
    square, middle, rest = lower**2 - of_lower, upper * lower - of_both, upper**2 - of_upper
    root = math.sqrt(max(0.0, middle**2 - square * rest))
    return (middle - root) / square, (middle + root) / square


def _dyadic_variance(scores: Tensor, a: Tensor, b: Tensor, leverage: Tensor, alone_of_images: Tensor) -> Tensor:
    """Return Σ u uᵀ over pairs of pairs with an image in common, (2, 2), for scores u (P, 2) of pairs of images.

    An image's sum of scores is what the estimate would lose without it, as by the jackknife: divided by 1 minus its
    leverage, the share that its own pairs have in what is expected of them. What an image adds apart from pairs,
    (images, 2), comes on top.
    """
    count = len(alone_of_images)
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    _, place = torch.unique(low * count + high, return_inverse=True)
    of_pairs = torch.zeros(int(place.max()) + 1, 2, dtype=torch.float64).index_add_(0, place, scores)
    of_images = torch.zeros(count, 2, dtype=torch.float64).index_add_(0, a, scores).index_add_(0, b, scores)
    own = torch.zeros(count, dtype=torch.float64).index_add_(0, a, leverage).index_add_(0, b, leverage)
    of_images = of_images / (1 - own.clamp_max(0.5))[:, None] + alone_of_images
    alone = of_pairs.T @ of_pairs
    # Two images of a pair have it in common twice.
    variance = of_images.T @ of_images - alone
    # What is left can come out too small, even negative, where images say nothing by themselves; pairs always do.
    values, vectors = torch.linalg.eigh(variance - alone)
    found: Tensor = alone + (vectors * values.clamp_min(0)) @ vectors.T
    return found
