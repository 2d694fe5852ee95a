"""e: recovery of known factors by number, its likelihood, resuming, and what is refused before training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from posthoc_inn.concepts import RANDOM, AttributeSource, ConceptModel, GivenPairs
from posthoc_inn.config import ConceptConfig, FlowConfig, TrainConfig
from posthoc_inn.errors import ConfigError, DataError, ShapeError, UnknownNameError
from posthoc_inn.fit.binding import BoundConcepts, ConceptRequest, bind
from posthoc_inn.fit.concepts import estimate_sizes, fit_concepts, rows_of
from posthoc_inn.flows import FactorFlow
from posthoc_inn.rows.cache import Cache
from posthoc_inn.rows.latents import Rows
from posthoc_inn.rows.pairs import RowPairs
from posthoc_inn.training.factors import FactorLoss

SMALL = ConceptConfig(
    blocks=4, width=32, dropout=0.05, random=False,
    training=TrainConfig(steps=600, batch_size=128, lr=4e-3, eval_every=100, checkpoint_every=50, patience=0),
)  # fmt: skip


def world(n=6000, seed=0, noise=0.1):
    """Latents that are a curved mixture of two known concepts and a residual, one of each two-dimensional."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 5, n)
    centers = np.random.default_rng(1).normal(size=(5, 2)) * 1.5
    color = rng.uniform(-1.7, 1.7, (n, 2))
    rest = rng.normal(size=(n, 2))
    mixed = np.concatenate([centers[kind] + 0.2 * rng.normal(size=(n, 2)), color, rest], 1)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    latents = mixed @ turn
    latents = latents + 0.3 * np.sin(latents[:, ::-1])
    cache = Cache()
    cache.append(mean=torch.tensor(latents, dtype=torch.float32), std=torch.full((n, 6), noise), z=torch.zeros(n, 2))
    return cache, {"kind": torch.tensor(kind), "color": torch.tensor(color)}


@pytest.fixture(scope="module")
def fitted():
    rows, values = world()
    held_out, held_values = world(2000, seed=7)
    bound = BoundConcepts(AttributeSource(values), AttributeSource(held_values), "z_bar", (2, 2, 2))
    return fit_concepts(bound, Rows(rows), Rows(held_out), config=SMALL), held_out, held_values


def correlation(a, b):
    """Mean correlation of matching columns, slowly."""
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]))


def test_known_factors_are_recovered(fitted):
    found, held_out, values = fitted
    rows = Rows(held_out)
    x = rows.at(torch.arange(len(rows)))[0]
    factors = dict(zip(found.model.factor_names, found.model.factors(x), strict=True))
    source = AttributeSource(values)
    a, b, shared = source.pairs(4000, seed=5)
    for k, name in enumerate(source.names, 1):
        same = shared[:, k]
        for other in source.names:
            found_correlation = correlation(factors[other][a[same]].numpy(), factors[other][b[same]].numpy())
            if other == name:
                # Correlations are learned, so that what is shared may lie in few of a factor's dimensions.
                assert found_correlation > 0.65, (name, other, found_correlation)
            else:
                assert abs(found_correlation) < 0.12, (name, other, found_correlation)


def test_a_swap_changes_its_concept_and_no_other(fitted):
    found, held_out, _values = fitted
    x = Rows(held_out).at(torch.arange(1000))[0]
    factors = list(found.model.factors(x))
    k = found.model.index("color")
    factors[k] = factors[k].roll(1, 0)
    back = found.model.factors(found.model.inverse(factors))
    for number, (before, after) in enumerate(zip(factors, back, strict=True)):
        assert torch.allclose(before, after, atol=1e-3), number


