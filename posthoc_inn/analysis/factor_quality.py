"""Whether a factor of e holds its concept: correlations of held-out pairs, nats, and probes of the concept's values."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posthoc_inn.analysis.pair_covariance import Weights
from posthoc_inn.analysis.results import Result
from posthoc_inn.concepts import ConceptModel

HOLDS = 0.2
"""Correlation from which on a dimension is counted as holding something."""
FOLDS = 5
PROBED = 1000
"""Images that probes are fitted to, at the most."""
MOST_CLASSES = 50
"""Categories that a probe tells apart, at the most."""


@dataclass(frozen=True)
class Probe(Result):
    """How well a linear model tells the concept's values, cross-validated over images.

    Attributes:
        measure: "accuracy" of a logistic regression for categories, "r2" of a ridge regression for numbers.
        own: From the concept's own factor.
        others: From all other factors.
        chance: What the most frequent category alone gives; 0 for R².
        images: Images with a value.
    """

    measure: str
    own: float
    others: float
    chance: float
    images: int


@dataclass(frozen=True)
class FactorQuality(Result):
    """What a factor of e holds, on images that e was not trained with unless it is said otherwise.

    Attributes:
        correlations: Of each dimension, between the images of pairs that share the concept.
        assumed: What e assumes them to be; nan where that is not known.
        holding: Dimensions whose correlation is `HOLDS` or more.
        nats: What knowing that a pair shares the concept is worth under e's likelihood, in nats a pair: below 0 where e
            assumes more than there is. nan where what e assumes is not known.
        deviations: Standard deviation of each dimension.
        probe: Of the concept's values, where they are known and there are enough.
    """

    correlations: tuple[float, ...]
    assumed: tuple[float, ...]
    holding: int
    nats: float
    deviations: tuple[float, ...]
    probe: Probe | None = None


def factor_quality(
    concepts: ConceptModel,
    name: str,
    e: Tensor,
    drawn: Tensor,
    weights: Weights | None,
    values: Tensor | None,
    images: Tensor,
    *,
    seed: int = 0,
) -> FactorQuality:
    """Judge one factor.

    Args:
        concepts: e.
        name: The concept.
        e: Values of all factors, averaged over the encoder's noise, (N, D).
        drawn: The same at one draw, (N, D).
        weights: Of the pairs that share the concept; None where there are none.
        values: The concept's values, (N,) or (N, d); None where they are not known.
        images: The image that each row is of, (N,).
        seed: Of the images that probes are fitted to.
    """
    part = concepts.part(name)
    assumed = concepts.rho[part].cpu().double()
    own = drawn[:, part].double()
    correlations: tuple[float, ...] = ()
    nats = math.nan
    if weights is not None:
        correlations = _correlations(own, weights)
        nats = _gain(own, weights, assumed)
    return FactorQuality(
        correlations,
        tuple(assumed.tolist()),
        sum(c >= HOLDS for c in correlations),
        nats,
        tuple(own.std(dim=0).tolist()),
        None if values is None else probe(e.float(), part, values, images, seed=seed),
    )


def _correlations(own: Tensor, w: Weights) -> tuple[float, ...]:
    mean = (w.mean[:, None] * own).sum(dim=0)
    x = own - mean
    variance = (w.mean[:, None] * x.square()).sum(dim=0)
    common = (w.each[:, None] * x[w.a] * x[w.b]).sum(dim=0)
    return tuple((common / variance.clamp_min(1e-12)).clamp(-1, 1).tolist())


def _gain(own: Tensor, w: Weights, rho: Tensor) -> float:
    """Return the mean of log p(b given a, shared) - log p(b), in nats a pair, over both orders."""
    sharing = w.each > 0
    a, b = own[w.a[sharing]], own[w.b[sharing]]
    left = (1 - rho) * (1 + rho)
    found = [0.5 * (y.square() - (y - rho * x).square() / left - left.log()).sum(dim=1) for x, y in ((a, b), (b, a))]
    return float(torch.stack(found).mean())


def probe(e: Tensor, part: slice, values: Tensor, images: Tensor, *, seed: int = 0) -> Probe | None:
    """Tell a concept's values from its own factor, and from all others; None where there are too few values.

    Args:
        e: Values of all factors, (N, D).
        part: Which of them are the concept's own.
        values: Categories (N,), negative where missing; or numbers (N,) or (N, d), not finite where missing.
        images: The image that each row is of, (N,): rows of one image stay in one fold.
        seed: Of the images that are used.
    """
    is_number = values.is_floating_point()
    target = values.reshape(len(values), -1)
    known = torch.isfinite(target).all(dim=1) if is_number else target[:, 0] >= 0
    generator = torch.Generator().manual_seed(seed)
    used = known.nonzero()[:, 0]
    used = used[torch.randperm(len(used), generator=generator)[:PROBED]]
    if not is_number:
        found, counts = torch.unique(target[used, 0], return_counts=True)
        kept = found[counts >= FOLDS]
        used = used[torch.isin(target[used, 0], kept)]
        if not 2 <= len(kept) <= MOST_CLASSES:
            return None
    groups = images[used].numpy()
    if len(np.unique(groups)) < 4 * FOLDS:
        return None
    others = torch.cat([e[:, : part.start], e[:, part.stop :]], dim=1)
    wanted = target[used].double().numpy() if is_number else target[used, 0].numpy()
    own, rest = (_score(x[used].double().numpy(), wanted, groups, is_number) for x in (e[:, part], others))
    chance = 0.0 if is_number else float(np.unique(wanted, return_counts=True)[1].max() / len(wanted))
    return Probe("r2" if is_number else "accuracy", own, rest, chance, len(np.unique(groups)))


def _score(x: Any, y: Any, groups: Any, is_number: bool) -> float:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.metrics import r2_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = RidgeCV(np.logspace(-2, 4, 7)) if is_number else LogisticRegression(C=0.3, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        told = cross_val_predict(make_pipeline(StandardScaler(), model), x, y, groups=groups, cv=GroupKFold(FOLDS))
    return float(r2_score(y, told, multioutput="variance_weighted")) if is_number else float((told == y).mean())
