"""True likelihood of t: nats with all constants, what bounds them, and whether v came out as N(0, 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from scipy import stats
from torch import Tensor

from posthoc_inn.analysis.intervals import joint_freedom
from posthoc_inn.analysis.ladder import Rung, ladder, rung
from posthoc_inn.analysis.results import Result
from posthoc_inn.autoencoders.base import CHUNK
from posthoc_inn.flows import ConditionalFlow, computing_in
from posthoc_inn.objectives import drawn, encoder_noise_entropy, standard_normal_nll
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.rows.cache import Cache
from posthoc_inn.seeds import derived
from posthoc_inn.training import History, Verdict


@dataclass(frozen=True)
class Likelihood(Result):
    """Negative log-likelihood of z_bar given z, in nats per image with all constants.

    Attributes:
        held_out: On held-out images.
        held_out_error: Its standard error.
        held_out_per_dim: Divided by D.
        train: On as many training images.
        gap: Held-out minus training: what t has learned by heart.
        gap_error: Its standard error, over images.
        gap_per_dim: `gap` divided by D.
        doubling_gain: Nats that twice the steps are expected to gain (`History.expected_gain`); nan where the curve is
            too short to tell.
        standard_normal: Of the same latents under N(0, 1): what a t that does nothing would give.
        noise_floor: Entropy of the noise of codes, the encoder's and what was added (`Pipeline.code_noise`), which no t
            can go below.
        v_mean: Mean of v over all dimensions; 0 for a perfect t.
        v_std: Standard deviation of v; 1 for a perfect t.
        round_trip: Largest |t⁻¹(t(z_bar)) - z_bar| seen, in float32, which everything after training uses.
        bf16_round_trip: The same with t's hidden layers in bf16, as in training where the machine is fast at it.
        bf16_error: Root mean square of what bf16 changes in t⁻¹(v), z_bar having a deviation of about 1.
        bf16_held_out: `held_out`, computed in bf16.
        verdict: Converged, still improving, overfitting or diverged.
        advice: What to do about it, in a sentence.
        is_linear: Whether t is the linear Gaussian in closed form, chosen or in the trained one's place.
        trained: `held_out` of the t that was trained, which is t unless the linear one stands in for it; nan where it
            was not measured, as the three that follow.
        linear: The same of the linear t (ridge regression with a full residual covariance, in closed form).
        linear_gain: Nats by which the trained t is likelier than the linear one.
        linear_gain_error: Its standard error.
        ladder: What simpler answers cost on the same latents, t itself, and the floor; see `Rung`.
    """

    held_out: float
    held_out_error: float
    held_out_per_dim: float
    train: float
    standard_normal: float
    noise_floor: float
    v_mean: float
    v_std: float
    round_trip: float
    bf16_round_trip: float
    bf16_error: float
    bf16_held_out: float
    verdict: Verdict
    advice: str
    is_linear: bool = False
    trained: float = math.nan
    linear: float = math.nan
    linear_gain: float = math.nan
    linear_gain_error: float = math.nan
    gap: float = math.nan
    gap_error: float = math.nan
    gap_per_dim: float = math.nan
    doubling_gain: float = math.nan
    ladder: tuple[Rung, ...] = ()


ADVICE: dict[Verdict, str] = {
    "converged": "More steps would not gain; a wider preset might.",
    "still improving": "More steps would still gain: train longer (--steps).",
    "overfitting": "t fits its training images better than held-out ones; the weights that were best on held-out ones "
    "were kept. More images, or more random draws of each, help most.",
    "diverged": "Do not trust the samples: lower the learning rate or look at the data for outliers.",
}

LOOKS = 2048
"""Images that round trips, and what precision changes, are measured on."""

MATTERS = 0.02
"""Nats a dimension that matter: of a gap to training images, of a rise of the curve, of what more steps would gain."""
CHANCE = 1e-3
"""Share of flows without any gap whose gap is taken for one."""


@dataclass(frozen=True)
class _Rows:
    """Some rows of a cache: their numbers (N,), H(z), z_bar drawn from the encoder, and its deviation (N, D)."""

    cache: Cache
    index: Tensor
    context: Tensor
    z_bar: Tensor
    std: Tensor


def _context(pipeline: Pipeline, cache: Cache, index: Tensor) -> Tensor:
    # z itself can be large: it is read in parts.
    return torch.cat([pipeline.context(cache["z"].rows(part)) for part in index.split(CHUNK)])


def _drawn(pipeline: Pipeline, cache: Cache, limit: int, seed: int) -> _Rows:
    """Return up to `limit` rows, chosen at random."""
    index = cache.some(limit, seed=seed)
    mean, std = cache["mean"].rows(index), cache["std"].rows(index)
    return _Rows(cache, index, _context(pipeline, cache, index), drawn(mean, std, seed), std)


@torch.no_grad()
def held_out_nats(pipeline: Pipeline, held_out: Cache, *, limit: int = 10_000, seed: int = 0) -> Tensor:
    """Return t's nats of each held-out row, (N,), for the same rows and draws as `likelihood` with this seed."""
    rows = _drawn(pipeline, held_out, limit, seed)
    return pipeline.invariances(rows.z_bar, rows.context)[1].double().cpu()


def _inverse(pipeline: Pipeline, v: Tensor, context: Tensor) -> Tensor:
    return pipeline.flow.inverse_many(v[:LOOKS, None], context[:LOOKS])[:, 0].cpu()


