"""The ladder of likelihoods, against the closed forms of a linear Gaussian world, and t that ignores z."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from linear_world import ALL, LEFT_OVER, MIDDLE, MIXING, NOISE, D, Z, fitted, flow_of, pipeline_of, world

from posthoc_inn.analysis.ladder import derangement, gaussian_of, ladder
from posthoc_inn.analysis.likelihood import likelihood
from posthoc_inn.objectives import drawn, flow_nll
from posthoc_inn.report import findings
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training import History


def gaussian_nats(covariance, spread=None):
    """Cross-entropy of N(0, spread) under N(0, covariance), by NumPy."""
    c = covariance.numpy()
    spread = c if spread is None else spread.numpy()
    return 0.5 * (len(c) * math.log(2 * math.pi) + np.linalg.slogdet(c)[1] + np.trace(np.linalg.solve(c, spread)))


@pytest.fixture(scope="module")
def measured():
    flow, train, held_out = flow_of(MIXING, LEFT_OVER), world(20_000, 1), world(10_000, 2)
    found = likelihood(pipeline_of(flow), train, held_out, History(), trained=flow, linear=flow)
    return {r.name: r for r in found.ladder}, found


def test_an_exact_linear_gaussian_world_has_the_rungs_of_its_closed_form(measured):
    rungs, found = measured
    eye = torch.eye(D, dtype=torch.float64)
    truth = {
        "standard_normal": gaussian_nats(eye, ALL + torch.outer(MIDDLE, MIDDLE)),
        "gaussian": gaussian_nats(ALL),
        "linear": gaussian_nats(LEFT_OVER),
        "other_z": gaussian_nats(LEFT_OVER, LEFT_OVER + 2 * MIXING @ MIXING.T),
        "t": gaussian_nats(LEFT_OVER),
        "noise_floor": gaussian_nats(NOISE**2 * eye),
    }
    assert list(rungs) == list(truth)
    for name, nats in truth.items():
        gain, error = nats - truth["t"], rungs[name].gain_error
        assert rungs[name].gain == pytest.approx(gain, abs=4 * error + 0.02), name
        assert rungs[name].nats == pytest.approx(nats, rel=0.03, abs=0.05), name
        assert rungs[name].nats - found.held_out == pytest.approx(rungs[name].gain, abs=1e-6)
    assert rungs["t"].gain == rungs["t"].gain_error == 0


def test_paired_errors_are_those_of_repeated_measuring():
    flow, train, found = flow_of(MIXING, LEFT_OVER), world(2000, 1), []
    for k in range(24):
        rows = world(150, 10 + k)
        z_bar = drawn(rows["mean"].tensor(), rows["std"].tensor(), k)
        context = flow.context(rows["z"].tensor())
        own = flow_nll(*flow(z_bar, context))
        other = lambda places, z_bar=z_bar, context=context: flow_nll(*flow(z_bar, context[places]))  # noqa: E731
        rungs = ladder(train, z_bar, rows["std"].tensor(), own, linear=None, other=other, seed=k)
        found.append({r.name: r for r in rungs})
    for name in ("gaussian", "other_z", "noise_floor"):
        spread = np.std([f[name].gain for f in found], ddof=1)
        assert np.mean([f[name].gain_error for f in found]) == pytest.approx(spread, rel=0.5), name


def test_each_trained_flow_gets_the_z_of_its_own_latents():
    exact, blind = flow_of(MIXING, LEFT_OVER), flow_of(torch.zeros(D, Z), ALL)
    held_out = world(3000, 5)
    found = likelihood(pipeline_of(blind), world(100, 1), held_out, History(), trained=blind, linear=exact)
    assert found.linear == pytest.approx(gaussian_nats(LEFT_OVER), abs=0.1)
    assert found.linear_gain == pytest.approx(gaussian_nats(LEFT_OVER) - gaussian_nats(ALL), abs=0.1)


def told(flow, train, held_out):
    figures = likelihood(pipeline_of(flow), train, held_out, History()).to_dict()
    return {f.label: f for f in findings({"likelihood": figures})}


def test_a_t_that_ignores_z_is_not_good():
    train, held_out = world(500, 1), world(1000, 2)
    good = told(fitted(train), train, held_out)
    assert good["Negative log-likelihood, held out"].status == "good"
    assert good["With another image's z"].status == "good"
    shuffled = Cache()
    places = derangement(500, seed=1)
    shuffled.append(z=train["z"].tensor()[places], mean=train["mean"].tensor(), std=train["std"].tensor())
    for flow in (fitted(shuffled), flow_of(torch.zeros(D, Z), ALL)):
        found = told(flow, train, held_out)
        assert found["Negative log-likelihood, held out"].status == "poor"
        assert found["With another image's z"].status == "poor"
        assert "ignores z" in found["With another image's z"].meaning


def test_one_gaussian_is_that_of_numpy_and_shrinks_where_there_are_few_rows():
    train = world(4000, 1)
    found = gaussian_of(train, seed=0)
    mean = train["mean"].tensor().double().numpy()
    covariance = np.cov(mean.T, bias=True) + NOISE**2 * np.eye(D)
    assert np.allclose(found.mean, mean.mean(0), atol=1e-4)
    assert np.allclose(found.scale.double() @ found.scale.double().T, covariance, atol=0.02)
    few = gaussian_of(world(6, 1), seed=0).scale
    assert bool(torch.isfinite(few).all())


def test_another_images_z_is_never_its_own():
    for n in (2, 3, 50):
        other = derangement(n, seed=n)
        assert sorted(other.tolist()) == list(range(n))
        assert not bool((other == torch.arange(n)).any())
    neighbours = (derangement(1000, seed=0) - torch.arange(1000)).abs() <= 5
    assert float(neighbours.float().mean()) < 0.05  # folders come class by class


def test_what_cannot_be_measured_is_left_out():
    one = torch.zeros(1, D)
    rungs = ladder(world(1, 1), one, one, torch.zeros(1), linear=None, other=lambda _: torch.zeros(1), seed=0)
    assert [r.name for r in rungs] == ["standard_normal", "t"]
    assert math.isnan(rungs[0].gain_error)


def test_metrics_without_a_ladder_are_judged_as_before():
    usual = {"held_out": 30.0, "train": 29.0, "standard_normal": 90.0, "noise_floor": 1.0, "verdict": "converged"}
    found = {f.label: f for f in findings({"likelihood": usual})}
    assert found["Negative log-likelihood, held out"].status == "good"
    assert "With another image's z" not in found