def test_the_held_out_loss_is_the_pair_likelihood_of_held_out_pairs(fitted):
    found, held_out, values = fitted
    rows, pairs = Rows(held_out), RowPairs(AttributeSource(values))
    a, b, shared = pairs.draw(4096, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        loss = FactorLoss(found.model.flow, found.model.rho)(rows.drawn(a, generator), rows.drawn(b, generator), shared)
    best = min(row["held_out"] for row in found.history.to_dict()["rows"])
    assert float(loss) == pytest.approx(best, abs=1e-4)
    # Knowing what pairs share is worth nats: less than the entropy of N(0, 1) under the noise's own floor.
    assert float(loss) < 6 * 0.5 * math.log(2 * math.pi * math.e)


def test_sizes_are_estimated_from_means_and_scores_are_told():
    rows, values = world(3000)
    sizes, scores = estimate_sizes(Rows(rows), RowPairs(AttributeSource(values)))
    assert sum(sizes) == 6
    assert set(scores) == {"kind", "color"}
    assert 0.1 < scores["kind"] < 0.9
    differing = GivenPairs({}, {"kind": torch.arange(3000).reshape(-1, 2)})
    _, other = estimate_sizes(Rows(rows), RowPairs(differing))
    assert other["kind"] == pytest.approx(1, abs=0.1)  # strangers have nothing in common


def test_the_random_factor_is_learned_beside_the_others():
    rows, values = world(1000)
    bound = BoundConcepts(AttributeSource(values), None, "z_bar", None)
    config = SMALL.replace(random=True, training=SMALL.training.replace(steps=20))
    told = []
    found = fit_concepts(bound, Rows(rows), Rows(rows), config=config, note=told.append)
    assert found.model.names == ("kind", "color", RANDOM)
    assert abs(found.scores[RANDOM]) < 0.05
    assert found.history.rows


def test_without_concepts_e_is_a_density(tmp_path):
    rows, _ = world(2000)
    bound = BoundConcepts(None, None, "z_bar", None)
    found = fit_concepts(bound, Rows(rows), Rows(rows), config=SMALL)
    assert found.model.names == ()
    assert found.model.factor_dims == (6,)
    x = Rows(rows).drawn(torch.arange(2000), torch.Generator().manual_seed(3))
    out = found.model.joined(x)
    assert out.mean().abs() < 0.1
    assert abs(float(out.std()) - 1) < 0.1


def test_a_resumed_e_ends_like_one_that_ran_through(tmp_path):
    rows, values = world(1000)
    bound = BoundConcepts(AttributeSource(values), None, "z_bar", (2, 2, 2))
    config = SMALL.replace(training=SMALL.training.replace(steps=100))
    whole = fit_concepts(bound, Rows(rows), Rows(rows), config=config)

    def stop(step, total, figures):
        if step == 70:
            raise KeyboardInterrupt

    path = tmp_path / "e.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit_concepts(bound, Rows(rows), Rows(rows), config=config, checkpoint=path, progress=stop)
    resumed = fit_concepts(bound, Rows(rows), Rows(rows), config=config, checkpoint=path, resume=True)
    for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_sizes_that_do_not_fit_are_refused():
    rows, values = world(100)
    for sizes in ((2, 2), (3, 2, 2), (6, 1, -1)):
        bound = BoundConcepts(AttributeSource(values), None, "z_bar", sizes)
        with pytest.raises(ConfigError, match=r"sizes must be 3 widths \(residual, kind, color\) that add up to 6"):
            fit_concepts(bound, Rows(rows), Rows(rows), config=SMALL)


def test_e_over_z_gets_noise_and_a_layer_that_is_too_large_is_refused():
    cache = Cache()
    z = torch.randn(500, 3, 2, 1)
    z[:, 0] = 0
    cache.append(z=z)
    rows = rows_of("z", cache)
    mean, std = rows.at(torch.arange(500))
    assert mean.shape == (500, 6)
    assert torch.equal(mean, z.flatten(1))
    spread = z.flatten(1).std(0)
    assert torch.allclose(std[0][2:], 0.1 * spread[2:])
    assert (std[0][:2] > 0).all()  # units that are always off
    large = Cache()
    large.append(z=torch.zeros(2, 10_000))
    with pytest.raises(DataError, match="10,000 values; e over z takes up to 8,192"):
        rows_of("z", large)


def test_two_caches_are_read_as_one():
    first, second = Cache(), Cache()
    first.append(mean=torch.zeros(3, 2), std=torch.ones(3, 2))
    second.append(mean=torch.ones(2, 2), std=2 * torch.ones(2, 2))
    mean, std = Rows(first, second).at(torch.tensor([4, 0, 3, 2]))
    assert mean[:, 0].tolist() == [1, 0, 1, 0]
    assert std[:, 0].tolist() == [2, 1, 2, 1]


def test_concepts_are_bound_to_rows_by_the_images_they_came_from():
    train, held_out, extra = Cache(), Cache(), Cache()
    train.append(image=torch.tensor([0, 1, 0, 1]), z=torch.zeros(4, 1))
    held_out.append(image=torch.tensor([0, 1]), z=torch.zeros(2, 1))
    extra.append(z=torch.zeros(2, 1))
    source = GivenPairs({"pose": [(5, 6), (6, 11)]})
    request = ConceptRequest(source, positions=(torch.tensor([5, 6]), torch.tensor([1, 2])), length=10)
    bound = bind(request, train, held_out, extra)
    a, b, _ = bound.source.pairs(400, seed=0)
    rows = {tuple(sorted(p)) for p in torch.stack([a, b], 1).tolist()}
    # Images 5, 6 and the second of the source's own, number 11, which comes after the training rows.
    assert rows <= {(x, y) for x in (0, 2) for y in (1, 3)} | {(x, y) for x in (1, 3) for y in (5,)}
    assert any(5 in p for p in rows)
    assert bound.held_out is None
    assert "held-out images give none" in bound.note
    nothing = Cache()
    nothing.append(z=torch.zeros(2, 1))
    with pytest.raises(DataError, match="does not tell which image comes when"):
        bind(request, nothing, held_out)


# ---- the model


def model(names=("a", "b"), sizes=(2, 1, 1), **options):
    flow = FactorFlow(FlowConfig(dim=4, blocks=2, width=8), sizes)
    flow.initialize(torch.randn(64, 4))
    return ConceptModel(flow, names, **options)


def test_factors_are_found_by_name_or_number():
    e = model()
    assert [e.index(n) for n in ("residual", "a", "b", 2)] == [0, 1, 2, 2]
    assert e.part("b") == slice(3, 4)
    with pytest.raises(UnknownNameError, match="no concept 'c'"):
        e.index("c")
    with pytest.raises(UnknownNameError, match="no concept 7"):
        e.index(7)


def test_maps_are_flattened_and_come_back_in_their_shape():
    e = model(shape=(2, 2), space="z")
    x = torch.randn(3, 5, 2, 2)
    assert torch.allclose(e.inverse(e.factors(x)), x, atol=1e-4)
    with pytest.raises(ShapeError, match=r"takes z of shape \(\.\.\., 2, 2\)"):
        e.factors(torch.randn(3, 4))
    with pytest.raises(ShapeError, match="factors have widths"):
        e.inverse([torch.zeros(1, 2), torch.zeros(1, 2)])


@pytest.mark.parametrize(
    ("names", "options", "match"),
    [(("a",), {}, "3 factors"), (("a", "a"), {}, "3 factors"), (("a", "b"), {"shape": (5,)}, "another number")],
)
def test_names_and_shapes_that_do_not_fit_are_refused(names, options, match):
    with pytest.raises(ConfigError, match=match):
        model(names, **options)


def test_an_aligned_start_tells_factors_apart_before_any_training():
    rows, values = world(n=3000)
    still = SMALL.replace(training=SMALL.training.replace(steps=1, lr=1e-9))
    found = {}
    for aligned in (True, False):
        bound = BoundConcepts(AttributeSource(values), None, "z_bar", (2, 2, 2))
        model = fit_concepts(bound, Rows(rows), Rows(rows), config=still.replace(aligned=aligned)).model
        assert (model.flow.alignment is not None) == aligned
        factor = model.factors(Rows(rows).at(torch.arange(3000))[0])[model.index("color")]
        a, b, _ = AttributeSource({"color": values["color"]}).pairs(2000, seed=1)
        found[aligned] = correlation(factor[a].numpy(), factor[b].numpy())
    assert found[True] > 0.8 > 0.6 > found[False]


def test_few_rows_are_not_aligned():
    rows, values = world(n=20)
    bound = BoundConcepts(AttributeSource({"color": values["color"]}, neighbors=2), None, "z_bar", (4, 2))
    still = SMALL.replace(training=SMALL.training.replace(steps=1))
    assert fit_concepts(bound, Rows(rows), Rows(rows), config=still).model.flow.alignment is None


def test_sizes_can_come_with_the_configuration():
    rows, values = world(n=200)
    bound = BoundConcepts(AttributeSource(values), None, "z_bar", None)
    still = SMALL.replace(training=SMALL.training.replace(steps=1), sizes=(3, 1, 2))
    found = fit_concepts(bound, Rows(rows), Rows(rows), config=still)
    assert found.model.factor_dims == (3, 1, 2)
    assert found.scores == {}
    with pytest.raises(ConfigError, match=r"3 widths \(residual, kind, color\) that add up to 6, got \(3, 3\)"):
        fit_concepts(bound, Rows(rows), Rows(rows), config=still.replace(sizes=(3, 3)))
    with pytest.raises(ConfigError, match="sizes must be positive widths"):
        SMALL.replace(sizes=(3, 0))
    # An e without concepts has one factor, whatever is written for those that have some.
    free = fit_concepts(BoundConcepts(None, None, "z_bar", None), Rows(rows), Rows(rows), config=still)
    assert free.model.factor_dims == (6,)


def test_pairs_over_other_images_are_drawn_in_the_same_way():
    source = AttributeSource({"a": [0, 0, 1, 1], "b": [0, 0, 1, 1]}, agree="all")
    other = source.over({"b": [1, 1, 0, 0, 1], "a": [1, 1, 0, 0, 1], "c": [0, 0, 0, 1, 1]})
    _, _, shared = other.pairs(50, seed=0)
    assert other.names == ("a", "b")
    assert len(other) == 5
    assert bool(shared[:, 1:].all())
