"""Overfitting is what is clear of its error and large enough to matter: on latents whose t is known to be right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from posthoc_inn.analysis.likelihood import generalisation_gap, likelihood
from posthoc_inn.config import ConditionerConfig, FlowConfig
from posthoc_inn.flows import ConditionalFlow, coupling_of
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training import History

DIM = 64


def nats_of(n, seed, *, better=0.0):
    """What the right t costs n latents of N(0, 1), or one that is better by so much a dimension."""
    x = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.5 * (x.square() + math.log(2 * math.pi)).sum(1) - better * DIM


def identity():
    shape = FlowConfig(dim=DIM, context_dim=4, kind="linear", blocks=1, width=1)
    flow = ConditionalFlow(shape, ConditionerConfig((2,), 4, 4), coupling=coupling_of(shape))
    flow.conditioner.fit_standardization([torch.randn(9, 2)])
    flow.linear.set(torch.zeros(DIM), torch.zeros_like(flow.linear.weight), torch.eye(DIM))
    return Pipeline(None, None, None, flow.eval(), torch.device("cpu"))


def cache(n, seed):
    found = Cache()
    x = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))
    found.append(z=torch.zeros(n, 2), mean=x, std=torch.full_like(x, 1e-4))
    return found


def flat():
    history = History(stopped="finished")
    history.add(step=1, train=90.0, held_out=90.0, lr=0.0, gradient_norm=0.0)
    return history


def test_a_t_that_does_nothing_is_hardly_ever_called_overfitting():
    pipeline, train = identity(), cache(2000, 0)
    found = [likelihood(pipeline, train, cache(20, seed), flat(), seed=seed) for seed in range(1, 61)]
    assert np.mean([one.gap > 1 for one in found]) > 0.05  # in nats a sample it often looks like it
    assert {one.verdict for one in found} == {"converged"}
    assert abs(np.mean([one.gap / one.gap_error for one in found])) < 3 / math.sqrt(60)
    assert found[0].gap == pytest.approx(found[0].held_out - found[0].train, abs=1e-4)
    many = [generalisation_gap(nats_of(20, k), nats_of(500, 10_000 + k), dim=DIM) for k in range(2000)]
    assert sum(is_overfit for *_, is_overfit in many) <= 8


def test_the_error_of_a_gap_is_how_much_it_varies():
    found = [generalisation_gap(nats_of(30, k), nats_of(60, 10_000 + k), dim=DIM)[:2] for k in range(500)]
    gaps, errors = np.array(found).T
    assert errors.mean() == pytest.approx(gaps.std(), rel=0.1)
    # Copies of an image tell no more than the image.
    held_out, train = nats_of(30, 1), nats_of(60, 2)
    once = generalisation_gap(held_out, train, dim=DIM)
    copied = generalisation_gap(held_out, train.repeat(4), dim=DIM, draws=4)
    assert copied[:2] == pytest.approx(once[:2], rel=0.02)


@pytest.mark.parametrize(
    ("better", "held_out", "is_overfit"), [(0.15, 20, True), (0.05, 1000, True), (0.01, 20_000, False)]
)
def test_what_was_learned_by_heart_is_told_where_it_matters(better, held_out, is_overfit):
    found = generalisation_gap(nats_of(held_out, 1), nats_of(5000, 2, better=better), dim=DIM)
    assert found[2] is is_overfit


def test_one_image_has_no_error_and_no_verdict():
    gap, error, is_overfit = generalisation_gap(torch.tensor([9.0]), torch.tensor([1.0, 1.0]), dim=1)
    assert (gap, is_overfit) == (8.0, False)
    assert math.isnan(error)
