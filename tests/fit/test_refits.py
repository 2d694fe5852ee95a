"""More trainings of t with other seeds: the first stays as it is, and the spread is that of trainings of their own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_parts import TINY, network

from posthoc_inn import Interpreter
from posthoc_inn.config import preset
from posthoc_inn.errors import ConfigError
from posthoc_inn.fit import FitRequest, refits, stages
from posthoc_inn.fit.linear import Comparison
from posthoc_inn.progress import Reporter
from posthoc_inn.report import findings

LONGER = TINY.replace(flow_training=TINY.flow_training.replace(steps=16, lr=1e-2))


def images(n=60, seed=0):
    return torch.rand(n, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


def interpreter(config=LONGER, **options):
    return Interpreter(network(), "3", preset=config, mean=(0.0,) * 3, std=(1.0,) * 3, precision="32", **options)


def fit(**options):
    return interpreter().fit(images(), held_out=images(40, 1), **options)


class Stopping(Reporter):
    """Stops a fit within the second training of t anew."""

    name = ""

    def stage(self, name, total):
        self.name = name

    def advance(self, done, figures=None):
        if self.name == "refit 2" and done >= 5:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def refitted():
    return fit(refits=2)


def test_the_first_t_is_the_one_that_is_used_to_the_bit(refitted):
    alone = fit()
    assert "refits" not in alone.metrics_
    assert all(torch.equal(a, b) for a, b in zip(alone.flow_.parameters(), refitted.flow_.parameters(), strict=True))
    for part in ("likelihood", "faithfulness", "explained_by_invariances"):
        assert alone.metrics_[part] == refitted.metrics_[part]


def test_figures_are_those_of_each_training_on_the_same_images(refitted, monkeypatch):
    told, metrics = refitted.metrics_["refits"], refitted.metrics_
    assert told["trainings"] == 3
    assert set(told["values"]) == {"held_out", "agreement", "similarity", "explained_by_invariances"}
    assert [told["values"][name][0] for name in told["values"]] == [
        metrics["likelihood"]["held_out"],
        metrics["faithfulness"]["agreement"],
        metrics["faithfulness"]["similarity"],
        metrics["explained_by_invariances"]["value"],
    ]
    for name, values in told["values"].items():
        assert told["deviation"][name] == pytest.approx(np.std(values, ddof=1))
    assert len(set(told["values"]["held_out"])) == 3
    assert {"refit 1", "refit 2"} <= metrics["seconds"].keys()
    # Were the seeds the first one's, all trainings would be the first.
    own = LONGER.with_seed(0)
    seeds = {"refit": own.flow.seed, "t": own.flow_training.seed}
    monkeypatch.setattr(refits, "derived", lambda seed, *path: seeds[path[0]])
    again = fit(refits=1).metrics_["refits"]
    assert again["values"]["held_out"] == [metrics["likelihood"]["held_out"]] * 2
    assert again["deviation"]["similarity"] == 0


def test_findings_tell_the_spread(refitted):
    found = {f.label: f for f in findings(refitted.metrics_) if f.group == "Other seeds"}
    assert len(found) == 4
    spread = refitted.metrics_["refits"]["deviation"]["held_out"]
    assert found["Negative log-likelihood, held out"].value == f"± {spread:.2f} nats"
    old = copy.deepcopy(refitted.metrics_)
    old.pop("refits")
    assert not [f for f in findings(old) if f.group == "Other seeds"]


def test_a_killed_run_goes_on_within_its_trainings(tmp_path, refitted):
    with pytest.raises(KeyboardInterrupt):
        fit(refits=2, out=tmp_path, progress=Stopping())
    assert {p.name for p in (tmp_path / "checkpoints").glob("refit*")} >= {"refit-1.safetensors"}
    assert fit(refits=2, out=tmp_path, resume=True).metrics_["refits"] == refitted.metrics_["refits"]


def test_trainings_anew_work_on_the_same_e():
    it = interpreter(TINY.replace(flow_on_concepts=True))
    data, held_out = ((images(n, seed), torch.arange(n) % 3) for n, seed in ((60, 0), (40, 1)))
    run = it.prepare(FitRequest(data=data, held_out=held_out, concepts="labels", refits=1))
    it.learn(run)
    (other,) = run.result.refits
    assert other.base is it.flow_.base is it.concept_model_.flow
    assert it.metrics_["refits"]["trainings"] == 2


def test_the_linear_t_stands_in_for_each_that_is_worse(monkeypatch):
    monkeypatch.setattr(stages, "compare", lambda *_: Comparison(gain=-5.0, error=0.1))
    it = interpreter(TINY.replace(linear_fallback=True))
    run = it.prepare(FitRequest(data=images(), held_out=images(40, 1), refits=1))
    it.learn(run)
    assert it.metrics_["likelihood"]["is_linear"]
    assert run.result.refits == (run.result.linear,)
    assert it.metrics_["refits"]["deviation"]["held_out"] == pytest.approx(0, abs=1e-6)


def test_the_plan_counts_them():
    plans = [interpreter().plan(images(), held_out=images(40, 1), refits=n) for n in (0, 3)]
    assert "refits" not in plans[0].seconds
    assert plans[1].seconds["refits"] > 0
    assert any("3 more trainings of t" in line for line in plans[1].lines)


@pytest.mark.parametrize(
    ("config", "options", "told"),
    [
        (LONGER, {"refits": -1}, "at least 0, got -1"),
        (LONGER, {"refits": 1.5}, "at least 0, got 1.5"),
        (LONGER, {"refits": 2, "evaluate": False}, "leave out evaluate=False"),
        (preset("linear"), {"refits": 2}, "the linear t has none"),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(config, options, told):
    with pytest.raises(ConfigError, match=told):
        interpreter(config).prepare(FitRequest(data=images(), **options))
