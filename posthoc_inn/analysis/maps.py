"""Where in the picture, and how much, each layer's invariances let an image vary (MSC 4.2, fig. 3)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posthoc_inn.analysis.comparable import as_given, check_comparable, contexts, to_canonical
from posthoc_inn.analysis.results import Result, share_with_error
from posthoc_inn.errors import Problems, is_count
from posthoc_inn.pipeline import Pipeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = 32
"""Images that are sampled together."""
VALUES = 2**23
"""Pixel values that are held at a time, in float64."""
SHOWN = 6
"""Images in a figure."""


@dataclass(frozen=True)
class LayerMaps(Result):
    """How much pictures vary that one layer takes for the same.

    Attributes:
        layer: Its name.
        variance: Variance over samples, averaged over pixels, channels and images; images in [0, 1].
        standard_error: Its standard error over images.
        share: `variance` over `InvarianceMaps.between_images`: 1 where the layer sees nothing of what tells images
            apart.
        mean_map: Mean over samples for the first images, (K, C, H, W).
        variance_map: Variance over samples for these, averaged over channels, (K, H, W).
    """

    layer: str
    variance: float
    standard_error: float
    share: float
    mean_map: Tensor = field(repr=False, compare=False)
    variance_map: Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class InvarianceMaps(Result):
    """Pixelwise mean and variance of samples, layer by layer (MSC fig. 3).

    Attributes:
        images: B.
        samples: N, samples per image; the same v for every layer.
        seed: Of v.
        between_images: Variance of the images' reconstructions over images, averaged over pixels and channels; nan for
            one image.
        slope: Of a straight line through log(variance) against the layer's number, in nats a layer: variances grow by
            exp(slope) from layer to layer. nan for one layer.
        correlation: Of log(variance) with the layer's number; near 1 for exponential growth. nan below three layers,
            where every line fits.
        layers: In the order given.
        inputs: The first images as the autoencoder sees them, (K, C, H, W).
    """

    images: int
    samples: int
    seed: int
    between_images: float
    slope: float
    correlation: float
    layers: tuple[LayerMaps, ...]
    inputs: Tensor = field(repr=False, compare=False)

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        errors = ["" if self.images == 1 else f" ± {layer.standard_error:.1g}" for layer in self.layers]
        listed = ", ".join(f"{x.layer} {x.variance:.2g}{e}" for x, e in zip(self.layers, errors, strict=True))
        parts = [
            f"Mean and variance of {self.samples} samples that the layer cannot tell from the image. Light places can "
            "change and the layer does not notice; dark places it holds fixed. What stays sharp in the mean, it keeps. "
            f"Averaged over pixels and {self.images} image{'s' * (self.images > 1)}: {listed}."
        ]
        if not math.isnan(self.between_images):
            parts.append(f"Different images differ by {self.between_images:.2g}; a blind layer would reach this.")
        if not math.isnan(self.slope):
            fit = "" if math.isnan(self.correlation) else f" (correlation of its logarithm {self.correlation:.2f})"
            parts.append(f"From layer to layer the variance is multiplied by {math.exp(self.slope):.2f}{fit}.")
        parts.append(
            "A variance is not importance for the prediction. It is measured in pixels, so large areas count more than "
            "small ones, and a t that makes too little of z adds to it. The fit takes layers as equally far apart."
        )
        return " ".join(parts)

    def figure(self, rows: int = SHOWN) -> Figure:
        """Draw MSC fig. 3 for the first `rows` images: input, mean and variance per layer, and the averages."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        from posthoc_inn.drawing import BLUE, INK, MAP, SOFT, Column, as_label, grid, level, new_figure, plain, wrapped

        n = min(rows, len(self.inputs))
        shown = torch.cat([layer.variance_map[:n].flatten() for layer in self.layers])
        # A few pixels would leave all others dark.
        limit = max(float(shown.quantile(0.99)) if len(shown) < 2**24 else float(shown.max()), 1e-12)
        columns = [Column(self.inputs[:n], "input")]
        for layer in self.layers:
            columns.append(Column(layer.mean_map[:n], f"{wrapped(layer.layer)}\nmean", gap=True))
            columns.append(Column(layer.variance_map[:n], "variance"))
        wide, high = 0.98 * len(columns) + 0.22 * len(self.layers), 0.95 * n + 0.4
        curve_height = max(high, 2.4)
        figure = new_figure(wide + 4.6, curve_height)
        left, right = figure.subplots(1, 2, width_ratios=(wide + 0.9, 3.7))
        grid(columns, limit=limit, inch=0.86, heading_color=INK, ax=left)
        bar = figure.colorbar(ScalarMappable(Normalize(0, limit), MAP), ax=left, shrink=0.8, pad=0.01, extend="max")
        bar.set_label("variance over samples,\nimages in [0, 1]", color=SOFT, size=8)
        bar.ax.tick_params(colors=SOFT, labelsize=7)
        depth = list(range(len(self.layers)))
        values = [layer.variance for layer in self.layers]
        errors = [0.0 if math.isnan(layer.standard_error) else layer.standard_error for layer in self.layers]
        right.errorbar(depth, values, yerr=errors, color=BLUE, marker="o", markersize=4, linewidth=1.4, capsize=3)
        if not math.isnan(self.between_images):
            level(right, self.between_images, "between images")
        if len(values) > 1 and all(value > 0 for value in values):
            right.set_yscale("log")
            heights = [*values, *([self.between_images] if self.between_images > 0 else [])]
            steps = (1, 2, 3, 4, 6, 8) if max(heights) < 20 * min(heights) else (1,)
            right.yaxis.set_major_locator(LogLocator(subs=steps))
            right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
            right.yaxis.set_minor_formatter(NullFormatter())
        right.set_xticks(depth, [as_label(layer.layer) for layer in self.layers], rotation=30, ha="right")
        right.margins(x=0.15, y=0.15)
        right.set(ylabel=f"variance, mean over pixels\nand {self.images} image{'s' * (self.images > 1)}")
        right.set_box_aspect(0.8)
        plain(right)
        right.tick_params(axis="x", labelcolor=INK)
        return figure


