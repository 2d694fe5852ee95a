"""An encoder for a generator: E(x) = (mean, deviation) of the latent, trained on draws, or inversion step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posthoc_inn.ambient import in_plain_torch
from posthoc_inn.analysis.faithfulness import Asked
from posthoc_inn.analysis.results import Result
from posthoc_inn.autoencoders import Draws, GivenGenerator
from posthoc_inn.config import TrainConfig
from posthoc_inn.errors import ConfigError, NotFittedError, Problems, is_count
from posthoc_inn.files import writing
from posthoc_inn.fit.drawing import drawn as number_to_draws
from posthoc_inn.fit.lock import locked
from posthoc_inn.fit.parts import checkpoint_of
from posthoc_inn.generators import lent_generators
from posthoc_inn.images import BatchSource, fit_canonical, split
from posthoc_inn.images.identity import data_digest
from posthoc_inn.progress import Reporter, make_reporter
from posthoc_inn.rows.cache import Cache, pixels, unit
from posthoc_inn.rows.identity import key_of
from posthoc_inn.rows.reader import CACHE_ADVICE, TOGETHER, after, latents_of
from posthoc_inn.training import History, train
from posthoc_inn.training.precision import choose_device, fabric_for
from posthoc_inn.training.tasks import Shuffle

THUMB = 16
"""Side of the pictures that the linear part sees."""
COMPARED = 64
"""Held-out draws that pictures are made for."""
LOG_STD = (-7.0, 2.0)
"""Bounds of the logarithm of the deviation, in units of the latent's own."""


@dataclass(frozen=True)
class InversionQuality(Result):
    """How much of a picture an inversion brings back: its error is no invariance of any model.

    Attributes:
        pixel_error: Root mean square difference of pictures in [0, 1] to those made from their inverted latents.
        pixel_error_between: The same of two different pictures: what no inversion would give.
        explained: Share of the latent's variance that the inversion explains; nan where the latent is not known.
        images: Pictures that were compared.
    """

    pixel_error: float
    pixel_error_between: float
    explained: float
    images: int


