"""How much the main figures vary between trainings of t with other seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from posthoc_inn.analysis.faithfulness import faithfulness
from posthoc_inn.analysis.invariance import explained_by_invariances
from posthoc_inn.analysis.likelihood import held_out_nats
from posthoc_inn.analysis.results import Result
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.rows.cache import Cache


@dataclass(frozen=True)
class Refits(Result):
    """The main figures of several trainings of t.

    Attributes:
        trainings: How many there were, the first, which is the t that is used, included.
        values: Figure -> its value of each training, the first first; only figures that there are.
        deviation: Figure -> standard deviation over trainings.
    """

    trainings: int
    values: Mapping[str, tuple[float, ...]]
    deviation: Mapping[str, float]


FIGURES = {
    "held_out": ("likelihood", "held_out"),
    "agreement": ("faithfulness", "agreement"),
    "similarity": ("faithfulness", "similarity"),
    "explained_by_invariances": ("explained_by_invariances", "value"),
}
"""Figures that are told, and where `measure` has them."""


@torch.no_grad()
def refits(
    first: Mapping[str, Any],
    pipelines: Iterable[Pipeline],
    held_out: Cache,
    *,
    explained_images: int = 500,
    seed: int = 0,
) -> Refits:
    """Measure other trainings of t on the images, and with the draws, that the first was measured with.

    Args:
        first: What `measure` told of the first.
        pipelines: The fitted parts with the t of each other training.
        held_out: Cached held-out rows that are measured.
        explained_images: Images for MSC eq. 19.
        seed: The one that `measure` had.
    """
    told = first["faithfulness"]
    some = held_out.some(int(told["images"]), seed=seed)
    z, own = held_out["z"].rows(some), held_out["prediction"].rows(some) if "prediction" in held_out else None
    varied = held_out["z"].rows(held_out.some(explained_images, seed=seed))
    found = [{name: first[part][figure] for name, (part, figure) in FIGURES.items()}]
    for pipeline in pipelines:
        faithful = faithfulness(pipeline, z, own, samples=int(told["samples"]), seed=seed)
        found.append(
            {
                "held_out": float(held_out_nats(pipeline, held_out, seed=seed).mean()),
                "agreement": faithful.agreement,
                "similarity": faithful.similarity,
                "explained_by_invariances": explained_by_invariances(pipeline, varied, seed=seed).value,
            }
        )
    values = {}
    for name in FIGURES:
        column = tuple(math.nan if one[name] is None else float(one[name]) for one in found)
        if all(map(math.isfinite, column)):
            values[name] = column
    deviation = {name: float(torch.tensor(column, dtype=torch.float64).std()) for name, column in values.items()}
    return Refits(len(found), values, deviation)
