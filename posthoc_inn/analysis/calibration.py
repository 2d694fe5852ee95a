"""Is v of held-out images N(0, 1) and independent of z, and do t's intervals hold what they say? It can fail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from posthoc_inn.analysis.dependence import distance_correlations
from posthoc_inn.analysis.results import Result, share_with_error
from posthoc_inn.autoencoders.base import CHUNK
from posthoc_inn.errors import DataError
from posthoc_inn.objectives import drawn
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.rows.cache import Cache
from posthoc_inn.seeds import derived

LEVEL = 0.05
"""How often an exact t is refused by one or more checks, at the most."""
LEAST = 20
"""Images below which nothing is checked."""
IMAGES = 1000
"""Held-out images that v is looked at for."""
INTERVALS = 500
"""Of them, those that t's intervals are drawn for."""
DEPENDENT = 400
"""Of them, those between which distances are taken."""
DRAWS = 19
"""Samples an image: a value lies between the least and the largest of them in 18 of 20 cases, 90 %."""
NULLS = 499
"""Permutations, and simulated covariances."""
COORDINATES = 4096
"""Values of z that distances are taken over."""
BINS = 20


@dataclass(frozen=True)
class Check(Result):
    """One check of a t against what an exact one gives.

    Attributes:
        name: "norm", "tail", "mean", "covariance", "independence", "size and z", "coverage" or "coverage by dimension".
        value: What was found.
        expected: What an exact t gives.
        p: How often an exact t gives as much or more.
        p_adjusted: The same, allowing for the other checks (Holm).
        passes: Whether that is above 5 %.
    """

    name: str
    value: float
    expected: float
    p: float
    p_adjusted: float = math.nan
    passes: bool = True


@dataclass(frozen=True)
class Calibration(Result):
    """How v of held-out images compares with N(0, 1), and t's samples with the latents they stand for.

    Attributes:
        passes: Whether all checks do; an exact t fails in 5 % of all measurements.
        checks: Each of them.
        images: Held-out images.
        dim: D.
        tail: Share of the images whose ‖v‖² lies beyond the 95 % point of chi-squared with D degrees of freedom.
        tail_error: Its standard error.
        norms: Numbers of images by the chi-squared probability of ‖v‖², in 20 equal bins.
        eigenvalues: Least and largest of the covariance of v.
        eigenvalues_of_exact: What the least of an exact t seldom (2.5 %) is below, and the largest above.
        dependence: Squared distance correlation of v and z, corrected for bias; 0 where they are independent.
        coverage: Share of latents' values, all dimensions together, that lie between the least and the largest of 19
            samples of t for their z; 0.9 for an exact t. The latent is a draw of the encoder, as t models it.
        coverage_error: Its standard error over images.
        coverage_by_dimension: The same by dimension.
        coverage_images: Images that this was measured on.
    """

    passes: bool
    checks: tuple[Check, ...]
    images: int
    dim: int
    tail: float
    tail_error: float
    norms: tuple[int, ...]
    eigenvalues: tuple[float, float]
    eigenvalues_of_exact: tuple[float, float]
    dependence: float
    coverage: float
    coverage_error: float
    coverage_by_dimension: tuple[float, ...]
    coverage_images: int


def holm(checks: Sequence[Check], level: float = LEVEL) -> tuple[Check, ...]:
    """Return the checks with probabilities that allow for there being several (Holm 1979).

    >>> [c.p_adjusted for c in holm([Check("a", 0, 0, 0.5), Check("b", 0, 0, 0.01), Check("c", 0, 0, 0.02)])]
    [0.5, 0.03, 0.04]
    """
    order = sorted(range(len(checks)), key=lambda k: checks[k].p)
    adjusted, least = [0.0] * len(checks), 0.0
    for place, k in enumerate(order):
        least = max(least, min(1.0, (len(checks) - place) * checks[k].p))
        adjusted[k] = least
    return tuple(replace(c, p_adjusted=p, passes=p > level) for c, p in zip(checks, adjusted, strict=True))


