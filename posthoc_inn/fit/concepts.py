"""Fits e: sizes of the factors, initialisation and training, on cached rows (IIN section 3, MSC A.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from posthoc_inn.concepts import (
    RANDOM,
    RESIDUAL,
    ConceptModel,
    Space,
    WithRandom,
    factor_sizes,
    shared_directions,
    shared_score,
)
from posthoc_inn.concepts.model import check_names
from posthoc_inn.config import ConceptConfig, FlowConfig
from posthoc_inn.errors import ConfigError, DataError
from posthoc_inn.fit.binding import SIZING_PAIRS, BoundConcepts, ConceptRequest, telling_pairs
from posthoc_inn.flows import FactorFlow, set_compute_dtype
from posthoc_inn.protocols import ConceptSource
from posthoc_inn.rows.cache import Cache
from posthoc_inn.rows.identity import key_of
from posthoc_inn.rows.latents import Rows
from posthoc_inn.rows.pairs import RowPairs
from posthoc_inn.seeds import derived
from posthoc_inn.training import History, train
from posthoc_inn.training.factors import DensityTask, FactorTask
from posthoc_inn.training.moments import PairMoments, pair_moments
from posthoc_inn.training.precision import fabric_for

INITIALIZATION_ROWS = 4096
"""Rows that t and e are initialised with."""
START_RHO = 0.95
"""Bound of the correlations that e starts with: near 1 their gradients are steep."""
LEAST_ROWS = 100
"""Held-out rows below which they do not tell the factors' deviations: 100 tell them to 7 %."""
MAX_Z = 8192
"""Values of z that a flow of fully connected networks can be asked to model."""
MAX_ALIGNED = 1024
"""Widest latents for which e starts aligned: its linear map has D² numbers, and takes D³ steps to find."""
ROWS_A_DIM = 4
"""Rows a dimension that this needs: with fewer, directions that the pairs share are mostly chance."""
Z_NOISE = 0.1
"""Noise added to a layer's z, which is deterministic and would have an infinite likelihood, in its deviations."""


@dataclass
class ConceptFit:
    """What fitting e leaves behind.

    Attributes:
        model: e with its names.
        scores: Of each concept, in [-1, 1]: how much of the inputs' variance its pairs have in common; empty when the
            sizes were given.
        history: Curve of e, nats an image.
    """

    model: ConceptModel
    scores: dict[str, float]
    history: History


def rows_of(space: Space, *caches: Cache) -> Rows:
    """Return what e is trained on: latents with the encoder's noise, or z with a tenth of its deviation as noise."""
    if space == "z_bar":
        return Rows(*caches)
    check_width(int(torch.Size(caches[0]["z"].shape).numel()))
    some = caches[0]["z"].rows(torch.arange(min(len(caches[0]), 10_000))).float().flatten(1)
    spread = some.std(dim=0)
    # Values that never change (units that are always off) get a little noise too, or their density has no bound.
    return Rows(*caches, mean="z", noise=Z_NOISE * spread.clamp_min(0.25 * float(spread.median()) + 1e-6))


def check_width(size: int) -> None:
    """Check that e can be over a z of this many values.

    Raises:
        DataError: It cannot.
    """
    if size > MAX_Z:
        raise DataError(
            f"z of this layer has {size:,} values; e over z takes up to {MAX_Z:,}. Choose a later layer, or "
            "tokens='mean'."
        )


def estimate_sizes(rows: Rows, pairs: RowPairs, *, seed: int = 0) -> tuple[tuple[int, ...], dict[str, float]]:
    """Return the factors' widths, residual first, and each concept's score (IIN eq. 11, normalised).

    A concept that comes in pairs which differ in it is scored by what they do not have in common.
    """
    a, b, shared = pairs.draw(SIZING_PAIRS * len(pairs.names), seed=seed)
    scores = {}
    for k, name in enumerate(pairs.names, 1):
        index, is_shared = telling_pairs(shared, k, name)
        index = index[:SIZING_PAIRS]
        # Means, not draws: the encoder's noise is no part of what two images have in common.
        score = shared_score(rows.at(a[index])[0], rows.at(b[index])[0])
        scores[name] = score if is_shared else 1 - score
    return factor_sizes(scores, rows.dim), scores


