"""Fréchet distance between sets of images (IIN tab. 2), through torchmetrics, over Inception or any other network."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_inn.analysis.optional import require
from posthoc_inn.analysis.results import Result
from posthoc_inn.errors import ConfigError, DataError, ShapeError
from posthoc_inn.features import LayerExtractor
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.seeds import derived

INCEPTION = "Inception v3 (FID)"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
"""What torch-fidelity calls the weights in torch.hub's checkpoints; the name ends with the start of the SHA-256."""
CHUNK = 128
"""Images that go through a network at a time."""

Embedding = Callable[[Tensor], Tensor]
Features = Pipeline | LayerExtractor | nn.Module | Embedding


@dataclass(frozen=True)
class FrechetDistance(Result):
    """‖μ - μ'‖² + tr(Σ + Σ' - 2 (Σ Σ')^½) between Gaussians fitted to the features of two sets of images.

    Attributes:
        value: The distance, in squared units of the features: comparable for one network and like numbers of images.
        floor: Between two halves of the real images: what equal distributions give with half as many images, which is
            about twice what they would give with all. nan for fewer than 4 images.
        network: Whose features.
        width: Their number.
        real: Real images.
        generated: Generated ones.
    """

    value: float
    floor: float
    network: str
    width: int
    real: int
    generated: int

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        return (
            f"Fréchet distance {self.value:.4g} between {self.real} real and {self.generated} generated images over "
            f"the {self.width} features of {self.network}; two halves of the real ones are {self.floor:.4g} apart. "
            + comparability(self.network, self.width, min(self.real, self.generated))
        )


def comparability(network: str, width: int, images: int) -> str:
    """Return, in words, what such a distance may be compared with."""
    text = "Lower is better. Compare only distances over the same network and number of images."
    if network != INCEPTION:
        text += " This is not the Inception distance (FID) that papers print."
    if images < 2 * width:
        text += f" With {images} images for {width} features the estimate is biased upwards: use more."
    return text


def inception_weights() -> Path | None:
    """Return the local file of the Inception weights that torch-fidelity uses, or None. Nothing is downloaded."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    return path if path.is_file() else None


class FeatureNetwork:
    """A named network as a function from canonical images (B, C, H, W) in [0, 1] to features (B, N), in chunks.

    Maps (C, H, W) are averaged over places, tokens (T, N) over tokens.

    Args:
        features: A pipeline (its layer, for pictures as it makes them), a `LayerExtractor` or module that eats
            canonical images, a function of them, or None for Inception from local weights.
        name: What to call it; needed for a function.

    Raises:
        ConfigError: A function has no name, or Inception's weights are not there.
        PluginError: Inception needs torch-fidelity, which is not installed.
        DataError: The weights' file is damaged.
    """

    def __init__(self, features: Features | None = None, *, name: str | None = None) -> None:
        self._run: Embedding
        if features is None:
            self._run, default = _inception(), INCEPTION
        elif isinstance(features, Pipeline):
            pipeline = features
            self._run = lambda x: pipeline.extractor.features(pipeline.adapter.pictures_to_model(x.to(pipeline.device)))
            default = _described(pipeline.extractor)
        elif isinstance(features, LayerExtractor):
            self._run, default = _moved(features), _described(features)
        elif isinstance(features, nn.Module):
            # Run as an extractor runs it: in eval mode, and left as it was.
            self._run, default = _moved(LayerExtractor(features, "output")), type(features).__name__
        elif name is None:
            raise ConfigError("Features given as a function need a name: pass name='the network, and its layer'.")
        else:
            self._run, default = features, name
        self.name = name or default

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, N), float64 on the CPU, for canonical images (B, C, H, W).

        Raises:
            ShapeError: Images, or what the network returns, have another shape.
            DataError: Images are not in [0, 1], or features are not finite.
        """
        if images.ndim != 4 or not images.is_floating_point() or not len(images):
            raise ShapeError(f"Images must be float (B, C, H, W) in [0, 1], got {images.dtype} {tuple(images.shape)}.")
        if float(images.min()) < -1e-3 or float(images.max()) > 1.001:
            low, high = float(images.min()), float(images.max())
            raise DataError(f"Images must be canonical, in [0, 1]; these go from {low:.3g} to {high:.3g}.")
        out = torch.cat([_pooled(self._run(part), len(part)) for part in images.split(CHUNK)])
        if not bool(torch.isfinite(out).all()):
            raise DataError(f"{self.name} returns features that are not finite.")
        return out


def frechet_distance(
    real: Tensor | Iterable[Tensor],
    generated: Tensor | Iterable[Tensor],
    *,
    features: Features | None = None,
    name: str | None = None,
) -> FrechetDistance:
    """Measure the Fréchet distance between two sets of images, and between halves of the real ones.

    Args:
        real: Canonical images (B, C, H, W) in [0, 1], or batches of them, which are read once.
        generated: The same, of any number.
        features: As for `FeatureNetwork`; None is Inception, whose distance is the FID.
        name: Of the network; needed for a function.

    Raises:
        PluginError: torchmetrics (or torch-fidelity, for Inception) is not installed.
        ConfigError: See `FeatureNetwork`.
        DataError: A set has fewer than 2 images, or images are not in [0, 1].
        ShapeError: See `FeatureNetwork`.
    """
    network = FeatureNetwork(features, name=name)
    whole, apart, halving = Frechet(), Frechet(), Halving(0)
    for part in batches(real):
        found = network(part)
        whole.add(found, real=True)
        first, second = halving(len(found))
        apart.add(found[first], real=True)
        apart.add(found[second], real=False)
    for part in batches(generated):
        whole.add(network(part), real=False)
    floor = apart.compute() if apart.real >= 2 and apart.generated >= 2 else float("nan")
    return FrechetDistance(whole.compute(), floor, network.name, whole.width, whole.real, whole.generated)


