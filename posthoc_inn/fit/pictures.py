"""Early layers show their picture: trains a network that finds it in z, and says whether t had better start from it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from posthoc_inn.autoencoders import Autoencoder
from posthoc_inn.autoencoders.base import CHUNK
from posthoc_inn.config import PICTURES, FitConfig
from posthoc_inn.errors import ConfigError
from posthoc_inn.fit.parts import Parts, make_flow
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.flows.pictures import PictureNet
from posthoc_inn.rows.cache import Cache, unit
from posthoc_inn.training import History, train
from posthoc_inn.training.loop import Progress
from posthoc_inn.training.precision import fabric_for
from posthoc_inn.training.tasks import Shuffle

ENOUGH = 0.75
"""Share of the code's variance, on held-out images, that the picture found in z must explain for t to start from it."""
LOOKS = 1024
"""Held-out images that this share is measured on at the most."""
PLACES = 200_000
"""Places that the linear part of the network is fitted to."""
FEWEST = 256
"""Images that it is fitted to at least, where there are as many."""
LEAST_NOISE = 1e-3
"""What an encoder without noise is taken to have, as a share of the variance of its code."""
LEAST_APART = 0.1
"""Error of the latents, in units of the encoder's variance, below which there is nothing to gain."""
LEAST_ERROR = 1e-6
"""Squared error of pixels below which none is seen: a quarter of a step of 8 bits."""


def with_pictures(
    config: FitConfig, autoencoder: Autoencoder, z_shape: tuple[int, ...], picture_shape: tuple[int, ...]
) -> FitConfig | None:
    """Return `config` with a t that starts from the picture in z, where that is to be tried; None where it is not.

    It is where z has places and as many values as the picture, and t is made of couplings alone.

    Args:
        config: Of the fit.
        autoencoder: E and D.
        z_shape: Shape of z without the batch.
        picture_shape: C, S, S of the autoencoder's pictures.

    Raises:
        ConfigError: Its kind of t starts from pictures, and nothing can say which latents a picture has.
    """
    flow, can_encode = config.flow, getattr(autoencoder, "has_encoder", True) and not hasattr(autoencoder, "native")
    if flow.is_pictures_first and not can_encode:
        raise ConfigError(
            f"A t of the kind {flow.kind!r} asks an encoder which latents the picture in z has, and a generator has "
            f"none; use the kind {flow.coupling!r}."
        )
    is_plain = flow.coupling is not None and not flow.is_linear_first and not flow.is_pictures_first
    if config.pictures == "never" or config.flow_on_concepts or not (is_plain and can_encode):
        return None
    if len(z_shape) == 1 or math.prod(z_shape) < math.prod(picture_shape):
        return None
    tried = flow.replace(kind=f"{PICTURES}+{flow.kind}")
    return config.replace(flow=tried)


def without_pictures(config: FitConfig) -> FitConfig:
    """Return `config` with couplings alone, as it was before `with_pictures`."""
    return config.replace(flow=config.flow.replace(kind=cast(str, config.flow.coupling)))


@contextlib.contextmanager
def learning_alone(pictures: PictureNet, autoencoder: nn.Module) -> Iterator[None]:
    """Let `pictures` be trained inside the block, and no gradient be kept of the autoencoder, which may be a user's."""
    flags = [(p, p.requires_grad) for p in autoencoder.parameters()]
    pictures.learn(True)
    autoencoder.requires_grad_(False)
    try:
        yield
    finally:
        pictures.learn(False)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


class PictureLoss(nn.Module):
    """How far the picture found in z is from its image, and what the encoder says of it from what it says of that.

    The sum of two logarithms, so that neither needs a weight: of the squared error of pixels, and of that of the
    latents in units of the encoder's own variance, below which there is nothing to gain.

    Args:
        flow: t, whose `pictures` are trained, once z can be standardised.
        noise: Variance that counts as one for each latent, (D,).
    """

    noise: Tensor

    def __init__(self, flow: ConditionalFlow, noise: Tensor) -> None:
        super().__init__()
        self.pictures = cast(nn.Module, flow.pictures)
        self.register_buffer("noise", noise, persistent=False)
        # Neither is a part of what is trained.
        self.__dict__["_flow"] = flow

    def forward(self, z: Tensor, images: Tensor, mean: Tensor) -> Tensor:
        """Return the loss, a scalar, for z (B, *z_shape), images (B, C, S, S) uint8 and the mean of z_bar (B, D)."""
        flow: ConditionalFlow = self.__dict__["_flow"]
        found = self.pictures(flow.conditioner.standardize(z))
        error = (found - unit(images)).square().mean()
        encoded = flow.asked().encode(found)[0]
        apart = ((encoded - mean).square() / self.noise).mean()
        loss: Tensor = (error + LEAST_ERROR).log() + (apart + LEAST_APART).log()
        return loss