@torch.no_grad()
def invariance_maps(
    pipelines: Mapping[str, Pipeline], images: Tensor, *, samples: int = 32, seed: int = 0, kept: int = SHOWN
) -> InvarianceMaps:
    """Return pixelwise mean and variance of D(t⁻¹(v given Φ(x))) over v, for each layer (MSC fig. 3).

    Every layer gets the same v. The paper draws 250 samples for each of 100 images. Memory is bounded in images and
    samples.

    Args:
        pipelines: Layer -> fitted parts, of one model and one autoencoder, in the order of depth.
        images: As given to `fit`, (B, C, H, W).
        samples: N, samples per image, at least 2.
        seed: Of v.
        kept: K, images whose maps are kept, for the figure.

    Raises:
        ConfigError: The layers cannot be compared, or a number is out of range.
        DataError: `images` do not lie in [0, 1].
        ShapeError: They are no batch of images.
    """
    first = check_comparable(pipelines, "invariance_maps")
    problems = Problems("invariance_maps")
    problems.check(
        is_count(samples, 2),
        f"samples must be a whole number of at least 2, or there is no variance, got {samples!r}",
    )
    problems.check(is_count(kept, 1), f"kept must be at least 1, got {kept!r}")
    problems.raise_if_any()
    given = as_given(first.adapter, to_canonical(first.adapter, images))
    generator = torch.Generator().manual_seed(seed)
    averages: dict[str, list[float]] = {name: [] for name in pipelines}
    means: dict[str, list[Tensor]] = {name: [] for name in pipelines}
    variances: dict[str, list[Tensor]] = {name: [] for name in pipelines}
    between = Moments()
    for start in range(0, len(given), IMAGES):
        part = given[start : start + IMAGES]
        between.add(first.reconstructions(part).cpu()[None])
        v = torch.randn(len(part), samples, first.latent_dim, generator=generator)
        for name, pipeline in pipelines.items():
            moments = _sampled(pipeline, contexts(pipeline, part), v)
            averages[name] += moments.variance.flatten(1).mean(1).tolist()
            if start < kept:
                means[name].append(moments.mean[: kept - start].float())
                variances[name].append(moments.variance[: kept - start].mean(1).float())
    scale = float(between.variance.mean()) if len(given) > 1 else math.nan
    layers = []
    for name in pipelines:
        mean, error = share_with_error(averages[name])
        share = mean / scale if scale > 0 else math.nan
        layers.append(LayerMaps(name, mean, error, share, torch.cat(means[name]), torch.cat(variances[name])))
    slope, correlation = exponential_fit([layer.variance for layer in layers])
    inputs = first.adapter.to_images(given[:kept]).cpu()
    return InvarianceMaps(len(given), samples, seed, scale, slope, correlation, tuple(layers), inputs)


class Moments:
    """Running mean and variance over pictures that come in pieces (Chan et al. 1983), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self._squares: Tensor = torch.zeros(())

    def add(self, pictures: Tensor) -> None:
        """Take in pictures (B, N, ...): N more for each of B."""
        pictures = pictures.double()
        count, mean = pictures.shape[1], pictures.mean(1)
        squares = (pictures - mean[:, None]).square().sum(1)
        total, apart = self.count + count, mean - self.mean
        self.mean = self.mean + apart * (count / total)
        self._squares = self._squares + squares + apart.square() * (self.count * count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """The unbiased variance (B, ...)."""
        return self._squares / (self.count - 1)


def _sampled(pipeline: Pipeline, context: Tensor, v: Tensor) -> Moments:
    """Return mean and variance over samples, each (B, C, H, W)."""
    (height, width), channels = pipeline.adapter.picture_shape, pipeline.adapter.channels
    step = max(1, VALUES // (len(v) * channels * height * width))
    moments = Moments()
    for part in v.split(step, dim=1):
        latents = pipeline.sample_latents(context, part)
        moments.add(pipeline.decode(latents.flatten(0, 1)).cpu().unflatten(0, latents.shape[:2]))
    return moments


def exponential_fit(values: Sequence[float]) -> tuple[float, float]:
    """Return slope and correlation of log(value) against 0, 1, 2, ...; nan where they are not defined.

    >>> slope, correlation = exponential_fit([1.0, 2.0, 4.0])
    >>> round(math.exp(slope), 6), round(correlation, 6)
    (2.0, 1.0)
    """
    if len(values) < 2 or not all(value > 0 for value in values):
        return math.nan, math.nan
    depth, logs = range(len(values)), [math.log(value) for value in values]
    slope = statistics.linear_regression(depth, logs).slope
    if len(values) < 3 or min(logs) == max(logs):
        return slope, math.nan
    return slope, statistics.correlation(depth, logs)