def batches(images: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield batches of images (B, C, H, W) of a tensor, or those of an iterable."""
    yield from images.split(CHUNK) if isinstance(images, Tensor) else images


class Frechet:
    """torchmetrics' `FrechetInceptionDistance` over features that are computed elsewhere, once for several comparisons.

    Attributes:
        real: Real rows seen.
        generated: Generated rows seen.
        width: Features of a row; 0 before the first.

    Raises:
        PluginError: torchmetrics is not installed.
    """

    def __init__(self) -> None:
        self._module = require("torchmetrics.image.fid", "metrics", "The Fréchet distance")
        self._metric: Any = None
        self.real = self.generated = self.width = 0

    def add(self, features: Tensor, *, real: bool) -> None:
        """Take features (B, N) in.

        Raises:
            ShapeError: They have another width than the ones before.
        """
        if not len(features):
            return
        if self._metric is None:
            self.width = features.shape[1]
            given = nn.Identity()
            given.num_features = self.width  # type: ignore[assignment]
            self._metric = self._module.FrechetInceptionDistance(feature=given, reset_real_features=False)
        if features.shape[1] != self.width:
            raise ShapeError(f"Features of {features.shape[1]} values follow features of {self.width}.")
        self._metric.update(features, real=real)
        if real:
            self.real += len(features)
        else:
            self.generated += len(features)

    def compute(self) -> float:
        """Return the distance.

        Raises:
            DataError: A set has fewer than 2 images.
        """
        if min(self.real, self.generated) < 2:
            raise DataError(
                f"A Fréchet distance needs 2 images of each kind at least, and thousands to mean something; got "
                f"{self.real} real and {self.generated} generated ones."
            )
        return float(self._metric.compute())

    def forget_generated(self) -> None:
        """Start over with other generated images and the same real ones."""
        if self._metric is not None:
            self._metric.reset()
        self.generated = 0


def distance(reference: Tensor, features: Tensor) -> float:
    """Return the Fréchet distance between two sets of features (N, width); nan for fewer than 2 of either."""
    if min(len(reference), len(features)) < 2:
        return math.nan
    measured = Frechet()
    measured.add(reference, real=True)
    measured.add(features, real=False)
    return measured.compute()


class Halving:
    """Parts images that come in batches, of any size, into two halves: of every two images one, at random, to each.

    Every other one would not do: where classes come in turn, the halves would have no class in common.

    Args:
        seed: Of the choice.

    >>> halving = Halving(0)
    >>> [[half.tolist() for half in halving(count)] for count in (4, 3)]
    [[[0, 2], [1, 3]], [[0], [1, 2]]]
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(derived(seed, "halving"))
        self._is_second: bool | None = None

    def __call__(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the places (B,) of the two halves in the next batch of `count`."""
        places: tuple[list[int], list[int]] = ([], [])
        for place in range(count):
            if self._is_second is None:
                second = bool(torch.randint(2, (1,), generator=self._generator))
                self._is_second = not second
            else:
                second, self._is_second = self._is_second, None
            places[second].append(place)
        first, other = (torch.tensor(half, dtype=torch.long) for half in places)
        return first, other


def halves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of the images that are inverted, and of the reference, both in random order.

    Every other one would not do: where classes come in turn, the halves would have no class in common.

    >>> [half.tolist() for half in halves(5, 0)]
    [[1, 2, 4], [3, 0]]
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derived(seed, "halves")))
    return order[: (count + 1) // 2], order[(count + 1) // 2 :]


def _moved(extractor: LayerExtractor) -> Embedding:
    parameter = next(extractor.model.parameters(), None)
    return lambda images: extractor.features(images if parameter is None else images.to(parameter.device))


def _described(extractor: LayerExtractor) -> str:
    model = extractor.model
    return f"{type(getattr(model, 'module', model)).__name__} {extractor.layer}"


def _pooled(features: Tensor, rows: int) -> Tensor:
    if features.ndim < 2 or len(features) != rows:
        raise ShapeError(
            f"Features must be (B, N), (B, C, H, W) or (B, T, N) with B = {rows}, got {tuple(features.shape)}."
        )
    features = features.double().cpu()
    if features.ndim == 3:
        return features.mean(1)
    return features.flatten(2).mean(2) if features.ndim > 3 else features


def _inception() -> Embedding:
    path = inception_weights()
    if path is None:
        where = Path(torch.hub.get_dir()) / "checkpoints"
        raise ConfigError(
            f"The Inception weights {INCEPTION_FILE} are not in {where}, and nothing is downloaded unasked: put "
            "torch-fidelity's file there, or pass features= another network (its distances compare among themselves)."
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(path.stem.rpartition("-")[2]):
        # torch-fidelity unpickles the file, so that a wrong one is not only useless but dangerous.
        raise DataError(f"{path} is not the file its name says (SHA-256 {found[:16]}...): delete it and get it again.")
    require("torch_fidelity", "metrics", "The Inception distance")
    fid = require("torchmetrics.image.fid", "metrics", "The Fréchet distance")
    network = fid.NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))

    def run(images: Tensor) -> Tensor:
        pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        out: Tensor = network(pixels.cpu().expand(-1, 3, -1, -1))
        return out

    return run