class Inverter(nn.Module):
    """Encodes pictures as latents of a generator, trained on draws of it with the generator fixed.

    The mean is linear in a thumbnail, found by ridge regression, plus a convolutional network; the deviation says how
    sure it is. A photograph that the generator cannot make has no latent: look at `quality_`, and at
    `inversion_quality` for photographs, before an error is taken for an invariance.

    Args:
        side: Side of the pictures that it sees, in pixels; those of the generator where these are smaller.
        width: Channels after the first halving.
        steps: Steps of training.
        batch_size: Pictures a step.
        lr: Peak learning rate.
        seed: Of everything random.

    Attributes:
        quality_: Of held-out draws.
        history_: The curve.

    Raises:
        ConfigError: An argument is wrong; all problems at once.

    >>> Inverter().encode(torch.rand(1, 3, 8, 8))
    Traceback (most recent call last):
    ...
    posthoc_inn.errors.NotFittedError: This Inverter is not fitted: call fit(generator, generator.draws(5000)) first.
    """

    def __init__(
        self,
        *,
        side: int = 64,
        width: int = 32,
        steps: int = 3000,
        batch_size: int = 64,
        lr: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        problems = Problems("Inverter")
        for name, value, low in (
            ("side", side, 8),
            ("width", width, 1),
            ("steps", steps, 1),
            ("batch_size", batch_size, 1),
        ):
            problems.check(is_count(value, low), f"{name} must be at least {low}, got {value!r}")
        problems.check(lr > 0, f"lr must be positive, got {lr}")
        problems.raise_if_any()
        self.side, self.width, self.seed = side, width, seed
        self.config = TrainConfig(
            steps=steps, batch_size=batch_size, lr=lr, seed=seed, eval_every=max(1, min(250, steps // 5))
        )
        self.net: _Network | None = None

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of the latent, each (B, D), for images (B, C, H, W) in [0, 1].

        Raises:
            NotFittedError: Before `fit`.
        """
        if self.net is None:
            raise NotFittedError("This Inverter is not fitted: call fit(generator, generator.draws(5000)) first.")
        self.net.to(images.device)
        mean, std = self.net(fit_canonical(images, self.net.side, self.net.channels))
        return mean, std

    @in_plain_torch
    def fit(
        self,
        generator: GivenGenerator,
        draws: Draws | int,
        *,
        held_out: float = 0.1,
        out: str | Path | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: bool | Reporter | None = None,
    ) -> Inverter:
        """Train on draws of `generator`.

        Args:
            generator: The generator.
            draws: Its draws, or their number.
            held_out: Share of them that is held out.
            out: Directory for checkpoints and pictures, so that the run can be resumed.
            resume: Go on from what is in `out`.
            device: Where to train; "auto" is where the generator is.
            progress: Show a progress bar; None for when standard error is a terminal.

        Returns:
            This object.

        Raises:
            ConfigError: The draws are another generator's, or `resume` lacks `out`.
            TrainingError: Training diverged, or there is nothing fitting to resume.
        """
        if resume and out is None:
            raise ConfigError("fit: resume needs out, the directory to go on from")
        data = number_to_draws(draws, generator, self.seed)
        if not isinstance(data, Draws) or data.generator is not generator:
            raise ConfigError("Inverter.fit takes draws of the same generator: generator.draws(5000), or their number.")
        directory = None if out is None else Path(out)
        reporter = progress if isinstance(progress, Reporter) else make_reporter(progress, stages=2)
        parts = [BatchSource(part) for part in split(data, held_out, self.seed)]
        with locked(directory), reporter:
            net = _Network(self, generator)
            key = key_of(*(data_digest(part) for part in parts), f"{net.side} {self.width}")
            reporter.stage("making pictures", len(data))
            rows = [
                _pictures(part, net, None if directory is None else directory / "cache" / name, key, resume, reporter)
                for name, part in zip(("inverter", "inverter_held_out"), parts, strict=True)
            ]
            where = choose_device(device, like=generator)
            net.start(rows[0])
            net.to(where)
            task = _Task(net, *rows, batch_size=self.config.batch_size, seed=self.seed)
            reporter.stage("inverter", self.config.steps)
            self.history_: History = train(
                task,
                self.config,
                fabric=fabric_for(where, "32"),
                checkpoint=checkpoint_of(directory, "inverter"),
                resume=resume,
                progress=lambda step, total, figures: reporter.advance(step, figures),
                key=key,
            )
            self.net = net.eval()
            self.quality_ = _quality_of_draws(self, generator, parts[1])
        return self


class _Network(nn.Module):
    """Pictures (B, C, side, side) in [0, 1] to mean and deviation of the latent, each (B, D)."""

    def __init__(self, inverter: Inverter, generator: GivenGenerator) -> None:
        super().__init__()
        config = generator.config
        self.side, self.channels = min(inverter.side, config.size), config.channels
        self.thumb = min(THUMB, self.side)
        inputs = self.channels * self.thumb**2
        with lent_generators(inverter.seed):
            layers: list[nn.Module] = []
            before, side, width = self.channels, self.side, inverter.width
            while side > 4:
                layers += [nn.Conv2d(before, width, 4, 2, 1), nn.LeakyReLU(0.2)]
                before, side, width = width, side // 2, min(2 * width, 512)
            self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side * side, 256), nn.LeakyReLU(0.2))
            self.head = nn.Linear(256, 2 * config.latent_dim)
            self.linear = nn.Linear(inputs, config.latent_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(config.latent_dim))
        self.register_buffer("std", torch.ones(config.latent_dim))

    def _thumbnail(self, images: Tensor) -> Tensor:
        return F.interpolate(images, self.thumb, mode="area").flatten(1) - 0.5

    @torch.no_grad()
    def start(self, rows: Cache) -> None:
        """Set the linear part by ridge regression, and the deviation by what it leaves."""
        latents = rows["latents"].tensor().double()
        thumbs = torch.cat([self._thumbnail(unit(part)) for (part,) in rows.batches(512, "images")]).double()
        self.mean.copy_(latents.mean(0))
        self.std.copy_(latents.std(0).clamp_min(1e-6))
        target = (latents - self.mean) / self.std
        centre = thumbs.mean(0)
        x = thumbs - centre
        gram = x.T @ x
        # 8-bit pictures have this much noise at the least; few draws need more.
        ridge = max(len(x) / (12 * 255**2), 1e-4 * float(gram.diagonal().mean()) * x.shape[1] / len(x))
        weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), x.T @ target)
        self.linear.weight.copy_(weight.T)
        self.linear.bias.copy_(-(centre @ weight))
        left = (target - x @ weight).std(0).clamp_min(math.exp(LOG_STD[0] + 1))
        self.head.bias[len(left) :].copy_(left.log())

    def standardised(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the deviation in units of the latent's own."""
        mean, log_std = self.head(self.body(images * 2 - 1)).chunk(2, dim=1)
        return mean + self.linear(self._thumbnail(images)), log_std.clamp(*LOG_STD)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.standardised(images)
        return mean * self.std + self.mean, log_std.exp() * self.std


class _Loss(nn.Module):
    """Mean negative log-likelihood of latents given their pictures, in nats."""

    def __init__(self, net: _Network) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        mean, log_std = self.net.standardised(unit(images))
        off = ((latents - self.net.mean) / self.net.std - mean) / log_std.exp()
        return (0.5 * off.square() + log_std + self.net.std.log() + 0.5 * math.log(2 * math.pi)).sum(1).mean()


class _Task:
    """Trains an inverter on cached pictures and their latents."""

    name = "inverter"

    def __init__(self, net: _Network, rows: Cache, held_out: Cache, *, batch_size: int, seed: int) -> None:
        self.module = _Loss(net)
        self._rows, self._held_out = rows, held_out
        self._shuffle = Shuffle(len(rows), batch_size, seed)

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return pictures (B, C, H, W) uint8 and latents (B, D)."""
        index = self._shuffle.index(step)
        return self._rows["images"].rows(index), self._rows["latents"].rows(index)

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Return the held-out negative log-likelihood in nats."""
        device, total = self.module.net.mean.device, 0.0
        for images, latents in self._held_out.batches(256, "images", "latents"):
            total += float(self.module(images.to(device), latents.to(device))) * len(images)
        return {"loss": total / len(self._held_out)}


def _pictures(
    data: BatchSource, net: _Network, directory: Path | None, key: str, resume: bool, reporter: Reporter
) -> Cache:
    """Return pictures and latents of draws, going on after those that a killed run has left."""
    latents = latents_of(data)
    cache = Cache(directory, 0) if directory is not None else Cache()
    if directory is not None:
        if resume and cache.restore(key):
            return cache
        if not (resume and cache.restore_part(key)):
            cache.remove()
    for batch in after(data, len(cache), len(latents)):
        with writing(cache.directory, CACHE_ADVICE):
            cache.append(
                images=pixels(fit_canonical(batch["images"], net.side, net.channels)), latents=latents[batch["index"]]
            )
            if directory is not None and len(cache) // TOGETHER > (len(cache) - len(batch["images"])) // TOGETHER:
                cache.commit(key)
        reporter.advance(len(cache))
    if directory is not None:
        with writing(cache.directory, CACHE_ADVICE):
            cache.save(key)
    return cache


@torch.no_grad()
def _quality_of_draws(inverter: Inverter, generator: GivenGenerator, held_out: BatchSource) -> InversionQuality:
    wanted = latents_of(held_out)
    index = torch.arange(min(COMPARED, len(wanted)))
    some = next(iter(after(BatchSource(held_out.data, COMPARED), 0, len(index))))["images"]
    pictures = generator.fitted(some)
    index = index[: len(pictures)]
    found = inverter.encode(pictures)[0].cpu()
    left = (wanted[index] - found).square().sum() / (wanted[index] - wanted.mean(0)).square().sum()
    return _compared(generator, pictures, found, 1 - float(left))


def _compared(generator: GivenGenerator, pictures: Tensor, latents: Tensor, explained: float) -> InversionQuality:
    again = generator.decode(latents).cpu()
    pictures = pictures.cpu()
    between = (pictures - pictures.roll(1, 0)).square().mean().sqrt() if len(pictures) > 1 else math.nan
    return InversionQuality(
        pixel_error=float((again - pictures).square().mean().sqrt()),
        pixel_error_between=float(between),
        explained=explained,
        images=len(pictures),
    )


@dataclass(frozen=True)
class Inverted:
    """What `invert_by_optimization` found.

    Attributes:
        latents: (B, D).
        quality: How near the pictures come.
    """

    latents: Tensor
    quality: InversionQuality


@in_plain_torch
def invert_by_optimization(
    generator: GivenGenerator, images: Tensor, *, steps: int = 300, lr: float = 0.05, prior: float = 1e-3
) -> Inverted:
    """Find latents whose pictures come near images, by gradient descent through a differentiable generator.

    The images are known to the generator afterwards: edits and invariances of them use these latents.

    Args:
        generator: Its `decode` must pass gradients on.
        images: Canonical images (B, C, H, W) in [0, 1].
        steps: Steps of Adam.
        lr: Learning rate, in deviations of the latents.
        prior: Weight of the squared distance to the mean of the latents, in their deviations, a dimension.

    Raises:
        ConfigError: The generator passes no gradients on.
    """
    if not generator.is_differentiable:
        raise ConfigError(
            "invert_by_optimization needs a generator that passes gradients on, and this one does not: NumPy, ONNX and "
            "OpenVINO never do, a torch module not within no_grad. Train an Inverter."
        )
    wanted = generator.fitted(images)
    some = generator.draws(256, 0).latents
    mean, std = some.mean(0), some.std(0).clamp_min(1e-6)
    start = torch.zeros(len(images), some.shape[1])
    if generator.inverter is not None:
        with torch.no_grad():
            start = (generator.inverter.encode(wanted)[0].cpu() - mean) / std
    w = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=lr)
    for _ in range(steps):
        made = generator.decode(w * std + mean)
        loss = ((made - wanted.to(made.device)).square().mean((1, 2, 3)) + prior * w.square().mean(1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        latents = (w * std + mean).detach()
        generator.remember(images, latents)
        return Inverted(latents, _compared(generator, wanted, latents, math.nan))


@torch.no_grad()
def inversion_quality(interpreter: Any, images: Tensor) -> dict[str, Any]:
    """Say how good the inversion of photographs is, beside that of as many draws, under the explained model too.

    Args:
        interpreter: Fitted, with a generator that has an inverter.
        images: As given to `fit`, (B, C, H, W).

    Returns:
        "images" and "draws": each with `pixel_error`, `pixel_error_between`, and, of what the model says of pictures
        made from inverted latents, `similarity` of z, `agreement` or `output_similarity`, as `Faithfulness` has them.

    Raises:
        ConfigError: There is no inverter.
    """
    pipeline = interpreter.pipeline
    generator = pipeline.autoencoder
    if getattr(generator, "inverter", None) is None:
        raise ConfigError("There is no inverter to measure: generator.inverter = Inverter().fit(generator, draws).")
    draws = generator.draws(max(4, len(images)), seed=1)
    found: dict[str, Any] = {}
    for name, given in (("images", pipeline.adapter.read(images)), ("draws", draws.images(range(len(draws))))):
        pictures = pipeline.adapter.to_images(given)
        latents = generator.inverter.encode(pictures)[0]
        asked = Asked(pipeline, 1)
        said = pipeline.extractor.said(pipeline.ask(given))
        seen, output = pipeline.ask_about(latents)
        asked.add_answers(seen, output, pipeline.features(given), said)
        quality = _compared(generator, pictures, latents.cpu(), math.nan)
        found[name] = {**asked.result().to_dict(), **{k: v for k, v in quality.to_dict().items() if k != "explained"}}
    return found
