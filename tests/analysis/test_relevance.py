"""Concept relevance: against the definitions rewritten slowly, closed forms, and a real t and e."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from concept_parts import make_concepts

from posthoc_inn.analysis import concept_relevance, explained_by_invariances, explained_share, variance_shares
from posthoc_inn.analysis.relevance import MEASURES, ConceptRelevance, _shares, linear_gaussian_shares
from posthoc_inn.concepts import RANDOM
from posthoc_inn.errors import ConfigError, ShapeError, UnknownNameError


def grid(x, v, d=3, seed=0, z=1.0, own=1.0, both=0.0):
    """e = a(x) + b(v) + c(x, v), with known variances."""
    rng = np.random.default_rng(seed)
    table = z * rng.normal(size=(x, 1, d)) + own * rng.normal(size=(1, v, d)) + both * rng.normal(size=(x, v, d))
    return torch.from_numpy(table)


def test_mean_squares_are_those_of_a_two_way_analysis_of_variance():
    table = grid(7, 5, both=0.7).numpy()
    x, v, _ = table.shape
    mean, rows, columns = table.mean((0, 1)), table.mean(1), table.mean(0)
    ms_x = v * ((rows - mean) ** 2).sum() / (x - 1)
    ms_v = x * ((columns - mean) ** 2).sum() / (v - 1)
    rest = table - rows[:, None] - columns[None] + mean
    ms_xv = (rest**2).sum() / ((x - 1) * (v - 1))
    s_x, s_v, s_xv = (ms_x - ms_xv) / v, (ms_v - ms_xv) / x, ms_xv
    total = s_x + s_v + s_xv
    expected = [(s_x + s_xv) / total, s_x / total, s_xv / total, (s_v + s_xv) / total]
    found = variance_shares(torch.from_numpy(table))
    got = [getattr(found, name).value for name in MEASURES]
    assert got == pytest.approx(expected, abs=1e-12)


def test_the_total_effect_is_the_papers_double_loop():
    """MSC eq. 20 with its two expectations written as loops, on many images and draws."""
    table = grid(400, 300, d=2, z=1.0, own=2.0, both=0.5).numpy()
    inner = [table[:, k].var(axis=0, ddof=1).sum() for k in range(table.shape[1])]
    total = table.reshape(-1, 2).var(axis=0).sum()
    slow = np.mean(inner) / total
    outer = [table[k].var(axis=0, ddof=1).sum() for k in range(table.shape[0])]
    found = variance_shares(torch.from_numpy(table))
    assert found.total_effect.value == pytest.approx(slow, abs=0.01)
    assert found.first_order.value == pytest.approx(1 - np.mean(outer) / total, abs=0.01)


@pytest.mark.parametrize(("z", "own", "both"), [(1, 1, 0), (0, 1, 0), (1, 0, 0.1), (0.5, 1, 1), (0, 1, 1)])
def test_known_variances_are_recovered_within_the_stated_errors(z, own, both):
    total = z**2 + own**2 + both**2
    found = [variance_shares(grid(200, 50, seed=s, z=z, own=own, both=both)) for s in range(12)]
    expected = {
        "total_effect": (z**2 + both**2) / total,
        "first_order": z**2 / total,
        "interaction": both**2 / total,
        "explained_by_v": (own**2 + both**2) / total,
    }
    for name, value in expected.items():
        shares = [getattr(f, name) for f in found]
        error = np.mean([s.standard_error for s in shares])
        assert np.mean([s.value for s in shares]) == pytest.approx(value, abs=4 * error / math.sqrt(12) + 1e-9), name
        covered = sum(s.interval[0] - 1e-9 <= value <= s.interval[1] + 1e-9 for s in shares)
        assert covered >= 9, (name, covered)


@pytest.mark.parametrize(("images", "draws"), [(10, 10), (30, 10), (100, 30)])
@pytest.mark.parametrize(("z", "own", "both"), [(0.3, 1, 0), (1, 1, 0), (2, 1, 0), (1, 1, 0.7)])
def test_95_percent_intervals_hold_the_truth_in_95_percent(images, draws, z, own, both):
    """MSC eq. 20 of factors of 4 dimensions whose variances are known, an interaction of z and v among them."""
    total = z**2 + own**2 + both**2
    repeats = 250 if images < 100 else 100
    found = [variance_shares(grid(images, draws, d=4, seed=s, z=z, own=own, both=both)) for s in range(repeats)]
    for name, truth in (("total_effect", (z**2 + both**2) / total), ("first_order", z**2 / total)):
        intervals = [getattr(f, name).interval for f in found]
        covered = np.mean([low <= truth <= high for low, high in intervals])
        assert covered >= 0.9, (name, covered)


def test_a_turn_of_v_that_depends_on_z_moves_the_total_effect_and_not_the_first_order():
    """What t is free to choose: v turned by an angle that depends on x, which leaves p(z_bar | z) as it is."""
    rng = np.random.default_rng(0)
    v = rng.normal(size=(60, 2))
    angle = rng.uniform(0, 2 * np.pi, size=300)
    turn = np.stack([np.stack([np.cos(angle), -np.sin(angle)], -1), np.stack([np.sin(angle), np.cos(angle)], -1)], 1)
    straight = np.broadcast_to(v, (300, 60, 2))
    turned = np.einsum("xij,vj->xvi", turn, v)
    before, after = (variance_shares(torch.from_numpy(t.copy())) for t in (straight, turned))
    assert before.total_effect.value < 0.001
    assert after.total_effect.value > 0.9
    assert abs(after.first_order.value) < 0.02
    assert after.interaction.value == pytest.approx(after.total_effect.value - after.first_order.value)


def test_a_linear_gaussian_model_has_the_shares_that_are_known_exactly():
    """z_bar = W (z, v) and a linear e: eq. 19 and 20 in closed form."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, n, generator=generator, dtype=torch.float64) for n in (5, 4))
    z = torch.randn(900, 5, generator=generator, dtype=torch.float64)
    v = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    values = (z @ a.T)[:, None] + (v @ b.T)[None]
    exact = linear_gaussian_shares(a, b)
    found = variance_shares(values)
    for name in MEASURES:
        share = getattr(found, name)
        assert share.value == pytest.approx(exact[name], abs=4 * share.standard_error + 1e-9), name
    # eq. 19 from draws of its own for each image says the same.
    own = torch.randn(900, 50, 4, generator=generator, dtype=torch.float64)
    nineteen = explained_share((z @ a.T)[:, None] + own @ b.T)
    assert nineteen.value == pytest.approx(exact["explained_by_v"], abs=4 * nineteen.standard_error)


