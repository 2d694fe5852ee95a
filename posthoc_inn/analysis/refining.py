"""Latents moved by gradient steps until the model sees z in their pictures: Φ(D(z_bar)) = z, which t alone misses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posthoc_inn.analysis.faithfulness import PICTURES, Asked, Faithfulness
from posthoc_inn.analysis.results import Result, share_with_error
from posthoc_inn.autoencoders.base import CHUNK
from posthoc_inn.errors import ConfigError, ShapeError, is_count
from posthoc_inn.objectives import flow_nll, standard_normal_nll
from posthoc_inn.pipeline import Pipeline

ROWS = 64
"""Pictures that gradients go through at a time."""
LARGE_ROWS = 8
"""The same for a generator's own pictures, which can be large."""
RATE = 0.1
"""First step of a value of z_bar, in units of the deviation that t gives it for this z."""
LAST_RATE = 0.1
"""Last step, as a share of the first."""
BETAS = (0.9, 0.99)
"""Adam's moments."""
WEIGHT = 8.0
"""Nats a dimension of z_bar that a misfit of 1 costs."""
UNIT_DRAWS = 32
"""Samples of t for each z that the deviation is taken from."""

Cost = Callable[[Tensor], Tensor]
"""Latents (B, D) to nats (B,), differentiably."""


@dataclass(frozen=True)
class Refinement(Result):
    """What gradient steps did to samples.

    Attributes:
        steps: Steps taken.
        images: B, images that were sampled for.
        samples: N, samples of each.
        before: How the model sees the samples as t drew them.
        after: The same once they were moved.
        nats_before: Mean -log p(z_bar given z) of t for the samples as drawn, with all constants.
        nats: The same once they were moved: how unlikely t finds them. Higher by more than a few nats, they are no
            samples of t any more.
        nats_error: Standard error over images of the difference of the two.
        spread_kept: Variance of an image's samples around their mean, summed over latents, as a share of what it was
            before; nan for one sample an image.
        moved: Root mean square move of a value of z_bar, in units of the samples' own deviation before; nan likewise.
        seconds_per_sample: What moving took.
        latents: The moved latents, (B, N, D).
    """

    steps: int
    images: int
    samples: int
    before: Faithfulness
    after: Faithfulness
    nats_before: float
    nats: float
    nats_error: float
    spread_kept: float
    moved: float
    seconds_per_sample: float
    latents: Tensor = field(repr=False, compare=False)

    @property
    def caption(self) -> str:
        """What it did, and what it does not show."""
        spread = "" if math.isnan(self.spread_kept) else f", and {100 * self.spread_kept:.0f} % of their spread is left"
        told = (
            f"These samples were moved by {self.steps} gradient steps: the cosine similarity of their z to the image's "
            f"went from {self.before.similarity:.3f} to {self.after.similarity:.3f}{spread}. t finds them "
            f"{abs(self.nats - self.nats_before):.1f} nats {'less' if self.nats > self.nats_before else 'more'} likely "
            "than what it drew."
        )
        return (
            f"{told} The steps have asked this very model, so its predictions are no independent check of them; spread "
            "and likelihood are."
        )


def check_steps(steps: int) -> None:
    """Raise ConfigError where `steps` is no number of steps."""
    if not is_count(steps, 0):
        raise ConfigError(f"refine takes the number of gradient steps, 0 or more, got {steps!r}.")


def misfit(seen: Tensor, z: Tensor, mean: Tensor) -> Tensor:
    """Return ‖seen - z‖² / ‖z - mean‖², (B,): 0 for the same representation, 1 for one as far off as the mean is.

    Args:
        seen: Φ of pictures, (B, *z_shape).
        z: What they were made for, (B, *z_shape).
        mean: Of z over images; broadcasts to z.

    >>> z = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    >>> misfit(torch.zeros(2, 2), z, torch.zeros(2)).tolist(), misfit(z, z, torch.zeros(2)).tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """
    scale = (z - mean).square().flatten(1).sum(1)
    return (seen - z).square().flatten(1).sum(1) / scale.clamp_min(1e-12)


