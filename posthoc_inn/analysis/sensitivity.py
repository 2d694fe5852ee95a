"""How far editing one concept moves the model's embedding (MSC fig. 7, last row), beside random edits of its size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_inn.analysis.editing import Names, factor_columns, listed_factors
from posthoc_inn.analysis.results import Result, by_name, share_with_error
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.drawing import BLUE, INK, ORANGE, RED, SOFT, as_label, new_figure, plain
from posthoc_inn.errors import ConfigError, Problems, ShapeError
from posthoc_inn.pipeline import Pipeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Edit = Literal["swap", "resample"]
At = Literal["layer", "output"]

SUBSPACES = 16
"""Random subspaces that the images take in turns, so that no single one decides."""
ROWS = 512
"""Images edited, decoded and shown to the model at a time."""


@dataclass(frozen=True)
class Distances(Result):
    """Mean distances between embeddings before and after an edit.

    Attributes:
        euclidean: Euclidean distance, the paper's ‖f(x) - f(x*)‖, in the embedding's units.
        euclidean_error: Its standard error over images.
        cosine: Cosine distance, 0 for the same direction to 2 for the opposite one.
        cosine_error: Its standard error over images.
    """

    euclidean: float
    euclidean_error: float
    cosine: float
    cosine_error: float


@dataclass(frozen=True)
class ConceptDistance(Result):
    """What editing one concept does to the embedding.

    Attributes:
        name: The concept.
        width: Dimensions of its factor.
        moved: Mean Euclidean distance between z_bar before and after the edit.
        edit: The concept's edit.
        same_width: The same edit of a random subspace of the factor space, of as many dimensions: a concept that means
            nothing.
        same_norm: A step in a random direction of the factor space, as long as moves z_bar as far as the edit did.
        ratio: `edit` over `same_width`, Euclidean: above 1 the model cares more than for any directions.
    """

    name: str
    width: int
    moved: float
    edit: Distances
    same_width: Distances
    same_norm: Distances
    ratio: float


@dataclass(frozen=True)
class ConceptSensitivity(Result):
    """MSC fig. 7, last row, with baselines.

    Attributes:
        concepts: One result a concept, in the order of e.
        between: Distances between different images: what changing everything does.
        embedding: Which embedding.
        edit: "swap": the factor of another image; "resample": drawn with its deviation over held-out images.
        images: Images edited.
    """

    concepts: tuple[ConceptDistance, ...]
    between: Distances
    embedding: str
    edit: str
    images: int

    def __getitem__(self, name: str) -> ConceptDistance:
        return by_name(self.concepts, name, "concept")

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        order = sorted(self.concepts, key=lambda c: -c.edit.euclidean)
        distances = "; ".join(
            f"{c.name} {c.edit.euclidean:.3g} ± {c.edit.euclidean_error:.2g} ({c.ratio:.2f} of a random edit)"
            for c in order
        )
        how = "swapped for another image's" if self.edit == "swap" else "drawn again"
        return (
            f"Mean distance between the {self.embedding} of {self.images} decoded images before and after one factor "
            f"is {how}: {distances}. Different images are {self.between.euclidean:.3g} apart. The model attends to a "
            "factor that moves the embedding more than random edits of its width, and ignores one that moves it less. "
            "Edits are only as clean as e: what leaks from one factor to another counts too. So do artefacts of the "
            "decoder for unusual latents, which the baseline of equal change in z_bar shows."
        )

    def figure(self) -> Figure:
        """Draw a bar a concept, longest first, with both baselines, Euclidean on the left and cosine on the right."""
        order = sorted(self.concepts, key=lambda c: c.edit.euclidean)
        figure = new_figure(9.2, 0.46 * len(order) + 1.25)
        panels: list[Axes] = list(figure.subplots(1, 2, sharey=True))
        rows = list(range(len(order)))
        for ax, kind in zip(panels, ("euclidean", "cosine"), strict=True):
            mean = [getattr(c.edit, kind) for c in order]
            error = [2 * getattr(c.edit, f"{kind}_error") for c in order]
            ax.barh(rows, mean, xerr=error, color=BLUE, height=0.6, ecolor=INK, label="edit of the concept")
            for field, color, marker, text in (
                ("same_width", ORANGE, "D", "random edit, as many dimensions"),
                ("same_norm", RED, "o", "random edit, equal change of latent"),
            ):
                ax.errorbar(
                    [getattr(getattr(c, field), kind) for c in order],
                    rows,
                    color=color,
                    fmt=marker,
                    markersize=5,
                    xerr=[2 * getattr(getattr(c, field), f"{kind}_error") for c in order],
                    label=text,
                    elinewidth=1,
                )
            ax.axvline(getattr(self.between, kind), color=SOFT, linewidth=1, linestyle=(0, (4, 3)), label="other image")
            ax.set_yticks(rows, [f"{as_label(c.name)} ({c.width})" for c in order])
            ax.set_xlabel(f"{'Euclidean' if kind == 'euclidean' else kind} distance, mean ± 2 standard errors")
            ax.set_xlim(left=0)
            plain(ax)
        panels[0].tick_params(axis="y", labelcolor=INK)
        handles, texts = panels[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper center", ncols=4, frameon=False, fontsize=8, labelcolor=INK)
        return figure


@torch.no_grad()
def concept_sensitivity(
    pipeline: Pipeline,
    concepts: ConceptModel,
    z_bar: Tensor,
    names: Names | None = None,
    *,
    edit: Edit = "swap",
    at: At = "layer",
    labels: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> ConceptSensitivity:
    """Edit one concept at a time in decoded images, and measure how far the model's embedding moves.

    Args:
        pipeline: The fitted parts.
        concepts: e over z_bar.
        z_bar: Latents (B, D) of two or more held-out images.
        names: Which factors; None for all, the residual included.
        edit: "swap" with a random other image of the batch (the paper's), or "resample" with the factor's deviation.
        at: Embedding: z at the pipeline's layer, or the model's output; flattened.
        labels: Concept -> whole numbers (B,): swaps of it take an image that differs in it, as the paper's do. Without
            them many swaps of a concept with few values change nothing.
        seed: Of sources, draws and baselines.

    Raises:
        ConfigError: e does not work on z_bar, an option is unknown, or all images have one label.
        ShapeError: `z_bar` is not (B, D) with at least 2 rows, or labels are not one whole number an image.
        UnknownNameError: There is no such factor.
    """
    _check(pipeline, concepts, z_bar, edit, at)
    numbers = listed_factors(concepts, names)
    known = {concepts.factor_names[concepts.index(name)]: values for name, values in (labels or {}).items()}
    generator = torch.Generator().manual_seed(seed)
    factors = concepts.joined(z_bar)
    z_bar = z_bar.to(factors)
    before = _embed(pipeline, z_bar, at)
    found = []
    for number in numbers:
        name = concepts.factor_names[number]
        columns = factor_columns(concepts, number)
        if edit == "swap":
            target = factors[_others(len(z_bar), known.get(name), name, generator).to(factors.device)]
        else:
            target = concepts.drawn(len(factors), generator=generator).to(factors)
        edited = factors.clone()
        edited[:, columns] = target[:, columns]
        changed = concepts.inverse(edited)
        moved = (changed - z_bar).norm(dim=1)
        towards = random_subspace_swap(factors, target, len(columns), generator)
        step = concepts.drawn(len(factors), generator=generator).to(factors)
        drift = step_of_size(concepts, z_bar, factors, step, moved)
        of_edit, of_width, of_norm = (
            _distances(before, _embed(pipeline, latents, at)) for latents in (changed, concepts.inverse(towards), drift)
        )
        ratio = of_edit.euclidean / of_width.euclidean if of_width.euclidean > 0 else math.nan
        moved_by = float(moved.mean())
        found.append(ConceptDistance(name, len(columns), moved_by, of_edit, of_width, of_norm, ratio))
    return ConceptSensitivity(
        concepts=tuple(found),
        between=_distances(before, before.roll(1, 0)),
        embedding=f"z at {pipeline.extractor.layer!r}" if at == "layer" else "model's output",
        edit=edit,
        images=len(z_bar),
    )


def _check(pipeline: Pipeline, concepts: ConceptModel, z_bar: Tensor, edit: Edit, at: At) -> None:
    problems = Problems("concept_sensitivity")
    problems.check(
        concepts.space == "z_bar", f"e must work on z_bar, to be decoded; this one works on {concepts.space}"
    )
    problems.check(edit in get_args(Edit), f"edit must be 'swap' or 'resample', got {edit!r}")
    problems.check(at in get_args(At), f"at must be 'layer' or 'output', got {at!r}")
    problems.raise_if_any()
    if z_bar.ndim != 2 or len(z_bar) < 2:
        raise ShapeError(f"z_bar must be (B, {pipeline.latent_dim}) with at least 2 images, got {tuple(z_bar.shape)}.")


def random_subspace_swap(factors: Tensor, target: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Return `factors` (B, D) with their part in a random subspace replaced by that of `target` (B, D).

    e + Q Qᵀ (e' - e), Q orthonormal (D, width). Images take `SUBSPACES` subspaces in turns.
    """
    out = factors.clone()
    for turn in range(min(SUBSPACES, len(factors))):
        basis, _ = torch.linalg.qr(torch.randn(factors.shape[1], width, generator=generator, dtype=torch.float64))
        basis = basis.to(factors)
        gap = target[turn::SUBSPACES] - factors[turn::SUBSPACES]
        out[turn::SUBSPACES] += gap @ basis @ basis.T
    return out


def step_of_size(concepts: ConceptModel, x: Tensor, factors: Tensor, step: Tensor, size: Tensor) -> Tensor:
    """Return e⁻¹(factors + s step) with s > 0 such that it lies at distance `size` from `x`.

    Args:
        concepts: e.
        x: Latents (B, *shape).
        factors: e(x), (B, D).
        step: Directions (B, D), of any length.
        size: Distances (B,), in the units of `x`.
    """

    def reached(s: Tensor) -> tuple[Tensor, Tensor]:
        out = concepts.inverse(factors + s[:, None] * step)
        return out, (out - x).flatten(1).norm(dim=1)

    high = torch.full_like(size, 1 / 16)
    for _ in range(12):
        short = reached(high)[1] < size
        if not bool(short.any()):
            break
        high = torch.where(short, 2 * high, high)
    low = torch.zeros_like(size)
    for _ in range(20):
        middle = (low + high) / 2
        short = reached(middle)[1] < size
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return reached((low + high) / 2)[0]


def _others(count: int, labels: Tensor | None, name: str, generator: torch.Generator) -> Tensor:
    """Return, for each of `count` images, a random other one (with another label, if there are labels)."""
    if labels is None:
        return (torch.arange(count) + torch.randint(1, count, (count,), generator=generator)) % count
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
        raise ShapeError(
            f"labels of {name!r} must be whole numbers ({count},), got {labels.dtype} {tuple(labels.shape)}."
        )
    out = torch.empty(count, dtype=torch.long)
    for value in labels.unique().tolist():
        here, pool = (labels == value).nonzero().flatten(), (labels != value).nonzero().flatten()
        if not len(pool):
            raise ConfigError(f"All {count} images have the label {value} of {name!r}: no swap can change it.")
        out[here] = pool[torch.randint(len(pool), (len(here),), generator=generator)]
    return out


def _embed(pipeline: Pipeline, z_bar: Tensor, at: At) -> Tensor:
    parts = [pipeline.ask_about(rows)[0 if at == "layer" else 1] for rows in z_bar.split(ROWS)]
    if not parts[0].numel():
        raise ConfigError("The model's output is no single tensor: measure at='layer', or name one with prediction=.")
    return torch.cat([part.flatten(1).double().cpu() for part in parts])


def _distances(before: Tensor, after: Tensor) -> Distances:
    euclidean = share_with_error((before - after).norm(dim=1).tolist())
    cosine = share_with_error((1 - F.cosine_similarity(before, after, dim=1)).tolist())
    return Distances(*euclidean, *cosine)
