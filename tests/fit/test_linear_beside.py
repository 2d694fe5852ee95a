"""The linear t in a fit: chosen, measured beside every t, and used where the trained one is worse."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from small_parts import SPEC, TINY, network

from posthoc_inn import Interpreter
from posthoc_inn.autoencoders.base import CHUNK
from posthoc_inn.config import ConditionerConfig, FlowConfig
from posthoc_inn.fit import linear
from posthoc_inn.fit.linear import (
    Comparison,
    compare,
    fit_linear,
    fitted_linear,
    linear_bytes,
    linear_seconds,
    some_rows,
)
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.progress import Reporter
from posthoc_inn.report import findings
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training.tasks import flow_nats

SHORT = TINY.flow_training.replace(steps=2, eval_every=2, checkpoint_every=2)
SMALL = TINY.replace(autoencoder_training=SHORT, flow_training=SHORT)


class Notes(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def with_kind(kind, **options):
    return SMALL.replace(flow=SMALL.flow.replace(kind=kind), **options)


def images(n=120):
    coarse = torch.rand(n, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (28, 28), mode="bilinear")


def fit(config, **options):
    return Interpreter(network(), "3", preset=config, spec=SPEC).fit(
        images(), held_out=images(60), evaluate=options.pop("evaluate", True), **options
    )


def rows(n, seed=0, dim=6):
    """Latents that are a linear function of z and noise, which a t that knows nothing cannot tell."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 5, generator=generator)
    mixing = torch.randn(5, dim, generator=torch.Generator().manual_seed(9))
    mean = z @ mixing + 0.2 * torch.randn(n, dim, generator=generator)
    cache = Cache()
    cache.append(z=z, mean=mean, std=torch.full_like(mean, 0.1))
    return cache


def untrained(kind="affine", dim=6):
    flow = ConditionalFlow(
        FlowConfig(dim=dim, context_dim=3, blocks=1, width=8, kind=kind), ConditionerConfig((5,), 3, 8)
    ).eval()
    cache = rows(300)
    flow.conditioner.fit_standardization([cache["z"].tensor()])
    if flow.linear is not None:
        fit_linear(flow, cache, seed=0)
    flow.initialize(cache["mean"].tensor(), cache["z"].tensor())
    return flow


@pytest.mark.parametrize("kind", ["linear", "linear+affine"])
def test_a_linear_kind_serves_a_whole_fit_and_a_bundle(tmp_path, kind):
    fitted = fit(with_kind(kind))
    found = fitted.metrics_["likelihood"]
    assert found["is_linear"] == (kind == "linear")
    if kind == "linear":
        assert found["trained"] == found["linear"] == pytest.approx(found["held_out"])
        assert found["linear_gain"] == 0
        assert fitted.metrics_["training"]["t"]["stopped"] == "finished"
    shown = fitted.sample(images(3), n=2, seed=1)
    loaded = Interpreter.load(fitted.save(tmp_path / "run"), model=network())
    assert loaded.flow_.flow.config.kind == kind
    assert torch.equal(loaded.sample(images(3), n=2, seed=1), shown)
    assert torch.equal(loaded.invariances(images(3)), fitted.invariances(images(3)))


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_worse_t_is_replaced_and_said_unless_that_is_not_wanted(is_wanted, monkeypatch):
    reporter = Notes()
    monkeypatch.setattr(linear, "compare", lambda *_: Comparison(-2.0, 0.5))
    monkeypatch.setattr("posthoc_inn.fit.stages.compare", linear.compare)
    fitted = fit(SMALL.replace(linear_fallback=is_wanted), progress=reporter)
    found = fitted.metrics_["likelihood"]
    assert found["is_linear"] == is_wanted
    assert fitted.flow_.flow.config.kind == ("linear" if is_wanted else "affine")
    assert fitted.pipeline.flow is fitted.flow_
    assert found["held_out"] == pytest.approx(found["linear" if is_wanted else "trained"])
    assert found["linear_gain"] == pytest.approx(found["linear"] - found["trained"])
    assert sum("likelier than the trained t on held-out images, by 2.00 ± 0.50" in n for n in reporter.notes) == 1
    assert sum("is what is used" in note for note in fitted.metrics_["notes"]) == is_wanted