def moved(
    pipeline: Pipeline,
    latents: Tensor,
    z: Tensor,
    steps: int,
    *,
    prior: tuple[Tensor, Tensor] | None = None,
    weight: float = WEIGHT,
) -> Tensor:
    """Move each latent so that Φ(D(z_bar)) comes nearer to z, by `steps` steps of Adam; weights stay as they are.

    What is lowered, for each latent by itself, is::

        weight · D · ‖Φ(D(z_bar)) - z‖² / ‖z - mean z‖²  +  max(0, n(z_bar) - n(where it started))

    with n(z_bar) = -log p(z_bar given z) of t in nats. A sample may become less likely for t only by less than it
    gains, and is not drawn to the likeliest point, where samples would all be alike. The best point of the way is kept:
    none ends with more of the whole than it began with. Nothing here is random.

    Args:
        pipeline: The fitted parts.
        latents: z_bar where the way begins, (B, N, D): samples of t, or anything else.
        z: Representations, (B, *z_shape).
        steps: How many.
        prior: Mean and deviation (D,) of a normal distribution whose nats count in place of t's: guided search from
            random starts, without any t.
        weight: Nats a dimension that a misfit of 1 costs.

    Returns:
        Latents (B, N, D), on the pipeline's device.

    Raises:
        ConfigError: `steps` is negative, or no gradient comes from the model's z back to the latents.
        ShapeError: A shape is wrong.
    """
    check_steps(steps)
    if latents.ndim != 3 or latents.shape[0] != len(z) or latents.shape[2] != pipeline.latent_dim:
        raise ShapeError(
            f"Latents must be (B, N, {pipeline.latent_dim}) with B = {len(z)}, got {tuple(latents.shape)}."
        )
    latents = latents.detach().to(pipeline.device).float()
    if not steps or not latents.numel():
        return latents
    z = z.to(pipeline.device).float()
    if prior is None:
        context = pipeline.context(z)
        unit = _deviation(pipeline, context)
    else:
        context, unit = None, prior[1].to(latents).expand(len(z), -1)
    owner = torch.arange(len(z), device=latents.device).repeat_interleave(latents.shape[1])
    flat, size = latents.flatten(0, 1), LARGE_ROWS if hasattr(pipeline.autoencoder, "native") else ROWS
    parts = []
    with torch.inference_mode(False), torch.enable_grad():
        for rows, own in zip(flat.split(size), owner.split(size), strict=True):
            cost = _cost_of_prior(prior) if context is None else _cost_of_flow(pipeline, context[own].clone())  # type: ignore[arg-type]
            parts.append(_way(pipeline, rows.clone(), z[own].clone(), cost, steps=steps, unit=unit[own], weight=weight))
    return torch.cat(parts).view_as(latents)


def _deviation(pipeline: Pipeline, context: Tensor) -> Tensor:
    """Return the root mean square deviation of t's samples for each z, (B, 1): what steps are measured in."""
    v = torch.randn(UNIT_DRAWS, pipeline.latent_dim, generator=torch.Generator().manual_seed(0))
    drawn = [pipeline.sample_latents(part, v).var(1).mean(1, keepdim=True) for part in context.split(CHUNK)]
    return torch.cat(drawn).sqrt().clamp_min(1e-6)


def _cost_of_flow(pipeline: Pipeline, context: Tensor) -> Cost:
    return lambda z_bar: flow_nll(*pipeline.flow(z_bar, context))


def _cost_of_prior(prior: tuple[Tensor, Tensor]) -> Cost:
    mean, std = prior
    return lambda z_bar: standard_normal_nll((z_bar - mean.to(z_bar)) / std.to(z_bar))


def seen(pipeline: Pipeline, latents: Tensor) -> Tensor:
    """Return Φ(D(z_bar)), (B, *z_shape), with gradients where they are on."""
    native = getattr(pipeline.autoencoder, "native", None)
    pictures = pipeline.adapter.from_square(pipeline.autoencoder.decode(latents)) if native is None else native(latents)
    if torch.is_grad_enabled() and not pictures.requires_grad:
        raise ConfigError(
            "refine needs gradients, and the decoder passes none on: a generator from a file (ONNX, OpenVINO) or in "
            "NumPy gives pictures alone. Leave refine out, or give the decoder as a torch module."
        )
    adapter = pipeline.adapter
    inputs = adapter.pictures_to_model(pictures) if native is None else adapter.images_to_model(pictures)
    seen = pipeline.extractor.features(inputs).float()
    if torch.is_grad_enabled() and not seen.requires_grad:
        raise ConfigError(
            "refine needs gradients, and the model passes none from its images to this layer: it takes whole numbers "
            "(uint8), computes under torch.no_grad(), or leaves torch. Leave refine out, or use a model of "
            "differentiable torch operations."
        )
    return seen


