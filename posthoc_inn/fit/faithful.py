"""Trains t further by what the model sees of its samples: Φ(D(t⁻¹(v given z))) is to be z, which likelihood is slow at.

A few wrong details of a latent cost few nats, and can turn what the model sees altogether.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from posthoc_inn.analysis.refining import seen
from posthoc_inn.config import FitConfig, TrainConfig
from posthoc_inn.errors import ConfigError
from posthoc_inn.fit.parts import Asked, Parts
from posthoc_inn.flows import ConditionalFlow, without_dropout
from posthoc_inn.rows.cache import Cache
from posthoc_inn.seeds import derived
from posthoc_inn.training import History, train
from posthoc_inn.training.loop import Progress
from posthoc_inn.training.operations import operations
from posthoc_inn.training.precision import fabric_for
from posthoc_inn.training.tasks import FlowLoss, Shuffle, flow_likelihood

RATE = 0.25
"""Peak learning rate, as a share of that of the training by likelihood alone."""
LOOKED_AT = 256
"""Samples that the model is asked about at each look, one for each held-out image."""
FEWEST, MOST = 4, 0.5
"""Samples that the model is asked about in a step: at least so many, and at most this share of the batch."""
COST = 1.0
"""What a step's samples may cost, as a share of what the likelihood of its rows does."""
LEAST_MISFIT = 1e-4
"""A misfit below which nothing is gained, even where the decoder loses nothing."""

Ask = Callable[[Tensor], Tensor]
"""Latents (B, D) to what the model sees of their pictures, (B, *z_shape), differentiably."""


def faithful_training(config: FitConfig, steps: int) -> TrainConfig:
    """Return how t is trained further, for so many steps."""
    usual = config.flow_training
    return usual.replace(
        steps=steps,
        lr=RATE * usual.lr,
        eval_every=max(1, math.ceil(steps / 8)),
        checkpoint_every=max(1, min(usual.checkpoint_every, math.ceil(steps / 8))),
        patience=0,
        seed=derived(usual.seed, "faithful"),
    )


def asking(parts: Parts) -> Ask:
    """Return what tells how the model sees latents."""
    pipeline = parts.pipeline()
    return lambda latents: seen(pipeline, latents)


def why_not(parts: Parts) -> str:
    """Return why t cannot be trained by what the model sees of its samples; "" where it can."""
    latents = torch.zeros(2, parts.config.latent_dim, device=parts.device, requires_grad=True)
    try:
        with torch.enable_grad():
            asking(parts)(latents)
    except ConfigError as error:
        return str(error)
    return ""