def test_t_is_compared_on_the_same_rows_and_draws():
    flow, held_out = untrained(), rows(200, seed=3)
    own = fitted_linear(flow, rows(300), seed=0)
    found = compare(flow, own, held_out)
    gains = flow_nats(own, held_out) - flow_nats(flow, held_out)
    assert found == Comparison(float(gains.mean()), float(gains.std()) / 200**0.5)
    assert found.is_worse
    assert found.gain < -3
    chosen = untrained("linear")
    assert fitted_linear(chosen, rows(300), seed=0) is chosen
    assert compare(chosen, chosen, held_out) == Comparison(0.0, 0.0)
    # Couplings on the linear t: the linear t beside them is the one they start with.
    after = untrained("linear+affine")
    assert torch.equal(fitted_linear(after, rows(9), seed=0).linear.scale, after.linear.scale)


@pytest.mark.parametrize(
    ("gain", "error", "is_worse", "text"),
    [
        (2.0, 1.0, False, None),
        (0.5, 1.0, False, "no better than a linear t"),
        (-0.5, 1.0, False, "no better than a linear t"),
        (-2.0, 1.0, True, "by 2.00 ± 1.00 nats an image"),
        (float("nan"), float("nan"), True, "is likelier"),
    ],
)
def test_only_a_clear_loss_counts(gain, error, is_worse, text):
    found = Comparison(gain, error)
    assert found.is_worse == is_worse
    note = found.note(is_used=is_worse)
    assert note is None if text is None else text in note


def test_of_many_rows_blocks_from_all_over_are_taken(monkeypatch):
    monkeypatch.setattr(linear, "LINEAR_ROWS", 3 * CHUNK)
    cache = Cache()
    count = 7 * CHUNK
    cache.append(**{name: torch.arange(count).float().unsqueeze(1) for name in ("z", "mean", "std")})
    seen = torch.cat([z for z, _, _ in some_rows(cache)]).flatten()
    assert len(seen) == 3 * CHUNK == len(seen.unique())
    assert (seen.min(), seen.max()) == (0, count - 1)


def test_its_time_and_memory_are_estimated():
    flow, z = untrained(), rows(64)["z"].tensor()
    assert 0 < linear_seconds(flow, z, 100) < linear_seconds(flow, z, 50_000) + 1 < 20
    large = ConditionalFlow(FlowConfig(dim=64, context_dim=3, blocks=1, width=8), ConditionerConfig((9000,), 3, 8))
    assert linear_bytes(large) > 9000 * 2048 * 4
    assert linear_seconds(large, torch.zeros(2, 9000), 10_000) > 0.1


@pytest.mark.parametrize(
    ("figures", "status", "text"),
    [
        ({"linear_gain": 3.0, "linear_gain_error": 0.5, "linear": 30.0}, "good", "would reach 30.0 nats"),
        ({"linear_gain": 0.2, "linear_gain_error": 0.5, "linear": 30.0}, "fair", "would reach 30.0 nats"),
        ({"linear_gain": -3.0, "linear_gain_error": 0.5, "linear": 30.0}, "poor", "would reach 30.0 nats"),
        (
            {"linear_gain": -3.0, "linear_gain_error": 0.5, "linear": 30.0, "trained": 33.0, "is_linear": True},
            "poor",
            "it is what is used",
        ),
        ({"linear_gain": 0.0, "linear_gain_error": 0.0, "linear": 3.0, "trained": 3.0, "is_linear": True}, "info", ""),
        ({"linear_gain": None, "linear": None}, None, ""),
    ],
)
def test_the_findings_say_what_a_linear_t_would_reach(figures, status, text):
    usual = {"held_out": 30.0, "train": 29.0, "standard_normal": 90.0, "noise_floor": 1.0, "verdict": "converged"}
    found = [f for f in findings({"likelihood": usual | figures}) if f.label == "Likelier than a linear t"]
    assert [f.status for f in found] == ([] if status is None else [status])
    assert all(text in f.meaning for f in found)
    assert all(dataclasses.asdict(f)["value"] for f in found)
