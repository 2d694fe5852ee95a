"""How likely the points of walks are: straight lines in e against straight lines in z_bar (IIN fig. 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posthoc_inn.analysis.results import Result
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.drawing import INK, PALETTE, as_label, axes, plain
from posthoc_inn.errors import ConfigError, ShapeError
from posthoc_inn.objectives import flow_nll

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHUNK = 4096
"""Latents whose likelihood is computed at a time."""
Density = Callable[[Tensor], Tensor]
"""Negative log-likelihood (B,), in nats, of latents (B, *shape)."""


def concept_nll(concepts: ConceptModel, x: Tensor) -> Tensor:
    """Return the negative log-likelihood of `x` (B, *shape) under the density of e alone, (B,), in nats.

    Raises:
        ShapeError: `x` has another shape.
    """
    if tuple(x.shape[1:]) != concepts.shape:
        raise ShapeError(f"e takes {concepts.space} of shape (B, *{concepts.shape}), got {tuple(x.shape)}.")
    device = next(concepts.flow.parameters()).device
    parts = []
    with torch.no_grad():
        for rows in x.flatten(1).split(CHUNK):
            factors, log_det = concepts.flow(rows.to(device))
            parts.append(flow_nll(torch.cat(factors, dim=-1), log_det))
    return torch.cat(parts)


@dataclass(frozen=True)
class WalkDensity(Result):
    """How likely the points of paths are (IIN fig. 4): low where the data lie, high off them.

    Attributes:
        density: What the likelihood is taken under.
        paths: Paths of each kind, between the same images.
        positions: Share of the way, from 0 to 1.
        nats: Negative log-likelihood of a latent, the mean over paths at each position, by kind of walk.
        errors: Its standard errors.
        difference: Nats by which each kind exceeds the first one between the ends, the mean over paths and inner
            positions: positive where the first kind is likelier. 0 for the first.
        difference_error: Its standard errors, over paths (the comparison is within pairs of images).
    """

    density: str
    paths: int
    positions: tuple[float, ...]
    nats: dict[str, tuple[float, ...]] = field(repr=False)
    errors: dict[str, tuple[float, ...]] = field(repr=False)
    difference: dict[str, float]
    difference_error: dict[str, float]

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        first, *others = self.nats
        costs = "; ".join(
            f"{other} costs {self.difference[other]:.1f} ± {self.difference_error[other]:.1f} nats a picture more "
            f"than {first}"
            for other in others
        )
        return (
            f"Negative log-likelihood, under {self.density}, of the latents on walks between {self.paths} pairs of "
            f"images; the ends are the images themselves. Lower is likelier{': ' + costs if costs else ''}. The "
            "middle of a straight line has a smaller norm than its ends, so it can be likelier than any image and "
            "still not be typical. A density that made the walk favours that walk. Likelihood is not picture quality: "
            "look at the decoded pictures too."
        )

    def figure(self, ax: Axes | None = None) -> Figure:
        """Draw nats along the way, one line a kind of walk with two standard errors around it."""
        figure, ax = axes(ax, 5.6, 3.0)
        for color, (name, nats) in zip(PALETTE * len(self.nats), self.nats.items(), strict=False):
            ax.plot(self.positions, nats, color=color, linewidth=1.6, label=as_label(name))
            low, high = ([m + sign * 2 * e for m, e in zip(nats, self.errors[name], strict=True)] for sign in (-1, 1))
            ax.fill_between(self.positions, low, high, color=color, alpha=0.18, linewidth=0)
        ax.set(xlabel="share of the way from one image to the other", ylabel="negative log-likelihood, nats")
        ax.set_title(f"under {as_label(self.density, 60)}; lower is likelier", size=8.5, color=INK, loc="left")
        plain(ax)
        ax.legend(frameon=False, fontsize=8, labelcolor=INK)
        return figure


@torch.no_grad()
def walk_density(
    paths: Mapping[str, Tensor], density: ConceptModel | Density, *, name: str | None = None
) -> WalkDensity:
    """Measure how likely the points of walks are; the walks of all kinds join the same images in the same order.

    Args:
        paths: Kind of walk -> latents (B, steps, *shape), from `walk` or `latent_walk`; the first is compared with.
        density: A fitted e, best an unsupervised one that no walk was made with, or any function of latents
            (B, *shape) that returns nats (B,), such as `objectives.standard_normal_nll` for the autoencoder's prior.
        name: What to call the density; needed for a function.

    Raises:
        ShapeError: Paths are not of one shape, with at least 2 of them and 3 points on each; or the density does not
            return one value a row.
        ConfigError: There are no paths, or a function has no name.
    """
    if not paths:
        raise ConfigError("There are no paths: pass {'linear in e': walk(...), 'linear in z_bar': latent_walk(...)}.")
    if name is None and not isinstance(density, ConceptModel):
        raise ConfigError("A density given as a function needs a name: pass name='N(0, 1)' or the like.")
    shapes = {tuple(p.shape) for p in paths.values()}
    shape = shapes.pop()
    if shapes or len(shape) < 3 or shape[0] < 2 or shape[1] < 3:
        raise ShapeError(
            "Paths must be (B, steps, *shape), all alike, with B at least 2 and 3 steps or more; got "
            f"{', '.join(str(tuple(p.shape)) for p in paths.values())}."
        )
    nll = (lambda rows: concept_nll(density, rows)) if isinstance(density, ConceptModel) else density
    rows, steps = shape[:2]
    found: dict[str, Tensor] = {}
    for kind, path in paths.items():
        nats = torch.cat([nll(part) for part in path.flatten(0, 1).split(CHUNK)])
        if nats.shape != (rows * steps,):
            raise ShapeError(f"The density must return one value a row, ({rows * steps},); got {tuple(nats.shape)}.")
        found[kind] = nats.double().cpu().reshape(rows, steps)
    reference = next(iter(found.values()))
    excess = {kind: (nats - reference)[:, 1:-1].mean(1) for kind, nats in found.items()}
    return WalkDensity(
        density=name or f"e over {density.space}" if isinstance(density, ConceptModel) else str(name),
        paths=rows,
        positions=tuple(torch.linspace(0, 1, steps, dtype=torch.float64).tolist()),
        nats={kind: tuple(nats.mean(0).tolist()) for kind, nats in found.items()},
        errors={kind: tuple((nats.std(0) / math.sqrt(rows)).tolist()) for kind, nats in found.items()},
        difference={kind: float(gap.mean()) for kind, gap in excess.items()},
        difference_error={kind: float(gap.std()) / math.sqrt(rows) for kind, gap in excess.items()},
    )
