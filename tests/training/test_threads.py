"""Threads: what is tried, what is taken, and that nothing stays changed."""

from __future__ import annotations

import json

import pytest
import torch
from small_parts import tiny_default
from torch import nn

from posthoc_inn import Interpreter
from posthoc_inn.errors import TrainingError
from posthoc_inn.fit import plan as planning
from posthoc_inn.fit import stages as fitting
from posthoc_inn.fit.stages import Fit
from posthoc_inn.rows.reader import RowReader
from posthoc_inn.training import threads
from posthoc_inn.training.threads import fastest, thread_counts, time_threads, using_threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_all_halves_down_to_one_are_tried():
    assert thread_counts(1) == [1]
    assert thread_counts(2) == [2, 1]
    assert thread_counts(16) == [16, 8, 4, 2, 1]


def test_fewer_threads_are_taken_only_when_clearly_faster():
    assert fastest({4: 1.0, 2: 0.96, 1: 2.0}) == 4
    assert fastest({4: 1.0, 2: 0.9, 1: 0.5}) == 1


def test_the_old_number_is_put_back_after_an_exception(two_threads):
    def fail():
        with using_threads(1):
            assert torch.get_num_threads() == 1
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert torch.get_num_threads() == 2

    def step():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_threads(step, [2, 1])
    assert torch.get_num_threads() == 2


def test_each_number_is_timed_in_turns_within_the_budget(two_threads, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(threads.time, "perf_counter", lambda: clock[0])
    seen = []

    def step():
        seen.append(torch.get_num_threads())
        clock[0] += 0.01 if seen[-1] == 1 else 0.04  # as under load

    seconds = time_threads(step, [2, 1], budget=0.2)
    assert fastest(seconds) == 1
    assert seconds == pytest.approx({2: 0.04, 1: 0.01})
    assert seen[:6] == [2, 1, 2, 1, 2, 1]
    assert clock[0] <= 0.2
    seen.clear()
    time_threads(step, [2, 1], budget=0.0)
    assert seen == [2, 1, 2, 1]  # a warm-up and one timed step each, whatever they take


def interpreter(**more):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 3)).eval()
    return Interpreter(model, "1", preset=tiny_default(), precision="32", mean=(0.5,) * 3, std=(0.5,) * 3, **more)


def images():
    return torch.rand(40, 3, 28, 28, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.fixture
def one_is_faster(monkeypatch, two_threads):
    """Every stage is long enough to measure for, and one thread always wins."""
    asked = []

    def timed(step, counts, **more):
        asked.append(list(counts))
        step()
        return {count: float(count) for count in counts}

    monkeypatch.setattr(planning, "MIN_STEPS", 1)
    monkeypatch.setattr(planning, "MIN_IMAGES", 1)
    monkeypatch.setattr(planning, "time_threads", timed)
    return asked


def test_each_stage_of_a_fit_runs_with_the_threads_that_were_found(one_is_faster, monkeypatch):
    seen = {}
    stages = [(RowReader, n) for n in ("read", "encode")] + [(Fit, n) for n in ("_train_autoencoder", "_train_flow")]
    for owner, name in stages:
        work = getattr(owner, name)

        def spying(self, *args, name=name, work=work, **more):
            seen[name] = torch.get_num_threads()
            return work(self, *args, **more)

        monkeypatch.setattr(owner, name, spying)
    fitted = interpreter().fit(images())
    assert seen == {"read": 1, "_train_autoencoder": 1, "encode": 1, "_train_flow": 1}
    assert fitted.metrics_["threads"] == {"features": 1, "autoencoder": 1, "latents": 1, "t": 1}
    assert set(fitted.metrics_["seconds"]) == {"features", "autoencoder", "latents", "t", "measuring"}
    assert torch.get_num_threads() == 2
    assert one_is_faster == [[2, 1]] * 3


def test_the_plan_tells_and_the_same_fit_keeps_to_it(one_is_faster):
    plans = []
    interpreter().fit(images(), announce=plans.append)
    assert plans[0].threads == {"features": 1, "autoencoder": 1, "t": 1}
    assert any("2 threads (1 for features, 1 for autoencoder, 1 for t: faster so now)" in k for k in plans[0].lines)
    assert len(one_is_faster) == 3


def test_short_stages_are_not_measured_for(monkeypatch):
    monkeypatch.setattr(planning, "time_threads", None)
    fitted = interpreter().fit(images())
    assert set(fitted.metrics_["threads"].values()) == {torch.get_num_threads()}


def test_a_resumed_fit_keeps_threads_and_adds_up_seconds(one_is_faster, monkeypatch, tmp_path):
    train = fitting.train

    def dying(task, *args, **more):
        if task.name == "t":
            raise TrainingError("stopped here")
        return train(task, *args, **more)

    monkeypatch.setattr(fitting, "train", dying)
    with pytest.raises(TrainingError, match="stopped here"):
        interpreter().fit(images(), out=tmp_path)
    assert torch.get_num_threads() == 2
    record = json.loads((tmp_path / "checkpoints" / "stages.json").read_text())
    assert record["threads"] == {"features": 1, "autoencoder": 1, "latents": 1, "t": 1}
    assert set(record["seconds"]) == {"features", "autoencoder", "latents", "t"}
    monkeypatch.setattr(fitting, "train", train)
    monkeypatch.setattr(planning, "time_threads", None)  # not measured again
    record["seconds"]["autoencoder"] = 100.0
    (tmp_path / "checkpoints" / "stages.json").write_text(json.dumps(record))
    again = interpreter().fit(images(), out=tmp_path, resume=True)
    assert again.metrics_["threads"] == record["threads"]
    assert 100.0 < again.metrics_["seconds"]["autoencoder"] < 110.0


def test_a_recorded_number_above_what_the_user_allows_is_cut(tmp_path, one_is_faster):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "stages.json").write_text('{"threads": {"t": 64, "features": 0}, "seconds": {}}')
    fitted = interpreter().fit(images(), out=tmp_path, resume=True)
    assert fitted.metrics_["threads"] == {"features": 1, "autoencoder": 1, "latents": 1, "t": 2}


@pytest.mark.parametrize("text", ["", "[]", '{"threads": 3}', '{"threads": {"t": "many"}}'])
def test_a_damaged_record_is_as_good_as_none(tmp_path, text):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "stages.json").write_text(text)
    fitted = interpreter().fit(images(), out=tmp_path, resume=True)
    assert set(fitted.metrics_["threads"].values()) == {torch.get_num_threads()}