@torch.no_grad()
def likelihood(
    pipeline: Pipeline,
    train: Cache,
    held_out: Cache,
    history: History,
    *,
    trained: ConditionalFlow | None = None,
    linear: ConditionalFlow | None = None,
    draws: int = 1,
    limit: int = 10_000,
    seed: int = 0,
) -> Likelihood:
    """Measure t's likelihood on cached latents.

    Args:
        pipeline: The fitted parts.
        train: Cache of training images, with z, mean and std.
        held_out: The same for held-out images.
        history: Of t's training, for the verdict.
        trained: The t that was trained; the pipeline's by default.
        linear: The linear t for the same rows, to compare with.
        draws: Rows of each training image.
        limit: Images of each used at the most.
        seed: Seed of the encoder's noise.
    """
    rows = _drawn(pipeline, held_out, limit, seed)
    context, z_bar = rows.context, rows.z_bar
    v, nll = pipeline.invariances(z_bar, context)
    back = _inverse(pipeline, v, context)
    with computing_in(pipeline.flow, torch.bfloat16):
        low_v, low_nll = pipeline.invariances(z_bar[:LOOKS], context[:LOOKS])
        low_back = _inverse(pipeline, low_v, context)
        low_sample = _inverse(pipeline, v, context)
    trained_on = _drawn(pipeline, train, limit, derived(seed, "train"))
    _, train_nll = pipeline.invariances(trained_on.z_bar, trained_on.context)
    nll, train_nll = nll.double().cpu(), train_nll.double().cpu()
    gap, gap_error, is_overfit = generalisation_gap(nll, train_nll, dim=pipeline.latent_dim, draws=draws)
    error = float(nll.std() / math.sqrt(len(nll)))
    verdict = history.verdict(tolerance=MATTERS * pipeline.latent_dim, error=error if len(nll) > 1 else math.inf)
    if verdict == "converged" and is_overfit:
        verdict = "overfitting"
    its, simpler = (None if flow is None else _nats(pipeline, flow, rows, nll) for flow in (trained, linear))
    rungs = ladder(
        train,
        z_bar,
        rows.std,
        nll,
        linear=simpler,
        other=lambda places: pipeline.invariances(z_bar, context[places.to(context.device)])[1],
        seed=seed,
    )
    return Likelihood(
        held_out=float(nll.mean()),
        held_out_error=error,
        held_out_per_dim=float(nll.mean()) / pipeline.latent_dim,
        train=float(train_nll.mean()),
        standard_normal=float(standard_normal_nll(z_bar).double().mean()),
        noise_floor=float(encoder_noise_entropy(rows.std).double().mean()),
        v_mean=float(v.mean()),
        v_std=float(v.std()),
        round_trip=float((back - z_bar[:LOOKS]).abs().max()),
        bf16_round_trip=float((low_back - z_bar[:LOOKS]).abs().max()),
        bf16_error=float((low_sample - back).square().mean().sqrt()),
        bf16_held_out=float(nll.mean() + (low_nll.double().cpu() - nll[:LOOKS]).mean()),
        verdict=verdict,
        advice=ADVICE[verdict],
        is_linear=not pipeline.flow.is_trained,
        gap=gap,
        gap_error=gap_error,
        gap_per_dim=gap / pipeline.latent_dim,
        doubling_gain=history.expected_gain(),
        ladder=rungs,
        **_beside(nll if its is None else its, simpler),
    )


def generalisation_gap(held_out: Tensor, train: Tensor, *, dim: int, draws: int = 1) -> tuple[float, float, bool]:
    """Return held-out minus training nats, its standard error, and whether that is overfitting.

    It is where the gap is more than `MATTERS` a dimension, and more than chance makes of none in all but `CHANCE` of
    cases (Welch's t, one-sided).

    Args:
        held_out: Nats of each held-out image, (N,).
        train: Nats of each training row, (M,).
        dim: D.
        draws: Rows of each training image: together they tell as much as one.

    >>> generalisation_gap(torch.tensor([3.0, 5.0, 4.0]), torch.tensor([1.0, 3.0, 2.0]), dim=2)
    (2.0, 0.816496580927726, False)
    """
    gap, counts = float(held_out.mean() - train.mean()), (len(held_out), max(1, len(train) // draws))
    if min(*counts, len(train)) < 2:
        return gap, math.nan, False
    variances = float(held_out.var()) / counts[0], float(train.var()) / counts[1]
    error = math.sqrt(sum(variances))
    freedom = joint_freedom(variances, counts)
    is_clear = float(stats.t.sf(gap / error, freedom)) < CHANCE if error > 0 else gap > 0
    return gap, error, is_clear and gap > MATTERS * dim


def _nats(pipeline: Pipeline, flow: ConditionalFlow, rows: _Rows, nll: Tensor) -> Tensor:
    """Return what rows cost under a flow, (N,), `nll` being what they cost under t."""
    if flow is pipeline.flow:
        return nll
    own = replace(pipeline, flow=flow)
    # Each flow has an H of its own: z has to be read again, of the same rows.
    return own.invariances(rows.z_bar, _context(own, rows.cache, rows.index))[1].double().cpu()


def _beside(its: Tensor, linear: Tensor | None) -> dict[str, float]:
    """Return how the trained t, under which rows cost `its` (N,), does against the linear one."""
    if linear is None:
        return {}
    found = rung("linear", linear, its)
    return {
        "trained": float(its.mean()),
        "linear": found.nats,
        "linear_gain": found.gain,
        "linear_gain_error": found.gain_error,
    }