def build_factor_flow(config: ConceptConfig, sizes: Sequence[int], seed: int, *, aligned: bool = False) -> FactorFlow:
    """Return an untrained e with factors of the given widths, residual first."""
    flow = FlowConfig(
        dim=sum(sizes),
        blocks=config.blocks,
        width=config.width,
        depth=config.depth,
        dropout=config.dropout,
        activation=config.activation,
        separate_nets=config.separate_nets,
        seed=seed,
    )
    return FactorFlow(flow, sizes, aligned=aligned)


def given_sizes(wanted: ConceptRequest | BoundConcepts, config: ConceptConfig) -> tuple[int, ...] | None:
    """Return the widths that were given with the request, or with the configuration for an e over latents; or None."""
    if wanted.sizes is not None or wanted.source is None or wanted.space != "z_bar":
        return wanted.sizes
    return config.sizes


def check_sizes(sizes: Sequence[int], names: Sequence[str], dim: int) -> None:
    """Check that widths, residual first, fit the concepts `names`, the random one included, and D.

    Raises:
        ConfigError: They do not.
    """
    if len(sizes) != len(names) + 1 or sum(sizes) != dim or min(sizes) < 1:
        told = ", ".join((RESIDUAL, *names))
        raise ConfigError(f"sizes must be {len(names) + 1} widths ({told}) that add up to {dim}, got {tuple(sizes)}.")


def check_request(wanted: ConceptRequest | BoundConcepts, config: ConceptConfig, dim: int) -> None:
    """Check names and widths before anything is trained; concepts that are labels have names once these were read.

    Raises:
        ConfigError: Given widths do not fit, there are more factors than dimensions, or a name cannot be one.
    """
    sizes, names = given_sizes(wanted, config), getattr(wanted.source, "names", None)
    if names is None:
        return
    check_names(names)
    names = (*names, RANDOM) if config.random else tuple(names)
    if sizes is not None:
        check_sizes(sizes, names, dim)
    else:
        factor_sizes([0.0] * len(names), dim)


def fit_concepts(
    bound: BoundConcepts,
    rows: Rows,
    held_out: Rows,
    *,
    config: ConceptConfig,
    seed: int = 0,
    device: torch.device | None = None,
    precision: Literal["32", "bf16"] = "32",
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    note: Callable[[str], None] = lambda text: None,
    key: str = "",
) -> ConceptFit:
    """Train e.

    Args:
        bound: The concepts over these rows.
        rows: What it is trained on.
        held_out: Rows that it is measured on.
        config: Of e and its training.
        seed: Of everything random.
        device: Where to train.
        precision: Of the matrix products.
        checkpoint: File for checkpoints.
        resume: Go on from it.
        progress: Called after each step.
        note: Told what a user has to know.
        key: Of the rows; a checkpoint of other rows, or of other concepts over them, is refused.

    Raises:
        DataError: A concept cannot be learned from these rows.
        ConfigError: `bound.sizes` do not fit.
    """
    device = device or torch.device("cpu")
    training = config.training.replace(seed=derived(seed, "e", config.training.seed))
    if bound.note:
        note(bound.note)
    names: tuple[str, ...] = ()
    sizes = given_sizes(bound, config)
    scores: dict[str, float] = {}
    pairs = None
    if bound.source is not None:
        pairs = _pairs(bound.source, config.random)
        names = pairs.names
        if sizes is None:
            sizes, scores = estimate_sizes(rows, pairs, seed=seed)
    sizes = (rows.dim,) if sizes is None else tuple(sizes)
    check_sizes(sizes, names, rows.dim)
    flow, rho = _started_flow(config, sizes, rows, pairs, seed)
    flow.to(device)
    set_compute_dtype(flow, torch.bfloat16 if precision == "bf16" else None)
    task: FactorTask | DensityTask
    if pairs is None:
        task = DensityTask(flow, rows, held_out, batch_size=training.batch_size, seed=training.seed)
    else:
        aside = (rows, pairs) if bound.held_out is None else (held_out, _pairs(bound.held_out, config.random))
        task = FactorTask(
            flow,
            rows,
            pairs,
            aside,
            rho=rho,
            learn_rho=config.learn_rho,
            batch_size=training.batch_size,
            seed=training.seed,
        )
    # Like t, e runs its matrix products in bf16 by itself.
    fabric = fabric_for(device, "32")
    of = key_of(key, _pairs_digest(pairs))
    history = train(task, training, fabric=fabric, checkpoint=checkpoint, resume=resume, progress=progress, key=of)
    set_compute_dtype(flow, None)
    model = ConceptModel(flow.eval(), names, space=bound.space, shape=rows.shape)
    found = task.module.rho.detach().cpu() if isinstance(task, FactorTask) else torch.zeros(rows.dim)
    model.set_moments(found * _are_shared(pairs, sizes), deviations(model, rows, held_out, seed=seed))
    return ConceptFit(model, scores, history)


