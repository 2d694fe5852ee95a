"""What of a concept any layer can determine: the encoder's noise is in the factors too, and in no layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from posthoc_inn.analysis.intervals import share_interval
from posthoc_inn.analysis.invariance import Encoded
from posthoc_inn.analysis.relevance import ConceptRelevance, Share, variance_shares
from posthoc_inn.analysis.results import Result
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.seeds import derived

IMAGES, DRAWS = 200, 50


@dataclass(frozen=True)
class Ceiling(Result):
    """Shares of a factor's variance for a layer that keeps all that the encoder's mean holds.

    Attributes:
        name: The concept.
        first_order: The most that a layer's first-order share can be: 1 less what the encoder's noise makes.
        total_effect: Of such a layer, with v as the noise itself; another t may give v another meaning.
        of_reachable: First-order share of the layer at hand, over the ceiling; an interval at 95 % goes with it.
    """

    name: str
    first_order: Share
    total_effect: Share
    of_reachable: Share


@torch.no_grad()
def concept_ceilings(
    concepts: ConceptModel, encoded: Encoded, relevance: ConceptRelevance, *, seed: int = 0
) -> tuple[Ceiling, ...]:
    """Return the ceiling of each concept's share, and what of it the layer reaches.

    Args:
        concepts: e over z_bar.
        encoded: The encoder's mean and deviation for held-out images, each (B, D), B at least 3.
        relevance: Of the layer.
        seed: Of the encoder's noise.
    """
    mean, std = encoded[0][:IMAGES], encoded[1][:IMAGES]
    generator = torch.Generator().manual_seed(derived(seed, "ceilings"))
    noise = torch.randn(DRAWS, mean.shape[1], generator=generator)
    # The same noise at every image: a grid, as relevance has one.
    parts = zip(mean.split(64), std.split(64), strict=True)
    table = torch.cat([concepts.joined(m[:, None].cpu() + s[:, None].cpu() * noise).cpu() for m, s in parts])
    found = []
    for own in relevance.concepts:
        most = variance_shares(table[..., concepts.part(own.name)], own.name)
        reached = _ratio(own.first_order, most.first_order, relevance.images)
        found.append(Ceiling(own.name, most.first_order, most.total_effect, reached))
    return tuple(found)


def _ratio(part: Share, whole: Share, images: int) -> Share:
    """Return the quotient of two shares with the error of independent ones: those of the same images err alike."""
    if whole.value <= 0:
        return Share(math.nan, math.nan, (math.nan, math.nan))
    value = part.value / whole.value
    error = math.hypot(part.standard_error, value * whole.standard_error) / whole.value
    is_told = math.isfinite(part.interval[0])
    interval = share_interval(value, error, images - 1) if is_told else (math.nan, math.nan)
    return Share(value, error, interval)