@torch.no_grad()
def start_pictures(flow: ConditionalFlow, rows: Cache, *, seed: int) -> None:
    """Set the linear part of what finds the picture in z, in closed form, from some rows."""
    pictures = cast(PictureNet, flow.pictures)
    count = max(FEWEST, PLACES // math.prod(pictures.start))
    index = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]

    def some() -> Iterator[tuple[Tensor, Tensor]]:
        for part in index.split(64):
            z, images = (rows[name].rows(part).to(flow.device) for name in ("z", "images"))
            yield flow.conditioner.standardize(z), unit(images)

    pictures.fit_linear(some())


class PictureTask:
    """Trains the network that finds pictures in z, on cached rows.

    Args:
        flow: t, which has one.
        train: Rows of training.
        held_out: Rows that it is measured on.
        batch_size: Rows a step.
        seed: Of their order.
    """

    name = "pictures"

    def __init__(self, flow: ConditionalFlow, train: Cache, held_out: Cache, *, batch_size: int, seed: int) -> None:
        self._train, self._held_out, self._flow = train, held_out, flow
        index = torch.arange(len(train))[:: max(1, len(train) // 10_000)]
        mean, std = train["mean"].rows(index).float(), train["std"].rows(index).float()
        noise = std.square().mean(0) + LEAST_NOISE * mean.var(0) + 1e-12
        self.module = PictureLoss(flow, noise.to(flow.device))
        self._shuffle = Shuffle(len(train), batch_size, seed)

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return z (B, *z_shape), images (B, C, S, S) uint8 and the mean of z_bar (B, D)."""
        index = self._shuffle.index(step)
        return self._train["z"].rows(index), self._train["images"].rows(index), self._train["mean"].rows(index)

    def held_out(self) -> dict[str, float]:
        """Return the loss, and "explained" (`explained_by_pictures`)."""
        total, count = 0.0, 0
        for z, images, mean in self._held_out.batches(CHUNK, "z", "images", "mean"):
            if count >= LOOKS:
                break
            z, images, mean = (part.to(self._flow.device) for part in (z, images, mean))
            total += float(self.module(z, images, mean)) * len(z)
            count += len(z)
        return {"loss": total / count, "explained": explained_by_pictures(self._flow, self._held_out)}


@torch.no_grad()
def explained_by_pictures(flow: ConditionalFlow, rows: Cache) -> float:
    """Return the share of the code's variance that the encoder explains by the pictures that `flow` finds in z."""
    found, wanted = [], []
    for z, mean in rows.batches(CHUNK, "z", "mean"):
        found.append(flow.from_pictures(z.to(flow.device)).double().cpu())
        wanted.append(mean.double().cpu())
        if sum(map(len, wanted)) >= LOOKS:
            break
    truth, guess = torch.cat(wanted), torch.cat(found)
    return 1 - float((truth - guess).square().sum() / (truth - truth.mean(0)).square().sum().clamp_min(1e-30))


def standardize(flow: ConditionalFlow, rows: Cache) -> None:
    """Fit the standardisation of z to cached rows."""
    some = itertools.islice(rows.batches(CHUNK, "z"), 400)
    flow.conditioner.fit_standardization((z.to(flow.device) for (z,) in some), force=True)


def find_pictures(
    parts: Parts,
    rows: Cache,
    held_out: Cache,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    key: str = "",
) -> History:
    """Train what finds the picture in z, in place.

    Args:
        parts: Of the fit; its t looks for pictures.
        rows: Training rows.
        held_out: Rows that choose the weights.
        checkpoint: Where to go on from; None for nowhere.
        resume: Go on from there.
        progress: Told of each step.
        key: What the checkpoint is kept under.

    Raises:
        TrainingError: Training diverged, or there is nothing fitting to resume.
    """
    flow, config = parts.flow, parts.config.picture_training
    standardize(flow, rows)
    start_pictures(flow, rows, seed=config.seed)
    with learning_alone(cast(PictureNet, flow.pictures), cast(nn.Module, parts.autoencoder)):
        return train(
            PictureTask(flow, rows, held_out, batch_size=config.batch_size, seed=config.seed),
            config,
            # Its picture is to be as exact as the encoder, which bf16 would round to 8 bits in its last layer.
            fabric=fabric_for(parts.device, "32"),
            checkpoint=checkpoint,
            resume=resume,
            progress=progress,
            key=key,
        )


def judged(parts: Parts, held_out: Cache) -> tuple[Parts, str]:
    """Return the parts to go on with, and a sentence on why.

    Where the picture in z was only tried, and explains less than `ENOUGH` of the code of held-out images, t is one of
    couplings alone, as if it had not been tried.

    Args:
        parts: Of the fit; what finds pictures in z is trained.
        held_out: Rows that say how much of the code it explains.
    """
    explained = explained_by_pictures(parts.flow, held_out)
    said = f"the picture found in z explains {100 * explained:.1f} % of the code of held-out images"
    if explained >= ENOUGH or not parts.tries_pictures:
        return parts, f"{said}: t starts from it"
    config, base = without_pictures(parts.config), parts.flow.base
    flow = make_flow(config, parts.probe.z_shape, None, parts.flow.flow.config.latent_shape)
    if base is not None:
        flow.set_base(base)
    return dataclasses.replace(parts, config=config, flow=flow.to(parts.device)), f"{said}: t does not start from it"
