"""Network response (IIN 4.2): a random walk in one factor, mapped back into the model, and what the output does.

The walk is an Ornstein-Uhlenbeck process whose stationary law is that of the factors, N(0, s²) with their deviations s
over held-out images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posthoc_inn.analysis.comparable import check_gives_classes, log_probabilities
from posthoc_inn.analysis.editing import Names, factor_columns, listed_factors
from posthoc_inn.analysis.results import Result, by_name, share_with_error
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.drawing import BLUE, INK, ORANGE, SOFT, as_label, new_figure, plain
from posthoc_inn.errors import ConfigError, Problems, ShapeError
from posthoc_inn.features.outputs import is_classification
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.seeds import derived

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Head = Callable[[Tensor], Tensor]
"""Class scores (B, classes) of representations or latents (B, *shape)."""

ROWS, VALUES = 4096, 1 << 22
"""Points of walks, and their values, that are held at a time."""
MODEL_ROWS = 128
"""Points that go through the model at a time."""
SHOWN_CLASSES, SHOWN_VALUES = 12, 400_000
"""Classes that a figure shows at the most, and values that are kept for it."""
BOOTSTRAP = 1000
"""Resamples of images for the intervals of ratios."""


def ornstein_uhlenbeck(start: Tensor, steps: int, correlation: float, generator: torch.Generator) -> Tensor:
    """Walk from `start` with x' = a x + √(1 - a²) n, n ~ N(0, 1): the process discretised exactly.

    Args:
        start: Where walks begin, (B, N).
        steps: Steps of each.
        correlation: a, the correlation of successive points: 0 draws each point afresh.
        generator: Of the noise.

    Returns:
        Points (B, steps + 1, N), the first being `start`.

    Raises:
        ConfigError: `steps` is not positive, or `correlation` is outside [0, 1).

    >>> walk = ornstein_uhlenbeck(torch.zeros(2, 3), 400, 0.5, torch.Generator().manual_seed(0))
    >>> walk.shape, 0.9 < float(walk.std()) < 1.1
    (torch.Size([2, 401, 3]), True)
    """
    problems = Problems("ornstein_uhlenbeck")
    problems.check(steps >= 1, f"steps must be at least 1, got {steps}")
    problems.check(0 <= correlation < 1, f"correlation must be in [0, 1), got {correlation}")
    problems.raise_if_any()
    # Row by row, so that walks do not depend on how rows are split into chunks.
    noise = start.new_empty(len(start), steps, start.shape[1])
    for row in noise:
        row.copy_(torch.randn(row.shape, generator=generator))
    points = [start]
    for step in range(steps):
        points.append(correlation * points[-1] + math.sqrt(1 - correlation**2) * noise[:, step])
    return torch.stack(points, dim=1)


@dataclass(frozen=True)
class FactorResponse(Result):
    """What the model's output does while one factor walks.

    Attributes:
        name: The factor.
        width: Its width.
        spread: Standard deviation of log-softmax over a walk, in nats, averaged over classes and images.
        spread_error: Its standard error over images.
        spread_per_class: The same for each class.
        changed: Share of steps at which the predicted class is not that of the start.
        changed_error: Its standard error over images.
        classes: Predicted classes on a walk, the start's included, averaged over images; 1 is no change at all.
        moved: Distance from the start to a point of the walk where e works (z or z_bar), divided by the distance
            between two images. Near 0, the factor has nothing to say there, and no response is to be expected.
    """

    name: str
    width: int
    spread: float
    spread_error: float
    spread_per_class: tuple[float, ...] = field(repr=False)
    changed: float
    changed_error: float
    classes: float
    moved: float


@dataclass(frozen=True)
class Response(Result):
    """IIN fig. 9: which factors the output of a classifier responds to.

    Attributes:
        factors: One result a factor.
        ratio: ratio[a][b] is the spread of a divided by that of b.
        ratio_interval: Its bootstrap interval over images, at 95 %.
        space: What e works on: "z", the layer, or "z_bar", latents of the autoencoder.
        via: How a point of a walk reached the output, in words.
        is_cut: Whether the output depends on the image through this layer alone; None where it does not matter or
            is unknown.
        images: Images walked from.
        steps: Steps of each walk.
        correlation: Of successive points.
        class_names: Of the classes that the figure shows.
        changes: Log-softmax minus that at the start, for the shown classes (F, R, S).
        counts: Steps at which a shown class was predicted, (F, 2, S): by walks that started in it, and by others.
    """

    factors: tuple[FactorResponse, ...]
    ratio: dict[str, dict[str, float]]
    ratio_interval: dict[str, dict[str, tuple[float, float]]] = field(repr=False)
    space: str
    via: str
    is_cut: bool | None
    images: int
    steps: int
    correlation: float
    class_names: tuple[str, ...]
    changes: Tensor = field(repr=False)
    counts: Tensor = field(repr=False)

    def __getitem__(self, name: str) -> FactorResponse:
        return by_name(self.factors, name, "factor")

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        order = sorted(self.factors, key=lambda f: -f.spread)
        spreads = "; ".join(
            f"{f.name} {f.spread:.2f} ± {f.spread_error:.2f} nats, class changed at {100 * f.changed:.0f} % of steps"
            for f in order
        )
        note = ""
        if self.is_cut is False:
            note = " The image also reaches the output around this layer, so true responses are larger."
        return (
            f"A random walk of {self.steps} steps in one factor, the others fixed, from each of {self.images} images, "
            f"through {self.via}. Spread of log-softmax: {spreads}. The classifier ignores a factor with a small "
            "spread, if e isolates the concept and if the walk moves the representation (see `moved`); what e holds in "
            "other factors does not show here. Wide factors carry more than narrow ones, and so move more." + note
        )

    def figure(self) -> Figure:
        """Draw, one row a factor, log-softmax along walks and the classes that were predicted."""
        rows, shown = len(self.factors), len(self.class_names)
        figure = new_figure(9.2, 0.75 + 1.45 * rows)
        grid = figure.subplots(rows, 2, squeeze=False, sharex=True, sharey="col", width_ratios=(1.5, 1))
        places, classes = list(range(shown)), [as_label(name, 16) for name in self.class_names]
        for row, factor in enumerate(self.factors):
            left, right = grid[row]
            left.boxplot(
                [self.changes[row, :, k].numpy() for k in range(shown)],
                positions=places,
                whis=(5, 95),
                showfliers=False,
                widths=0.6,
                patch_artist=True,
                medianprops={"color": INK},
                boxprops={"facecolor": BLUE, "alpha": 0.55, "edgecolor": BLUE},
                whiskerprops={"color": BLUE},
                capprops={"color": BLUE},
            )
            left.axhline(0, color=SOFT, linewidth=0.8)
            total = max(1.0, float(self.counts[row].sum()))
            same, other = (100 * self.counts[row] / total).tolist()
            right.bar(places, same, color=BLUE, width=0.7, label="as at the start")
            right.bar(places, other, bottom=same, color=ORANGE, width=0.7, label="another class")
            for ax in (left, right):
                plain(ax)
                ax.set_xticks(places, classes, rotation=90 if max(map(len, classes)) > 3 else 0)
            left.set_title(
                f"{as_label(factor.name, 24)} ({factor.width} dims): spread {factor.spread:.2f} ± "
                f"{factor.spread_error:.2f} nats",
                size=8.5,
                color=INK,
                loc="left",
            )
            right.set_title(f"class changed at {100 * factor.changed:.0f} % of steps", size=8.5, color=INK, loc="left")
            left.set_ylabel("log-softmax\nminus start, nats")
            right.set_ylabel("% of steps")
        handles, texts = grid[0, 1].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper right", ncols=2, frameon=False, fontsize=8, labelcolor=INK)
        grid[0, 1].set_ylim(0, 108 * float((self.counts.sum(1) / self.counts.sum((1, 2))[:, None].clamp_min(1)).max()))
        for ax in grid[-1]:
            ax.set_xlabel("class")
        return figure


@torch.no_grad()
def response(
    model: Pipeline | Head,
    concepts: ConceptModel,
    x: Tensor,
    names: Names | None = None,
    *,
    images: int = 100,
    steps: int = 100,
    correlation: float = 0.9,
    seed: int = 0,
    class_names: Sequence[str] = (),
) -> Response:
    """Walk in each factor alone and watch the classifier (IIN 4.2).

    Args:
        model: The fitted parts: points of a walk go through Ψ when e works on the layer's z, and through the
            decoder and the whole model when it works on z_bar. Or a function of what e works on, (B, *shape), that
            returns class scores (B, classes).
        concepts: e.
        x: With the fitted parts the user's tensors (B, C, H, W); with a function z or z_bar (B, *shape).
        names: Which factors; None for all.
        images: Rows of `x` that are used at the most.
        steps: Steps of a walk.
        correlation: Of successive points of a walk.
        seed: Of the walks; each factor has a stream of its own.
        class_names: Of all classes; their numbers when left out.

    Raises:
        ShapeError: The output is no row of class scores an image, or `x` or z has another shape than e takes.
        ConfigError: The model's prediction is known to be something else than class scores, `x` is empty, or an
            argument is out of range.
        UnknownNameError: There is no such factor.
    """
    if images < 1 or not len(x):
        raise ConfigError(f"Walks need at least one image: got images={images} and {len(x)} rows.")
    numbers = listed_factors(concepts, names)
    ask, start, via, is_cut = _reader(model, concepts, x[:images])
    at_start = _log_softmax(ask(start, torch.arange(len(start))))
    classes = at_start.shape[1]
    if class_names and len(class_names) != classes:
        raise ConfigError(f"The model has {classes} classes, got {len(class_names)} class_names.")
    joined = concepts.joined(start)
    between = float((start - start.roll(1, 0)).flatten(1).norm(dim=1).mean()) if len(start) > 1 else math.nan
    group = max(1, min(ROWS, VALUES // joined.shape[1]) // steps)
    stride = max(1, len(start) * steps * classes // SHOWN_VALUES)
    walks = _Walks(ask, start, at_start, steps, correlation, seed, group, stride)
    found = [walks.along(concepts, number, joined) for number in numbers]
    spreads, counts = torch.stack([w.spread.mean(1) for w in found]), torch.stack([w.tally for w in found])
    ratio, interval = _ratios([concepts.factor_names[k] for k in numbers], spreads, seed)
    seen_often = counts.sum((0, 1)).topk(min(SHOWN_CLASSES, classes)).indices.sort().values
    return Response(
        factors=tuple(_response(concepts, k, w, between) for k, w in zip(numbers, found, strict=True)),
        ratio=ratio,
        ratio_interval=interval,
        space=concepts.space,
        via=via,
        is_cut=is_cut,
        images=len(start),
        steps=steps,
        correlation=correlation,
        class_names=tuple(str(class_names[k]) if class_names else str(k) for k in seen_often.tolist()),
        changes=torch.stack([w.changes for w in found])[..., seen_often],
        counts=counts[..., seen_often],
    )


Ask = Callable[[Tensor, Tensor], Tensor]
"""Points and the images they belong to -> class scores."""


@dataclass(frozen=True)
class _Walked:
    """What walks in one factor met.

    Attributes:
        spread: Deviation of each class's log-softmax along each walk, (B, classes).
        changed: Share of steps with another class, for each walk.
        distinct: Number of classes on each walk, that of the start included.
        moved: Mean distance from the start, (B,).
        tally: How often each class was seen: as that of the start, and as another, (2, classes).
        changes: Changes of log-softmax at some of the points, (P, classes).
    """

    spread: Tensor
    changed: list[float]
    distinct: list[int]
    moved: Tensor
    tally: Tensor
    changes: Tensor


@dataclass(frozen=True)
class _Walks:
    """Walks from some images, and how class scores are had for their points.

    Attributes:
        ask: Points and the images they belong to -> class scores.
        start: Where walks start, (B, *shape).
        at_start: log-softmax there, (B, classes).
        steps: Of a walk.
        correlation: Of successive points.
        seed: Each factor has a stream of its own.
        group: Images that walk at a time.
        stride: One of so many changes is kept.
    """

    ask: Ask
    start: Tensor
    at_start: Tensor
    steps: int
    correlation: float
    seed: int
    group: int
    stride: int

    def along(self, concepts: ConceptModel, number: int, joined: Tensor) -> _Walked:
        """Walk in one factor of e; `joined` is e(start), (B, D)."""
        generator = torch.Generator().manual_seed(derived(self.seed, "walk", number))
        columns, classes = factor_columns(concepts, number), self.at_start.shape[1]
        first, steps = self.at_start.argmax(1), self.steps
        spread, changed, distinct, moved, kept = [], [], [], [], []
        tally = torch.zeros(2, classes, dtype=torch.float64)
        for rows in torch.arange(len(self.start)).split(self.group):
            factors = joined[rows][:, None].repeat(1, steps, 1)
            scale = concepts.deviation[columns]
            walk = ornstein_uhlenbeck(joined[rows][:, columns] / scale, steps, self.correlation, generator)
            factors[..., columns] = walk[:, 1:] * scale
            points = concepts.inverse(factors)
            away = (points - self.start[rows][:, None].to(points)).flatten(2).norm(dim=2)
            moved.append(away.mean(1).cpu())
            owner = rows.repeat_interleave(steps)
            logs = _log_softmax(self.ask(points.flatten(0, 1), owner)).reshape(len(rows), steps, classes)
            seen = logs.argmax(2)
            is_other = seen != first[rows][:, None]
            # One step has no deviation: the spread of a walk of one step is 0, not undefined.
            spread.append(logs.std(1, correction=min(1, steps - 1)))
            changed += is_other.double().mean(1).tolist()
            distinct += [len(set(path.tolist()) | {int(own)}) for path, own in zip(seen, first[rows], strict=True)]
            for part in (0, 1):
                tally[part] += torch.bincount(seen[is_other == bool(part)], minlength=classes)
            kept.append((logs - self.at_start[rows][:, None]).flatten(0, 1)[:: self.stride].float())
        return _Walked(torch.cat(spread), changed, distinct, torch.cat(moved), tally, torch.cat(kept))


def _response(concepts: ConceptModel, number: int, walked: _Walked, between: float) -> FactorResponse:
    """Sum up walks in one factor; `between` is the mean distance of two images."""
    mean, error = share_with_error(walked.spread.mean(1).tolist())
    share, share_error = share_with_error(walked.changed)
    return FactorResponse(
        concepts.factor_names[number],
        len(factor_columns(concepts, number)),
        mean,
        error,
        tuple(walked.spread.mean(0).tolist()),
        share,
        share_error,
        sum(walked.distinct) / len(walked.distinct),
        float(walked.moved.mean()) / between,
    )


def _reader(model: Pipeline | Head, concepts: ConceptModel, x: Tensor) -> tuple[Ask, Tensor, str, bool | None]:
    """Return how class scores are had for points and the images they belong to, the starts, and how in words."""
    if not isinstance(model, Pipeline):
        head = model
        return _chunked(lambda rows, _: head(rows)), x, "a given function of " + concepts.space, None
    pipeline = model
    check_gives_classes(pipeline, "The response analysis")
    if concepts.space == "z_bar":
        ask = lambda rows, _: pipeline.ask_about(rows)[1]  # noqa: E731
        return _chunked(ask), pipeline.encode(x)[0], "the decoder and then the whole model", None
    inputs = pipeline.adapter.to_model(x.to(pipeline.device))
    is_cut = pipeline.extractor.probe(inputs).is_cut
    # Where the layer is a true cut the inputs' values do not matter; elsewhere the image's own are right.
    resume = lambda rows, owner: pipeline.extractor.resume(inputs[owner.to(inputs.device)], rows)  # noqa: E731
    via = f"the model resumed from {pipeline.extractor.layer!r}"
    return _chunked(resume), pipeline.features(x), via, is_cut


def _chunked(ask: Ask) -> Ask:
    def all_rows(rows: Tensor, owner: Tensor) -> Tensor:
        parts = [ask(r, o).cpu() for r, o in zip(rows.split(MODEL_ROWS), owner.split(MODEL_ROWS), strict=True)]
        return torch.cat(parts)

    return all_rows


def _log_softmax(scores: Tensor) -> Tensor:
    if not is_classification(scores):
        raise ShapeError(
            f"The response analysis needs class scores (B, classes), got an output of shape {tuple(scores.shape)}. "
            "For other outputs pass a function that returns scores."
        )
    return log_probabilities(scores)  # a model may end in a softmax already


def _ratios(
    names: list[str], spread: Tensor, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, tuple[float, float]]]]:
    """Return ratios of mean spreads, and their intervals, for spreads (F, B) of factors in the same images."""
    images = spread.shape[1]
    picks = torch.randint(images, (BOOTSTRAP, images), generator=torch.Generator().manual_seed(seed))
    drawn = torch.stack([s[picks].mean(1) for s in spread])
    levels = torch.tensor([0.025, 0.975], dtype=torch.float64)
    ratio: dict[str, dict[str, float]] = {}
    interval: dict[str, dict[str, tuple[float, float]]] = {}
    for i, a in enumerate(names):
        ratio[a] = {b: float(spread[i].mean() / spread[j].mean()) for j, b in enumerate(names) if i != j}
        ends = {b: (drawn[i] / drawn[j]).quantile(levels).tolist() for j, b in enumerate(names) if i != j}
        interval[a] = {b: (low, high) for b, (low, high) in ends.items()}
    return ratio, interval
