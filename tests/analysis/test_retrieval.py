"""The nearest training images, against a slow search, and in the figures of a fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_parts import TINY, network

from posthoc_inn import Interpreter
from posthoc_inn.analysis import retrieval
from posthoc_inn.report import findings
from posthoc_inn.rows.cache import Cache


def rows(n=600, d=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=g)
    return z, torch.cat([z[:, :2], torch.randn(n, 3, generator=g)], 1), (z[:, 0] > 0).long()


@pytest.fixture
def train():
    z, mean, prediction = rows()
    cache = Cache()
    cache.append(z=z, mean=mean, prediction=prediction)
    return cache


def test_it_finds_what_a_slow_search_finds(train):
    z, _, prediction = rows(20, seed=1)
    found = retrieval(train, z, prediction, neighbours=4)
    all_z, mean, said = (train[name].tensor().double().numpy() for name in ("z", "mean", "prediction"))
    near, same, varied = [], [], []
    for one, own in zip(z.double().numpy(), prediction.numpy(), strict=True):
        cosine = all_z @ one / np.linalg.norm(all_z, axis=1) / np.linalg.norm(one)
        best = np.argsort(-cosine)[:4]
        near.append(cosine[best].mean())
        same.append((said[best] == own).mean())
        varied.append(mean[best].var(axis=0, ddof=1).sum())
    assert found.similarity == pytest.approx(np.mean(near), abs=1e-6)
    assert found.similarity_error == pytest.approx(np.std(near, ddof=1) / math.sqrt(20), abs=1e-6)
    assert found.agreement == pytest.approx(np.mean(same))
    assert found.spread == pytest.approx(np.mean(varied) / mean.var(axis=0, ddof=1).sum())
    assert (found.images, found.neighbours, found.rows) == (20, 4, 600)


def test_what_z_does_not_hold_keeps_all_its_spread(train):
    z, _, prediction = rows(50, seed=1)
    spread = retrieval(train, z, prediction).spread
    assert 0.6 < spread < 0.85  # three of five dimensions are free, two are nearly given


def test_fewer_images_than_neighbours_and_no_predictions_are_no_fault():
    z, mean, _ = rows(5)
    cache = Cache()
    cache.append(z=z, mean=mean)
    found = retrieval(cache, z[:2], None)
    assert found.neighbours == 5
    assert math.isnan(found.agreement)


def test_a_fit_has_it_and_says_whether_samples_are_nearer():
    data = torch.rand(40, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    metrics = Interpreter(network(), "3", preset=TINY, mean=(0,) * 3, std=(1,) * 3).fit(data).metrics_
    assert metrics["retrieval"]["rows"] == 36
    assert metrics["retrieval"]["sample_spread"] == metrics["explained_by_invariances"]["value"]

    def told(similarity):
        changed = metrics | {"faithfulness": metrics["faithfulness"] | {"similarity": similarity}}
        return next(f for f in findings(changed) if f.label.startswith("Nearest training images"))

    assert told(1.0).status == "good"
    assert "at least as near" in told(1.0).meaning
    assert told(0.1).status == "fair"
    assert "less near: 0.100" in told(0.1).meaning
