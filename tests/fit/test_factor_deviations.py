"""Factors come out N(0, 1) whatever their pairs share, and what steps in them steps by their deviation."""

from __future__ import annotations

import pytest
import torch

from posthoc_inn.analysis.editing import resample
from posthoc_inn.analysis.generative import generate
from posthoc_inn.analysis.response import response
from posthoc_inn.concepts import AttributeSource
from posthoc_inn.config import ConceptConfig, TrainConfig
from posthoc_inn.fit.binding import BoundConcepts
from posthoc_inn.fit.concepts import fit_concepts
from posthoc_inn.rows.cache import Cache
from posthoc_inn.rows.latents import Rows
from posthoc_inn.training.factors import MAX_RHO

SMALL = ConceptConfig(
    blocks=2,
    width=8,
    depth=1,
    dropout=0.0,
    random=False,
    sizes=(1, 1, 2),
    training=TrainConfig(steps=300, batch_size=256, lr=8e-3, eval_every=100, patience=0),
)
WEAK, STRONG = 0.2, 0.9


def world(n, seed):
    """Four independent N(0, 1): a residual, a concept whose pairs correlate 0.2, one of 0.9, and junk."""
    generator = torch.Generator().manual_seed(seed)
    weak, strong = torch.randn(2, n, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 4, generator=generator)
    latents = noise.clone()
    for column, value, rho in ((1, weak, WEAK), (2, strong, STRONG)):
        latents[:, column] = rho**0.5 * value.float() + (1 - rho) ** 0.5 * noise[:, column]
    cache = Cache()
    cache.append(mean=latents, std=torch.full((n, 4), 1e-3))
    return Rows(cache), AttributeSource({"weak": weak, "strong": strong}, neighbors=4)


@pytest.fixture(scope="module")
def fitted():
    (rows, source), (held_out, others) = world(8000, 0), world(4000, 1)
    bound = BoundConcepts(source, others, "z_bar", None)
    return {
        learned: fit_concepts(bound, rows, held_out, config=SMALL.replace(learn_rho=learned)).model
        for learned in (True, False)
    }, held_out


def test_each_dimension_learns_what_its_pairs_share(fitted):
    model = fitted[0][True]
    assert model.is_measured
    residual, weak, (strong, junk) = model.rho[0], model.rho[1], sorted(model.rho[2:].tolist(), reverse=True)
    assert float(residual) == 0  # no pair shares it: nothing was learned
    assert float(weak) == pytest.approx(WEAK, abs=0.05)
    assert strong == pytest.approx(STRONG, abs=0.03)
    assert junk == pytest.approx(0, abs=0.05)
    assert float(model.rho.abs().max()) < MAX_RHO


def test_factors_are_standard_normal_with_learned_correlations_and_shrunk_with_one_for_all(fitted):
    models, held_out = fitted
    assert models[True].deviation.tolist() == pytest.approx([1] * 4, abs=0.06)
    # Half of the pairs share it: minimise s²/2 (1 + ½ + ½ (1 - 2 ρ r + ρ²) / (1 - ρ²)) - 2 log s with ρ = 0.9, r = 0.2.
    rho = 0.9
    shrunk = (2 / (1.5 + 0.5 * (1 - 2 * rho * WEAK + rho**2) / (1 - rho**2))) ** 0.5
    assert shrunk == pytest.approx(0.61, abs=0.005)
    assert float(models[False].deviation[1]) == pytest.approx(shrunk, abs=0.05)
    drawn = held_out.drawn(torch.arange(4000), torch.Generator().manual_seed(9))
    assert torch.allclose(models[False].deviation, models[False].joined(drawn).std(0), rtol=0.01)


def test_two_concepts_of_equal_weight_are_answered_alike(fitted):
    """A linear head gives either concept the weight 1: walks in them move it by the same length."""
    models, held_out = fitted

    def head(x):
        score = x[:, 1] + x[:, 2]
        return torch.stack([score, -score], dim=1)

    x = held_out.at(torch.arange(300))[0]
    for learned, model in models.items():
        concepts = response(head, model, x, ["weak", "strong"], images=300, steps=60, correlation=0.0)
        low, high = concepts.ratio_interval["weak"]["strong"]
        assert low - 0.02 < 1 < high + 0.02, (learned, low, high)


def test_draws_have_the_spread_of_held_out_images(fitted):
    for model in fitted[0].values():
        x = fitted[1].at(torch.arange(50))[0]
        drawn = model.joined(resample(model, x, "weak", n=100, seed=1))[..., 1]
        assert float(drawn.std() / model.deviation[1]) == pytest.approx(1, abs=0.04)

        class Straight:
            def decode(self, latents):
                return latents[:, :, None, None]

        made = model.joined(generate(Straight(), model, 4000)[..., 0, 0])
        assert (made.std(0) / model.deviation).tolist() == pytest.approx([1] * 4, abs=0.05)