def calibration_of(v: Tensor, z: Tensor, is_inside: Tensor, *, permutations: int = NULLS, seed: int = 0) -> Calibration:
    """Check v of independent images.

    Args:
        v: Invariances (N, D) at draws of the encoder.
        z: Their representations (N, ...), on a scale that makes their values comparable.
        is_inside: Which of their latents' values lie between the least and the largest of `DRAWS` samples, (M, D),
            boolean, of M images.
        permutations: And simulated covariances: what chance gives.
        seed: Of these.

    Raises:
        DataError: There are fewer than 20 images.
    """
    count, dim = v.shape
    if count < LEAST:
        raise DataError(f"Calibration needs at least {LEAST} held-out images, got {count}.")
    x = v.double().cpu().numpy()
    norms = np.square(x).sum(1)
    beyond = int((norms > stats.chi2.ppf(0.95, dim)).sum())
    eigenvalues, spread = _eigenvalues(np.cov(x.T).reshape(dim, dim))
    limits, p_covariance = _covariance_of_exact(count - 1, dim, spread, permutations, seed)
    some = slice(0, DEPENDENT)
    sizes = v[some].double().square().sum(1, keepdim=True)
    (own, p_own), (size, p_size) = distance_correlations(
        [v[some].cpu(), sizes.cpu()], z[some].cpu(), permutations=permutations, seed=derived(seed, "permutations")
    )
    inside = is_inside.double().mean(1)
    coverage, coverage_error = share_with_error(inside.tolist())
    by_dimension = is_inside.double().mean(0)
    exact = 1 - 2 / (DRAWS + 1)
    hits = is_inside.sum(0).tolist()
    least = min(stats.binomtest(int(k), len(is_inside), exact).pvalue for k in hits)
    worst = by_dimension[(by_dimension - exact).abs().argmax()]
    # Of images that are all alike in this there is no spread, and no test.
    p_coverage = float(stats.ttest_1samp(inside.numpy(), exact).pvalue) if coverage_error > 0 else 1.0
    found = stats.kstest(norms, "chi2", args=(dim,))
    several = (
        Check("norm", float(norms.mean()) / dim, 1.0, float(found.pvalue)),
        Check("tail", beyond / count, 0.05, float(stats.binomtest(beyond, count, 0.05).pvalue)),
        Check("mean", float(np.sqrt(np.square(x.mean(0)).mean())), 0.0, _p_of_mean(x)),
        Check("covariance", spread, 0.0, p_covariance),
        Check("independence", own, 0.0, p_own),
        Check("size and z", size, 0.0, p_size),
        Check("coverage", coverage, exact, p_coverage),
        Check("coverage by dimension", float(worst), exact, min(1.0, dim * float(least))),
    )
    checks = holm(several)
    bins = np.histogram(stats.chi2.cdf(norms, dim), bins=BINS, range=(0, 1))[0]
    return Calibration(
        passes=all(check.passes for check in checks),
        checks=checks,
        images=count,
        dim=dim,
        tail=beyond / count,
        tail_error=math.sqrt(beyond * (count - beyond) / count**3),
        norms=tuple(int(k) for k in bins),
        eigenvalues=eigenvalues,
        eigenvalues_of_exact=limits,
        dependence=own,
        coverage=coverage,
        coverage_error=coverage_error,
        coverage_by_dimension=tuple(by_dimension.tolist()),
        coverage_images=len(is_inside),
    )


def _p_of_mean(x: NDArray[np.float64]) -> float:
    """Return how often the mean of as many exact v lies as far from 0: its squared length is chi-squared."""
    return float(stats.chi2.sf(len(x) * np.square(x.mean(0)).sum(), x.shape[1]))


def _eigenvalues(covariance: NDArray[np.float64]) -> tuple[tuple[float, float], float]:
    """Return the least and the largest eigenvalue, and the mean of their squared differences to 1."""
    values = np.linalg.eigvalsh(covariance)
    return (float(values[0]), float(values[-1])), float(np.square(values - 1).mean())