def _are_shared(pairs: RowPairs | None, sizes: Sequence[int]) -> Tensor:
    """Return, for each dimension (D,), whether pairs ever share its factor: nothing is learned of others."""
    if pairs is None:
        return torch.zeros(sum(sizes), dtype=torch.bool)
    shared = pairs.draw(SIZING_PAIRS * len(pairs.names), seed=0)[2]
    return shared.any(dim=0).repeat_interleave(torch.tensor(sizes))


@torch.no_grad()
def deviations(model: ConceptModel, rows: Rows, held_out: Rows, *, seed: int = 0) -> Tensor:
    """Return the standard deviation of each dimension of e over held-out rows, (D,), the encoder's noise included.

    Where fewer than `LEAST_ROWS` are held out, training rows are taken: so few tell no deviation.
    """
    used = held_out if len(held_out) >= LEAST_ROWS else rows
    generator = torch.Generator().manual_seed(derived(seed, "deviations"))
    some = torch.randperm(len(used), generator=generator)[:INITIALIZATION_ROWS]
    drawn = used.drawn(some, generator).reshape(-1, *model.shape)
    return model.joined(drawn).cpu().double().std(dim=0).clamp_min(1e-6).float()


def _pairs_digest(pairs: RowPairs | None) -> str:
    """Return a digest of some pairs: other values of a concept give others."""
    if pairs is None:
        return ""
    digest = hashlib.sha256("\n".join(pairs.names).encode("utf-8", "surrogatepass"))
    for part in pairs.draw(SIZING_PAIRS, seed=0):
        digest.update(part.to(torch.int64).numpy().tobytes())
    return digest.hexdigest()[:32]


def _started_flow(
    config: ConceptConfig, sizes: Sequence[int], rows: Rows, pairs: RowPairs | None, seed: int
) -> tuple[FactorFlow, float | Tensor]:
    """Return e, initialised from its rows, and the correlations it starts with.

    It is aligned with what pairs share where there are pairs and enough rows.
    """
    can_align = rows.dim <= MAX_ALIGNED and len(rows) >= ROWS_A_DIM * rows.dim
    if pairs is None or not config.aligned or not can_align:
        flow = build_factor_flow(config, sizes, seed)
        generator = torch.Generator().manual_seed(seed)
        some = torch.randperm(len(rows), generator=generator)[:INITIALIZATION_ROWS]
        flow.initialize(rows.drawn(some, generator))
        return flow, config.rho
    flow = build_factor_flow(config, sizes, seed, aligned=True)
    moments = pair_moments(rows, pairs, seed=seed)
    # The residual and the random concept, which pairs have in common by chance only, take what is left.
    names = (RESIDUAL, *pairs.names)
    common = [None if n in (RESIDUAL, RANDOM) else c for n, c in zip(names, moments.shared, strict=True)]
    directions = shared_directions(moments.total, common, sizes)
    flow.align(moments.mean, directions)
    return flow, _started_rho(config, moments, directions, sizes) if config.learn_rho else config.rho


def _started_rho(config: ConceptConfig, moments: PairMoments, directions: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return what the aligned factors' images correlate with in pairs that share them, (D,).

    From the papers' 0.9 it takes hundreds of steps to get there, in which factors are shrunk as by a fixed ρ.
    """
    parts = []
    for common, rows in zip(moments.shared, directions.split(list(sizes)), strict=True):
        if common is None:
            parts.append(torch.full((len(rows),), config.rho, dtype=torch.float64))
        else:
            parts.append(torch.einsum("id,de,ie->i", rows, common, rows).clamp(-START_RHO, START_RHO))
    return torch.cat(parts).float()


def _pairs(source: ConceptSource, with_random: bool) -> RowPairs:
    return RowPairs(WithRandom(source) if with_random else source)
