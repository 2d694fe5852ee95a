"""What the loop trains: the autoencoder (MSC A.1) and t (MSC eq. 5), both from cached rows."""

from __future__ import annotations

import functools
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from posthoc_inn.autoencoders import GaussianAutoencoder, TrainableAutoencoder
from posthoc_inn.autoencoders.gaussian import Metric
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import DataError
from posthoc_inn.flows import ConditionalFlow, without_dropout
from posthoc_inn.objectives import flow_nll, interaction_variance
from posthoc_inn.rows.cache import Cache, joined_rows, unit
from posthoc_inn.seeds import derived
from posthoc_inn.training.adversarial import PatchDiscriminator, adaptive_weight, hinge


class Shuffle:
    """Rows of each step: one random order an epoch, a function of (seed, step) alone.

    >>> order = Shuffle(rows=5, batch_size=2, seed=0)
    >>> sorted(torch.cat([order.index(k) for k in range(5)]).tolist())
    [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        if rows < 2:
            raise DataError(f"Training needs at least 2 images, got {rows}.")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self._orders: dict[int, Tensor] = {}

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(derived(self.seed, "order", epoch))
            self._orders = {k: v for k, v in self._orders.items() if k == epoch - 1}
            self._orders[epoch] = torch.randperm(self.rows, generator=generator)
        return self._orders[epoch]

    def index(self, step: int) -> Tensor:
        """Return the row numbers (batch_size,) of `step`; a batch may run over into the next epoch."""
        start, wanted = step * self.batch_size, self.batch_size
        parts = []
        while wanted:
            epoch, offset = divmod(start, self.rows)
            part = self._order(epoch)[offset : offset + wanted]
            parts.append(part)
            start, wanted = start + len(part), wanted - len(part)
        return torch.cat(parts)


class AutoencoderLoss(nn.Module):
    """The autoencoder's training loss as a module, so that Fabric can wrap it.

    With a discriminator the two losses are added: the autoencoder's sees the discriminator's parameters as constants,
    the discriminator's sees the pictures as constants, so that one step of one optimizer moves each by its own loss.

    Args:
        autoencoder: E and D; with a metric or a discriminator one of the framework's own, `GaussianAutoencoder`. Its
            configuration says how both are weighted.
        metric: Perceptual distance that is added to the squared error. Its network is frozen, and no part of this.
        together: Pictures that the metric gets at a time where nothing is trained, as many as in a step: the maps of
            its network are far larger than pictures, and a fit's plan has seen those of a step.
    """

    metric: Metric | None

    def __init__(self, autoencoder: TrainableAutoencoder, metric: Metric | None = None, together: int = 16) -> None:
        super().__init__()
        config = autoencoder.config
        self.autoencoder, self._together = autoencoder, together
        # Not a module of this one, even if it should be a module: it is neither trained nor saved.
        self.__dict__["metric"] = None if metric is None else functools.partial(self._distance, metric)
        self.discriminator: PatchDiscriminator | None = None
        if config.discriminator and isinstance(autoencoder, GaussianAutoencoder):
            self.discriminator = PatchDiscriminator(
                config.size, config.channels, config.discriminator_width, derived(config.seed, "discriminator")
            )

    def _distance(self, metric: Metric, pictures: Tensor, images: Tensor) -> Tensor:
        if self.training:
            # Rows of a batch are in random order: the first are as good as any.
            rows = compared_rows(self.autoencoder.config, len(images))
            return metric(pictures[:rows], images[:rows])
        pairs = zip(pictures.split(self._together), images.split(self._together), strict=True)
        return torch.stack([metric(a, b) * len(a) for a, b in pairs]).sum() / len(images)

    def _more(self) -> tuple[Any, ...]:
        # Autoencoders of others take no metric, and never get one.
        return () if self.metric is None else (self.metric,)

    def figures(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return `loss_figures` of the autoencoder, with the metric, for cached images (B, C, H, W) uint8."""
        return self.autoencoder.loss_figures(unit(images), noise, *self._more())

    def forward(self, images: Tensor, noise: Tensor, progress: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar in nats per value, for cached images (B, C, H, W) uint8 and noise (B, D).

        `progress`, a scalar, is the share of the steps that are done: a discriminator waits for its turn.
        """
        config, autoencoder = self.autoencoder.config, self.autoencoder
        is_on = progress is not None and float(progress) >= config.discriminator_start
        if self.discriminator is None or not is_on or not isinstance(autoencoder, GaussianAutoencoder):
            return autoencoder.loss(unit(images), noise, *self._more())
        real = unit(images)
        figures = autoencoder.remembered(autoencoder.loss_figures(real, noise, self.metric or _no_distance))
        loss, fake = figures["loss"], figures["pictures"]
        adversarial = -self.discriminator.frozen(fake).mean()
        weight = adaptive_weight(loss, adversarial, cast(Tensor, autoencoder.last_layer.weight))
        own = hinge(self.discriminator(real), self.discriminator(fake.detach()))
        return loss + config.discriminator * weight * adversarial + own


def compared_rows(config: AutoencoderConfig, batch_size: int) -> int:
    """Return how many pictures of a batch are compared by a metric in training."""
    return math.ceil((config.perceptual_share or 1.0) * batch_size)


def _no_distance(pictures: Tensor, images: Tensor) -> Tensor:
    return pictures.new_zeros(())


class AutoencoderTask:
    """Trains E and D on the cached images.

    Args:
        autoencoder: Both.
        train: Images of training.
        held_out: Images that it is measured on.
        batch_size: Images a step.
        seed: Of their order.
        extra: More images of training: what a concept source made, which would be coded badly otherwise.
        metric: Perceptual distance that is added to the squared error, weighted as its configuration says.
        steps: Steps of the whole training: a discriminator is switched on after a share of them.

    Attributes:
        keeps_last: Whether the last weights are kept, not those of the least held-out loss: a discriminator makes that
            loss larger, for the sake of what it does not measure.
    """

    name = "autoencoder"

    def __init__(
        self,
        autoencoder: TrainableAutoencoder,
        train: Cache,
        held_out: Cache,
        *,
        batch_size: int,
        seed: int,
        extra: Cache | None = None,
        metric: Metric | None = None,
        steps: int = 1,
    ) -> None:
        self.autoencoder = autoencoder
        self.module = AutoencoderLoss(autoencoder, metric, compared_rows(autoencoder.config, batch_size))
        self.keeps_last, self._steps = self.module.discriminator is not None, steps
        self._images = [cache["images"] for cache in (train, extra) if cache is not None]
        self._held_out = held_out
        self._shuffle = Shuffle(sum(map(len, self._images)), batch_size, seed)

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return cached images (B, C, H, W) uint8, noise (B, D), and with a discriminator the share of steps done."""
        index = self._shuffle.index(step)
        noise = torch.randn(len(index), self.autoencoder.latent_dim, generator=generator)
        rows = joined_rows(self._images, index), noise
        return (*rows, torch.tensor(step / self._steps)) if self.keeps_last else rows

    def held_out(self) -> dict[str, float]:
        """Return the loss, and the squared reconstruction error of images in [-1, 1], on held-out images.

        With a metric, "distance" is what it says.
        """
        device = next(self.autoencoder.parameters()).device
        generator = torch.Generator().manual_seed(0)
        totals: dict[str, float] = {}
        count = 0
        # A network that compares pictures takes far longer than the autoencoder.
        together, most = (500, 5000) if self.module.metric is None else (100, 1000)
        for (images,) in self._held_out.batches(together, "images"):
            if count >= most:
                break
            noise = torch.randn(len(images), self.autoencoder.latent_dim, generator=generator).to(device)
            figures = self.module.figures(images.to(device), noise)
            for name in ("loss", "error", "distance"):
                if name in figures:
                    totals[name] = totals.get(name, 0.0) + float(figures[name]) * len(images)
            count += len(images)
        return {name: total / count for name, total in totals.items()}


class FlowLoss(nn.Module):
    """MSC eq. 5 with its constants, averaged over the batch, as a module.

    Args:
        flow: t.
        interaction_weight: Weight of the interaction of z and v, in training.
    """

    def __init__(self, flow: ConditionalFlow, interaction_weight: float = 0.0) -> None:
        super().__init__()
        self.flow, self.interaction_weight = flow, interaction_weight

    def forward(
        self,
        z: Tensor,
        mean: Tensor,
        std: Tensor,
        noise: Tensor,
        v: Tensor | None = None,
        expected: Tensor | None = None,
    ) -> Tensor:
        """Return the mean negative log-likelihood, a scalar in nats; with `v`, the weighted interaction is added.

        z (B, *z_shape); mean, std, noise (B, D): z_bar is drawn afresh as mean + std * noise. v (2, n, D), or empty.
        `expected` (B, D): what t's linear model is to expect, where it is not what it expects itself.
        """
        out, log_det = self.flow(mean + std * noise, self.flow.context(z, expected))
        loss = flow_nll(out, log_det).mean()
        if v is None or not self.interaction_weight:
            return loss
        n = min(v.shape[1], len(z) // 2)
        # Dropout, drawn anew for each of the four, would be taken for interaction.
        with without_dropout(self.flow):
            context = self.flow.context(z[: 2 * n])
            y = self.flow.blocks_inverse(v[:, :n].repeat_interleave(2, dim=0).flatten(0, 1), context.repeat(2, 1))
        # Rows: v, v with z, z'; then v', v' with z, z'.
        return loss + self.interaction_weight * interaction_variance(y.view(2, 2, n, -1)).mean()


class FlowTask:
    """Trains t on cached (z, mean, std).

    Args:
        flow: t.
        train: Rows of training.
        held_out: Rows that it is measured on.
        batch_size: Rows a step.
        seed: Of their order.
        looks: Held-out rows used at the most.
        interaction_weight: As in `FlowLoss`.
        expected: For each row of training, what t's linear model is to expect, (N, D); see `ConditionalFlow.left_out`.
    """

    name = "t"

    def __init__(
        self,
        flow: ConditionalFlow,
        train: Cache,
        held_out: Cache,
        *,
        batch_size: int,
        seed: int,
        looks: int = 4096,
        interaction_weight: float = 0.0,
        expected: Tensor | None = None,
    ) -> None:
        self.module, self._expected = FlowLoss(flow, interaction_weight), expected
        self._train, self._held_out, self._looks = train, held_out, looks
        self._shuffle = Shuffle(len(train), batch_size, seed)

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return z (B, *z_shape), mean, std and noise (B, D), and what else `FlowLoss` takes."""
        index = self._shuffle.index(step)
        mean = self._train["mean"].rows(index)
        row = (
            self._train["z"].rows(index),
            mean,
            self._train["std"].rows(index),
            torch.randn(mean.shape, generator=generator),
        )
        pairs = max(1, len(index) // 4) if self.module.interaction_weight else 0
        if not pairs and self._expected is None:
            return row
        v = torch.randn(2, pairs, mean.shape[1], generator=generator)
        return (*row, v) if self._expected is None else (*row, v, self._expected[index])

    def held_out(self) -> dict[str, float]:
        """Return the held-out negative log-likelihood in nats."""
        return {"loss": flow_likelihood(self.module.flow, self._held_out, limit=self._looks)}


@torch.no_grad()
def flow_nats(flow: ConditionalFlow, cache: Cache, *, limit: int | None = None, seed: int = 0) -> Tensor:
    """Return the negative log-likelihood of z_bar given z of each cached row, (N,) in float64, in nats.

    Of more than `limit` rows as many are taken, at random; each has one draw of the encoder's noise.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for part in cache.some(limit, seed=seed).sort().values.split(512):
        z, mean, std = (cache[name].rows(part) for name in ("z", "mean", "std"))
        noise = torch.randn(mean.shape, generator=generator)
        z, mean, std, noise = (part.to(flow.device) for part in (z, mean, std, noise))
        found.append(flow_nll(*flow(mean + std * noise, flow.context(z))).double().cpu())
    return torch.cat(found)


def flow_likelihood(flow: ConditionalFlow, cache: Cache, *, limit: int | None = None, seed: int = 0) -> float:
    """Return the mean negative log-likelihood of z_bar given z over cached rows, in nats with all constants."""
    return float(flow_nats(flow, cache, limit=limit, seed=seed).mean())