def _covariance_of_exact(
    freedom: int, dim: int, spread: float, draws: int, seed: int
) -> tuple[tuple[float, float], float]:
    """Return limits of the eigenvalues of exact v's covariance, and how often it differs from 1 by `spread` or more."""
    random = np.random.default_rng(derived(seed, "covariance"))
    # Eigenvalues of a large one take long: the limits need fewer than the probability does.
    looked_at = draws if dim <= 64 else 100
    least, largest, at_least = [], [], 0
    for k in range(draws):
        covariance = _wishart(freedom, dim, random)
        own = float((np.square(covariance).sum() - 2 * np.trace(covariance)) / dim + 1)
        at_least += own >= spread * (1 - 1e-9)
        if k < looked_at:
            ends, _ = _eigenvalues(covariance)
            least.append(ends[0])
            largest.append(ends[1])
    return (float(np.quantile(least, 0.025)), float(np.quantile(largest, 0.975))), (at_least + 1) / (draws + 1)


def _wishart(freedom: int, dim: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Return the covariance (D, D) of `freedom` + 1 draws of N(0, 1)."""
    if freedom < dim:
        x = random.standard_normal((freedom, dim))
        return x.T @ x / freedom
    # Bartlett: as many random numbers as there are values, however many draws.
    factor = np.tril(random.standard_normal((dim, dim)), -1)
    factor[np.diag_indices(dim)] = np.sqrt(random.chisquare(freedom - np.arange(dim)))
    return factor @ factor.T / freedom


@torch.no_grad()
def calibration(pipeline: Pipeline, held_out: Cache, *, permutations: int = NULLS, seed: int = 0) -> Calibration | None:
    """Check t on cached held-out images, which must have chosen nothing.

    None for fewer than 20 of them, and for a t that has diverged: its v is not finite.

    Args:
        pipeline: The fitted parts.
        held_out: Cache with z, mean and std.
        permutations: And simulated covariances: what chance gives.
        seed: Of the images, the encoder's noise, samples and permutations.
    """
    if len(held_out) < LEAST:
        return None
    index = held_out.some(IMAGES, seed=derived(seed, "calibration"))
    z_bar = drawn(held_out["mean"].rows(index), held_out["std"].rows(index), derived(seed, "noise")).flatten(1)
    context = torch.cat([pipeline.context(held_out["z"].rows(part)) for part in index.split(CHUNK)])
    v = pipeline.invariances(z_bar, context)[0]
    if not bool(torch.isfinite(v).all()):
        return None
    generator = torch.Generator().manual_seed(derived(seed, "intervals"))
    few, inside = index[:INTERVALS], []
    for part in torch.arange(len(few)).split(CHUNK):
        draws = torch.randn(len(part), DRAWS, pipeline.latent_dim, generator=generator)
        samples = pipeline.sample_latents(context[part.to(context.device)], draws).cpu()
        own = z_bar[part]
        inside.append((samples.amin(1) < own) & (own < samples.amax(1)))
    z = _standardized(pipeline, held_out, index[:DEPENDENT], seed)
    return calibration_of(v, z, torch.cat(inside), permutations=permutations, seed=seed)


def _standardized(pipeline: Pipeline, held_out: Cache, index: Tensor, seed: int) -> Tensor:
    """Return values of standardised z of these rows, (N, M): of many, some at random."""
    count = math.prod(pipeline.z_shape)
    pick = torch.randperm(count, generator=torch.Generator().manual_seed(derived(seed, "values")))[:COORDINATES]
    conditioner = pipeline.flow.conditioner
    parts = [
        conditioner.standardize(held_out["z"].rows(part).to(pipeline.device)).flatten(1)[:, pick.to(pipeline.device)]
        for part in index.split(64)
    ]
    return torch.cat(parts).cpu()