class LinearGaussian:
    """Fitted parts whose t is t⁻¹(v given z) = A z + B v: eq. 19 and 20 are known exactly."""

    def __init__(self, a, b):
        self.a, self.b, self.latent_dim = a, b, len(a)
        self.extractor = type("Extractor", (), {"layer": "linear"})()

    def context(self, z):
        return z

    def sample_latents(self, context, v):
        v = v.expand(len(context), *v.shape) if v.ndim == 2 else v
        return (context @ self.a.T)[:, None] + v @ self.b.T


def test_both_measures_are_exact_for_a_linear_gaussian_model_and_a_linear_e():
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(6, 4, generator=generator), torch.randn(6, 6, generator=generator)
    pipeline, e = LinearGaussian(a, b), make_concepts(curved=False)
    # e is affine: its matrix, read off by the images of the unit vectors.
    matrix = (e.joined(torch.eye(6)) - e.joined(torch.zeros(1, 6))).T
    z = torch.randn(4000, 4, generator=generator)
    found = concept_relevance(pipeline, e, z, samples=4000 * 60, draws=60, seed=1)
    assert (found.images, found.draws, found.layer) == (4000, 60, "linear")
    for concept in found.concepts:
        part = e.part(concept.name)
        exact = linear_gaussian_shares((matrix @ a)[part], (matrix @ b)[part])
        for name in MEASURES:
            share = getattr(concept, name)
            assert share.value == pytest.approx(exact[name], abs=4 * share.standard_error + 1e-4), (concept.name, name)
    nineteen = explained_by_invariances(pipeline, z[:2000], samples=2000 * 20, seed=2)
    exact_value = float(b.square().sum() / (a.square().sum() + b.square().sum()))
    assert nineteen.value == pytest.approx(exact_value, abs=4 * nineteen.standard_error)


def test_relevance_refuses_what_it_cannot_answer():
    pipeline = LinearGaussian(torch.eye(6), torch.eye(6))
    with pytest.raises(ConfigError, match="over a layer's z"):
        concept_relevance(pipeline, make_concepts(space="z"), torch.zeros(9, 6))
    with pytest.raises(ConfigError, match="samples must be at least 9"):
        concept_relevance(pipeline, make_concepts(), torch.zeros(9, 6), samples=4)
    with pytest.raises(UnknownNameError, match="no concept 'shape'"):
        concept_relevance(pipeline, make_concepts(), torch.zeros(9, 6), names=["shape"])


def test_weights_of_a_resample_count_a_row_that_comes_twice_as_one_observation():
    table = grid(6, 5, both=0.5)
    table = table - table.mean((0, 1))
    plain = _shares(table, torch.ones(1, 6).double(), torch.ones(1, 5).double())
    doubled = _shares(table, 2 * torch.ones(1, 6).double(), torch.ones(1, 5).double())
    assert torch.allclose(plain, doubled)
    left_out = torch.tensor([[1.0, 1, 1, 1, 1, 0]], dtype=torch.float64)
    less = _shares(table[:5], torch.ones(1, 5).double(), torch.ones(1, 5).double())
    assert torch.allclose(_shares(table, left_out, torch.ones(1, 5).double()), less)


@pytest.mark.parametrize("shape", [(2, 5, 1), (5, 2, 1), (5, 5), (5, 5, 0)])
def test_grids_that_say_nothing_are_refused(shape):
    with pytest.raises(ShapeError, match="at least 3 images and 3 draws"):
        variance_shares(torch.zeros(shape))


def test_the_figure_shows_every_concept_and_the_null():
    parts = [variance_shares(grid(20, 10, seed=k), n) for k, n in enumerate(("residual", "a", RANDOM))]
    result = ConceptRelevance(tuple(parts), 20, 10, "layer3")
    figure = result.figure()
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert any("random concept" in t for t in texts)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "residual"]
    assert result["a"].name == "a"
    with pytest.raises(KeyError, match="no concept 'b'"):
        result["b"]
    plain = result.to_dict()
    assert plain["concepts"][1]["total_effect"]["value"] == parts[1].total_effect.value