def _way(
    pipeline: Pipeline, start: Tensor, z: Tensor, cost: Cost, *, steps: int, unit: Tensor, weight: float
) -> Tensor:
    """Return the best of the points that `steps` steps from `start` (B, D) pass."""
    mean = pipeline.flow.conditioner.z_mean.to(z)
    with torch.no_grad():
        most = cost(start)

    def total(point: Tensor) -> Tensor:
        return weight * start.shape[1] * misfit(seen(pipeline, point), z, mean) + (cost(point) - most).relu()

    best, least = start, torch.full_like(most, math.inf)
    point, first, second = start, torch.zeros_like(start), torch.zeros_like(start)
    for step in range(steps):
        point = point.detach().requires_grad_()
        value = total(point)
        (gradient,) = torch.autograd.grad(value.sum(), point)
        best, least = _better(best, least, point.detach(), value.detach())
        # One row that leaves the numbers' range must not take its moments with it.
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
        ahead = (first / (1 - BETAS[0] ** (step + 1))) / (second / (1 - BETAS[1] ** (step + 1))).sqrt().clamp_min(1e-12)
        left = 0.5 * (1 + math.cos(math.pi * step / steps))
        point = point.detach() - RATE * (LAST_RATE + (1 - LAST_RATE) * left) * unit * ahead
    with torch.no_grad():
        return _better(best, least, point, total(point))[0]


def _better(best: Tensor, least: Tensor, point: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the better of two points for each row, and its value; a value that is no number is never better."""
    is_better = value < least
    return torch.where(is_better[:, None], point, best), torch.where(is_better, value, least)


def guided(
    pipeline: Pipeline, z: Tensor, n: int = 8, steps: int = 100, *, known: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Find latents whose pictures have the representation z without any t: `moved` from random starts.

    What t has to beat. Its latents have no likelihood given z, and how they are spread is the starts' and the steps'
    doing: nothing makes them samples of all that have this z.

    Args:
        pipeline: The fitted parts; its t is not asked.
        z: Representations, (B, *z_shape).
        n: N, latents for each.
        steps: How many.
        known: Latents of images, or of a generator's prior, (M, D): starts are drawn from a normal distribution of
            their mean and deviations, which stands for t's likelihood too. N(0, 1) by default.
        seed: Of the starts.

    Returns:
        Latents (B, N, D).

    Raises:
        ConfigError: See `moved`.
    """
    zero = torch.zeros(pipeline.latent_dim)
    prior = (zero, zero + 1) if known is None else (known.float().mean(0).cpu(), known.float().std(0).cpu())
    generator = torch.Generator().manual_seed(seed)
    start = prior[0] + prior[1] * torch.randn(len(z), n, pipeline.latent_dim, generator=generator)
    return moved(pipeline, start, z, steps, prior=prior)


@torch.no_grad()
def refinement(
    pipeline: Pipeline,
    latents: Tensor,
    z: Tensor,
    prediction: Tensor | None,
    steps: int,
) -> Refinement:
    """Move samples towards their z (see `moved`), and measure what that did.

    Args:
        pipeline: The fitted parts.
        latents: Samples of t, (B, N, D).
        z: What they were drawn for, (B, *z_shape).
        prediction: What is compared of the model's predictions for the images, see `compare_with_model`; or None.
        steps: How many.

    Raises:
        ConfigError: See `moved`.
        ShapeError: See `moved`.
    """
    latents, count = latents.to(pipeline.device), latents.shape[1]
    started = time.perf_counter()
    found = moved(pipeline, latents, z, steps)
    seconds = (time.perf_counter() - started) / max(1, latents.shape[0] * count)
    context = pipeline.context(z).repeat_interleave(count, 0)
    before, after = (pipeline.invariances(part.flatten(0, 1), context)[1].double() for part in (latents, found))
    risen, error = share_with_error((after - before).view(-1, count).mean(1).tolist())
    apart = latents.double().var(1).sum(-1).mean() if count > 1 else torch.tensor(math.nan)
    return Refinement(
        steps=steps,
        images=len(latents),
        samples=count,
        before=asked_about(pipeline, latents, z, prediction),
        after=asked_about(pipeline, found, z, prediction),
        nats_before=float(before.mean()),
        nats=float(before.mean()) + risen,
        nats_error=error,
        spread_kept=float(found.double().var(1).sum(-1).mean() / apart) if count > 1 else math.nan,
        moved=float(((found - latents).double().square().sum(-1).mean() / apart).sqrt()),
        seconds_per_sample=seconds,
        latents=found,
    )


def asked_about(pipeline: Pipeline, latents: Tensor, z: Tensor, prediction: Tensor | None) -> Faithfulness:
    """Return how the model sees the pictures of latents (B, N, D) made for z (B, *z_shape)."""
    count = latents.shape[1]
    asked = Asked(pipeline, count)
    for part in torch.arange(len(z)).split(max(1, PICTURES // count)):
        answers = pipeline.ask_about(latents[part].flatten(0, 1))
        asked.add_answers(*answers, z[part], None if prediction is None else prediction[part])
    return asked.result()