class FaithfulLoss(nn.Module):
    """The negative log-likelihood of MSC eq. 5, and how far from z the model sees samples, as a likelihood of its own.

    For z and v ~ N(0, 1) a sample is z_bar = t⁻¹(v given z), and δ = Σ ‖Φ(D(z_bar)) - z‖² / Σ ‖z - mean z‖², over the
    samples of a step: their misfit. (Not the mean of each one's own: a z near the mean would drown the others.) A
    Gaussian likelihood of z given the picture has its variance in closed
    form, so that weight · D/2 · log δ is added: a misfit smaller by a tenth is worth as much at the end as at the
    beginning, whatever z's unit. Images' own latents have a misfit too, δ₀, for what encoder and decoder lose. Samples
    of the true conditional have the same one, so nothing is gained below it, and the true t has nothing to change.

    Args:
        flow: t.
        ask: What the model sees of latents. Nothing of it is trained.
        weight: How much the logarithm of the misfit counts, in nats a latent.
        interaction_weight: As in `FlowLoss`.
        floor: δ₀, the misfit of images' own latents.
    """

    def __init__(
        self, flow: ConditionalFlow, ask: Ask, weight: float, interaction_weight: float = 0.0, floor: float = 0.0
    ) -> None:
        super().__init__()
        self.floor = max(floor, LEAST_MISFIT)
        self.likelihood = FlowLoss(flow, interaction_weight)
        self.__dict__["_ask"] = ask  # no part of what is trained, even if it should be a module
        self.weight = weight

    def forward(
        self, z: Tensor, mean: Tensor, std: Tensor, noise: Tensor, v: Tensor, pairs: Tensor, expected: Tensor
    ) -> Tensor:
        """Return the loss, a scalar in nats.

        v (R, D) are of samples for the first R rows; the rest as `FlowLoss` takes it, `expected` (B, D) or (0, D).
        """
        nats: Tensor = self.likelihood(z, mean, std, noise, pairs, expected if len(expected) else None)
        return nats + self.cost(z[: len(v)], v)

    def cost(self, z: Tensor, v: Tensor) -> Tensor:
        """Return what the misfit of samples costs, a scalar in nats, for z (R, *z_shape) and v (R, D)."""
        flow = self.likelihood.flow
        with without_dropout(flow):  # samples are drawn without
            latents = flow.inverse(v, flow.context(z))
        # Through decoder and model by hand: neither is to get gradients of its weights, and both are let go of here.
        point = latents.detach().requires_grad_()
        with torch.enable_grad():
            cost = self.cost_of(self.misfit(point, z), v.shape[1])
            (gradient,) = torch.autograd.grad(cost, point)
        if not latents.requires_grad:
            return cost.detach()
        return cost.detach() + ((latents - point.detach()) * gradient).sum()

    def misfit(self, latents: Tensor, z: Tensor) -> Tensor:
        """Return the misfit of what the model sees of latents (R, D) to z (R, *z_shape), a scalar."""
        apart, scale = self.apart(latents, z)
        return apart / scale.clamp_min(1e-12)

    def apart(self, latents: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two sums that the misfit is the ratio of."""
        mean = self.likelihood.flow.conditioner.z_mean.to(z)
        apart: Tensor = (self.__dict__["_ask"](latents) - z).square().sum()
        return apart, (z - mean).square().sum()

    def cost_of(self, misfit: Tensor, dim: int) -> Tensor:
        """Return what a misfit costs for D latents, in nats."""
        return 0.5 * self.weight * dim * misfit.clamp_min(self.floor).log()


class FaithfulTask:
    """Trains t on cached rows and on samples for them.

    Args:
        loss: What is minimised.
        train: Rows of training.
        held_out: Rows that it is measured on.
        batch_size: Rows a step.
        samples: Rows of each step that a sample is drawn for.
        seed: Of their order.
        expected: As in `posthoc_inn.training.tasks.FlowTask`.
    """

    name = "faithful"

    def __init__(
        self,
        loss: FaithfulLoss,
        train: Cache,
        held_out: Cache,
        *,
        batch_size: int,
        samples: int,
        seed: int,
        expected: Tensor | None = None,
    ) -> None:
        self.module, self._train, self._held_out = loss, train, held_out
        self._samples, self._expected = samples, expected
        self._shuffle = Shuffle(len(train), batch_size, seed)

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return what `FaithfulLoss` takes."""
        index = self._shuffle.index(step)
        mean = self._train["mean"].rows(index)
        dim = mean.shape[1]
        noise = torch.randn(mean.shape, generator=generator)
        v = torch.randn(min(self._samples, len(index)), dim, generator=generator)
        count = max(1, len(index) // 4) if self.module.likelihood.interaction_weight else 0
        pairs = torch.randn(2, count, dim, generator=generator)
        expected = torch.empty(0, dim) if self._expected is None else self._expected[index]
        return self._train["z"].rows(index).float(), mean, self._train["std"].rows(index), noise, v, pairs, expected

    def held_out(self) -> dict[str, float]:
        """Return the loss, and what it is made of: "nats", with all constants, and "misfit" of samples."""
        flow, loss = self.module.likelihood.flow, self.module
        nats = flow_likelihood(flow, self._held_out, limit=4096)
        found = held_out_misfit(loss, self._held_out, self._samples)
        cost = float(loss.cost_of(torch.tensor(found), flow.flow.config.dim))
        return {"loss": nats + cost, "nats": nats, "misfit": found}


@torch.no_grad()
def held_out_misfit(loss: FaithfulLoss, held_out: Cache, together: int, *, own: bool = False) -> float:
    """Return the misfit of a sample for each of some held-out rows, or of `own` latents, drawn by the encoder.

    Args:
        loss: Asks the model.
        held_out: Cached rows.
        together: How many the model is asked about at a time.
        own: Whether to take the images' own latents in place of samples.
    """
    flow = loss.likelihood.flow
    generator = torch.Generator().manual_seed(0)
    apart, scale = 0.0, 1e-12
    for index in held_out.some(LOOKED_AT, seed=0).split(max(1, together)):
        z, mean, std = (held_out[name].rows(index).float().to(flow.device) for name in ("z", "mean", "std"))
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        latents = mean + std * noise if own else flow.inverse(noise, flow.context(z))
        sums = loss.apart(latents, z)
        apart, scale = apart + float(sums[0]), scale + float(sums[1])
    return apart / scale


@torch.no_grad()
def affordable(parts: Parts, flow: ConditionalFlow, z: Tensor) -> Asked:
    """Return how many samples a step asks about, and for how many steps: by operations, the same on every machine.

    Samples of a step cost about what the likelihood of its rows does. Where even the fewest cost more, because the
    model is large, steps are fewer instead: a share of t's steps then costs no more than twice that share of its time.

    Args:
        parts: Of the fit.
        flow: t, or one like it, initialised; only shapes matter.
        z: Features of an image, (1, *z_shape).
    """
    config = parts.config
    z, size = z.float().to(parts.device), config.flow_training.batch_size
    latents = torch.zeros(1, config.latent_dim, device=parts.device)
    with without_dropout(flow):
        context = flow.context(z)
        own = size * operations(lambda: flow(latents, context))
        each = operations(lambda: flow.inverse(latents, context)) + operations(lambda: asking(parts)(latents))
    samples = min(max(1, int(MOST * size)), max(FEWEST, int(COST * own / max(each, 1))))
    cheaper = min(1.0, (1 + COST) * own / max(own + samples * each, 1))
    return Asked(samples, max(1, math.ceil(config.faithful * cheaper * config.flow_training.steps)))


def train_faithful(
    parts: Parts,
    rows: Cache,
    held_out: Cache,
    *,
    expected: Tensor | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    key: str = "",
) -> tuple[History, dict[str, Any]]:
    """Train t further, in place, and tell what that did.

    Args:
        parts: Of the fit; its t is trained.
        rows: Training rows.
        held_out: Rows that choose the weights.
        expected: As in `posthoc_inn.training.tasks.FlowTask`.
        checkpoint: Where to go on from; None for nowhere.
        resume: Go on from there.
        progress: Told of each step.
        key: What the checkpoint is kept under.

    Returns:
        The curve; and "before" and "after", with "nats" and "misfit" each, "floor", the misfit of images' own latents,
        "weight", "steps", and "samples", rows of a step that a sample is drawn for.

    Raises:
        TrainingError: Training diverged, or there is nothing fitting to resume.
    """
    asked = cast(Asked, parts.faithful)
    config, flow, count = faithful_training(parts.config, asked.steps), parts.flow, asked.samples
    loss = FaithfulLoss(flow, asking(parts), parts.config.faithful_weight, parts.interaction_weight(flow))
    loss.floor = max(LEAST_MISFIT, held_out_misfit(loss, held_out, count, own=True))
    task = FaithfulTask(
        loss, rows, held_out, batch_size=config.batch_size, samples=count, seed=config.seed, expected=expected
    )
    flow.eval()
    with torch.no_grad():
        before = task.held_out()
    history = train(
        task,
        config,
        fabric=fabric_for(parts.device, "32"),  # as t itself
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
        key=key,
    )
    with torch.no_grad():
        after = task.held_out()
    told = {"before": _told(before), "after": _told(after), "floor": loss.floor}
    told |= {"weight": loss.weight, "samples": count, "steps": asked.steps}

    return history, told


def _told(figures: dict[str, float]) -> dict[str, float]:
    return {name: figures[name] for name in ("nats", "misfit")}
