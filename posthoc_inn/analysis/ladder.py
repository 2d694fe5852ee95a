"""A ladder of likelihoods: what simpler answers than t would cost on the same held-out latents, each beside t."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_inn.analysis.results import Result
from posthoc_inn.autoencoders.base import CHUNK
from posthoc_inn.flows.linear import LinearGaussian
from posthoc_inn.flows.linear_fit import FOLDS, Moments, fit_moments
from posthoc_inn.objectives import encoder_noise_entropy, flow_nll, standard_normal_nll
from posthoc_inn.rows.cache import Cache
from posthoc_inn.seeds import derived

GAUSSIAN_ROWS = 50_000
"""Training rows that the one Gaussian is fitted to at the most."""


@dataclass(frozen=True)
class Rung(Result):
    """What one answer costs, beside t on the same images and the same draws of the encoder.

    Attributes:
        name: "standard_normal", "gaussian", "linear", "other_z", "t" or "noise_floor".
        nats: Mean negative log-likelihood of a held-out latent, in nats with all constants.
        gain: Nats by which t is likelier: `nats` less those of t.
        gain_error: Standard error of `gain` over images, paired: both costs are of the same latents.
    """

    name: str
    nats: float
    gain: float
    gain_error: float


def rung(name: str, costs: Tensor, own: Tensor) -> Rung:
    """Return the rung of an answer that costs `costs` (N,) nats where t costs `own` (N,).

    >>> rung("gaussian", torch.tensor([3.0, 5.0]), torch.tensor([1.0, 1.0]))
    Rung(name='gaussian', nats=4.0, gain=3.0, gain_error=1.0)
    """
    gain = costs.double().cpu() - own.double().cpu()
    error = float(gain.std() / math.sqrt(len(gain))) if len(gain) > 1 else math.nan
    return Rung(name, float(costs.double().mean()), float(gain.mean()), error)


def derangement(count: int, *, seed: int) -> Tensor:
    """Return for each of `count` rows, 2 or more, the number of another, no row twice: one random cycle of all.

    >>> other = derangement(5, seed=0)
    >>> sorted(other.tolist()), bool((other == torch.arange(5)).any())
    ([0, 1, 2, 3, 4], False)
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derived(seed, "derangement")))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other


def gaussian_of(train: Cache, *, seed: int) -> LinearGaussian:
    """Return one Gaussian for all training latents: their mean and full covariance, the encoder's noise included.

    The covariance is moved towards its diagonal by the share that parts of the rows, left out in turn, are likeliest
    under.
    """
    dim = math.prod(train["mean"].shape)
    folds = [Moments.zeros(0, dim) for _ in range(FOLDS)]
    index = train.some(GAUSSIAN_ROWS, seed=seed)
    for k, fold in enumerate(folds):
        for part in index[k::FOLDS].sort().values.split(CHUNK):
            mean, std = (train[name].rows(part).flatten(1).double() for name in ("mean", "std"))
            fold.add(mean.new_zeros(len(part), 0), mean, std)
    found = fit_moments(folds)
    model = LinearGaussian(dim, (1,))
    model.set(found.mean, torch.zeros(dim, 1), found.scale)
    return model


def ladder(
    train: Cache,
    z_bar: Tensor,
    std: Tensor,
    own: Tensor,
    *,
    linear: Tensor | None,
    other: Callable[[Tensor], Tensor],
    seed: int,
) -> tuple[Rung, ...]:
    """Return the rungs, from the answer that knows nothing to the floor that nothing can go below.

    Args:
        train: Training rows, for the one Gaussian.
        z_bar: Held-out latents at a draw of the encoder, (N, D).
        std: The encoder's deviation there, (N, D).
        own: What they cost under t, (N,).
        linear: What they cost under the linear t, (N,), or None.
        other: Returns what they cost under t where each gets the z of the row at these numbers (N,).
        seed: Of the rows that others' z are taken from.
    """
    z_bar, std = z_bar.cpu(), std.cpu()
    rungs = [rung("standard_normal", standard_normal_nll(z_bar), own)]
    if len(train) > 1:
        model = gaussian_of(train, seed=seed)
        rungs.append(rung("gaussian", flow_nll(*model(z_bar, model.mean)), own))
    if linear is not None:
        rungs.append(rung("linear", linear, own))
    if len(z_bar) > 1:
        rungs.append(rung("other_z", other(derangement(len(z_bar), seed=seed)), own))
    rungs.append(rung("t", own, own))
    if bool((std > 0).all()):  # a generator's latents are known without noise
        rungs.append(rung("noise_floor", encoder_noise_entropy(std), own))
    return tuple(rungs)
