"""Held-out images that choose weights are not those that a fit is measured on, where there are enough."""

from __future__ import annotations

import pytest
import torch
from small_parts import TINY, network

from posthoc_inn import Interpreter
from posthoc_inn.concepts import AttributeSource, GivenPairs
from posthoc_inn.fit import FitRequest, stages
from posthoc_inn.objectives import drawn, flow_nll
from posthoc_inn.progress import Reporter
from posthoc_inn.report import findings
from posthoc_inn.rows.cache import Cache
from posthoc_inn.rows.part import part_held_out
from posthoc_inn.training.tasks import flow_likelihood


def images(n, seed=0):
    return torch.rand(n, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


def interpreter():
    return Interpreter(network(), "3", preset=TINY, mean=(0.0,) * 3, std=(1.0,) * 3, precision="32")


class Notes(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def told(metrics):
    return next(f for f in findings(metrics) if f.label == "Held-out images")


@pytest.fixture(scope="module")
def run():
    it = interpreter()
    fit = it.prepare(FitRequest(data=images(60), held_out=images(240, seed=1)))
    it.learn(fit)
    return it, fit.result


def test_weights_are_chosen_by_some_images_and_measured_on_others(run):
    it, result = run
    assert it.history_.best_loss == pytest.approx(flow_likelihood(it.flow_, result.selection, limit=4096), abs=1e-5)
    assert not set(result.selection.index.tolist()) & set(result.held_out.index.tolist())
    rows = result.held_out.some(None, seed=0)
    z, mean, std = (result.held_out[name].rows(rows) for name in ("z", "mean", "std"))
    with torch.no_grad():
        nats = flow_nll(*it.flow_(drawn(mean, std, 0), it.flow_.context(z)))
    assert it.metrics_["likelihood"]["held_out"] == pytest.approx(float(nats.mean()), abs=1e-4)


def test_metrics_and_findings_tell_how_many_chose(run):
    it, _ = run
    assert it.metrics_["images"] == {
        "train": 60, "held_out": 240, "chose_weights": 120, "measured": 120, "are_apart": True
    }  # fmt: skip
    assert it.metrics_["autoencoder"]["images"] == it.metrics_["faithfulness"]["images"] == 120
    assert told(it.metrics_).value == "120 measured"
    assert told(it.metrics_).meaning.startswith("120 others chose")


def test_pictures_of_the_report_are_of_images_that_are_measured(run):
    it, result = run
    shown = images(240, seed=1)[result.held_out.index[:100]]
    assert torch.equal(it.examples_.images, shown)


def test_few_held_out_images_are_one_part_and_the_report_says_so():
    it = interpreter().fit(images(60), held_out=images(50, seed=1))
    assert it.metrics_["images"] == {
        "train": 60, "held_out": 50, "chose_weights": 50, "measured": 50, "are_apart": False
    }  # fmt: skip
    assert "too few to be parted" in told(it.metrics_).meaning


def test_a_resumed_run_parts_them_alike(tmp_path):
    found = [
        interpreter().fit(images(60), held_out=images(240, seed=1), out=tmp_path, resume=again).metrics_
        for again in (False, True)
    ]
    for metrics in found:
        metrics.pop("seconds")
        metrics["training"]["t"].pop("seconds")
        metrics["training"]["autoencoder"].pop("seconds")
    assert found[0] == found[1]


def test_e_is_chosen_by_the_images_that_choose(monkeypatch):
    taken = []

    def rows_of(space, *caches):
        taken.append(caches)
        return usual(space, *caches)

    usual = stages.rows_of
    monkeypatch.setattr(stages, "rows_of", rows_of)
    it = interpreter()
    concepts = AttributeSource({"kind": torch.arange(300) % 3})
    fit = it.prepare(FitRequest(data=images(300), held_out=0.8, concepts=concepts, evaluate=False))
    it.learn(fit)
    assert taken == [(fit.result.train,), (fit.result.selection,)]
    assert len(fit.result.selection) == 120


def test_held_out_pairs_that_are_too_few_for_two_parts_all_choose():
    cache = Cache()
    cache.append(z=torch.zeros(240, 1))
    across = [(int(part.index[0])) for part in part_held_out(cache, seed=0)]
    pairs = GivenPairs({"kind": [(k, k + 1) for k in range(0, 60, 2)]})
    it, reporter = interpreter(), Notes()
    request = FitRequest(
        data=images(60),
        held_out=images(240, seed=1),
        concepts=pairs,
        held_out_concepts=GivenPairs({"kind": [tuple(across)]}),
    )
    it.learn(it.prepare(request, reporter=reporter))
    assert any("too few to be parted" in note for note in reporter.notes)
    assert not any("measured on training pairs" in note for note in reporter.notes)
    assert it.metrics_["images"]["are_apart"]
