"""Sweeps over layers and checkpoints: one autoencoder and e for all, jobs that stand alone and are done once."""

from __future__ import annotations

import dataclasses
import json
import pickle
from concurrent.futures import Future

import pytest
import torch
from safetensors.torch import save_file
from small_parts import SPEC, TINY, network

from posthoc_inn import sweep as sweep_module
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.datasets import ColorDigits
from posthoc_inn.errors import ConfigError, TrainingError
from posthoc_inn.fit import FitRequest
from posthoc_inn.fit.pair_shares import shares_of_held_out
from posthoc_inn.interpreter import Interpreter
from posthoc_inn.sweep import SweepJob, SweepPoint, SweepResult, layer_sweep, run_job, training_sweep

ESTIMATE = {"value": 0.5, "standard_error": 0.1}
OPTIONS = {"spec": SPEC, "preset": TINY, "precision": "32"}


class Few(ColorDigits):
    """The first digits alone."""

    def __len__(self):
        return 120

    def attribute_table(self):
        return {"digit": self.digits[:120], "background": self.background[:120]}


class Immediate:
    """An executor that pickles what it is given, as a cluster would."""

    def __init__(self, fails=()):
        self.names, self.fails = [], fails

    def submit(self, function, /, job):
        future = Future()
        self.names.append(job.name)
        if job.name in self.fails:
            future.set_exception(OSError("the node died"))
        else:
            function, job = pickle.loads(pickle.dumps((function, job)))
            future.set_result(function(job))
        return future


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    result = layer_sweep(
        network(), ["0", "2"], Few(), held_out=Few(train=False), concepts=["digit", "background"], out=out, **OPTIONS
    )
    return out, result


def test_every_layer_is_measured_with_the_same_autoencoder_and_e(swept):
    out, result = swept
    assert [p.layer for p in result.points] == ["0", "2"]
    assert result.axis == "layer"
    assert result.concept_names == ["digit", "background"]
    for p in result.points:
        assert 0 <= p.accuracy <= 1
        assert set(p.concepts) == {"residual", "digit", "background", "(random)"}
    records = [json.loads((out / name / "bundle" / "bundle.json").read_text()) for name in ("0", "2")]
    assert records[0]["autoencoder"]["fingerprint"] == records[1]["autoencoder"]["fingerprint"]
    assert records[0]["concepts"] == records[1]["concepts"]
    assert [r["is_flow_on_concepts"] for r in records] == [False, False]


def test_shares_by_pairs_of_a_given_e_are_those_of_the_fit_that_trained_it(swept):
    out, result = swept
    first, second = (json.loads((out / name / "result.json").read_text())["concepts"] for name in ("0", "2"))
    assert [c["name"] for c in second["pair_shares"]["concepts"]] == ["digit", "background", "(random)"]
    assert second["pair_shares"]["are_held_out"]
    assert result.points[1].pair_shares.keys() == {"digit", "background", "(random)"}
    interpreter = Interpreter.load(out / "0" / "bundle", model=network())
    request = FitRequest(data=Few(), held_out=Few(train=False), concepts=["digit", "background"])
    again = shares_of_held_out(interpreter.pipeline, interpreter.concept_model, request, seed=0).to_dict()
    for ours, theirs in zip(again["concepts"], first["pair_shares"]["concepts"], strict=True):
        assert ours["common"] == pytest.approx(theirs["common"], abs=1e-4)
        assert ours["is_learned"] == theirs["is_learned"]


def test_shares_by_pairs_of_a_share_held_out_are_of_the_images_that_were(tmp_path):
    result = layer_sweep(network(), ["0", "2"], Few(), concepts=["digit"], out=tmp_path, held_out=0.5, **OPTIONS)
    first, second = (p.pair_shares["digit"]["quality"]["correlations"] for p in result.points)
    assert first == pytest.approx(second, abs=1e-4)  # of e alone: the same e, the same images


def test_a_concept_that_e_has_not_learned_has_no_share_by_pairs():
    learned = {"value": 0.4, "standard_error": 0.1, "is_learned": True}
    points = tuple(
        SweepPoint(
            str(k), k, "0", None, 1.0, None, 0.5, {"digit": {m: ESTIMATE for m in ("total_effect", "first_order")}},
            pair_shares={"digit": learned | {"is_learned": bool(k), "value": 0.4 if k else None}},
        )
        for k in range(2)
    )  # fmt: skip
    found = SweepResult(points, "layer")
    assert found.share("digit", "pairs") == [pytest.approx(float("nan"), nan_ok=True), 0.4]
    assert [line.split(" | ")[1] for line in found.table().splitlines()[2:]] == ["not learned", "40.0 ± 10.0 %"]
    assert found.figure()


def test_what_is_done_is_not_done_again(swept, monkeypatch):
    out, result = swept
    monkeypatch.setattr(sweep_module.Interpreter, "fit", lambda *a, **k: pytest.fail("fitted again"))
    again = layer_sweep(
        network(), ["0", "2"], Few(), held_out=Few(train=False), concepts=["digit", "background"], out=out, **OPTIONS
    )
    assert again.to_dict() == result.to_dict()


def test_a_directory_of_another_sweep_is_refused(swept):
    out, _ = swept
    with pytest.raises(ConfigError, match="result of another job"):
        layer_sweep(network(seed=1), ["0"], Few(), held_out=Few(train=False), concepts=["digit"], out=out, **OPTIONS)


def test_tables_and_figures_show_every_point(swept):
    _, result = swept
    lines = result.table().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("| layer | accuracy | digit, by pairs | background, by pairs | digit, total / first |")
    assert "above the floor" in lines[0]
    by_variance = dataclasses.replace(
        result, points=tuple(dataclasses.replace(p, pair_shares={}) for p in result.points)
    )
    assert "by pairs" not in by_variance.table()
    assert "MSC eq. 20, the paper's measure" in by_variance.caption
    assert by_variance.figure()
    embedding = dataclasses.replace(
        result, points=tuple(dataclasses.replace(p, accuracy=None, agreement=None) for p in result.points)
    )
    assert "accuracy" not in embedding.table()
    assert "agreement" not in embedding.table()
    assert len(embedding.table().splitlines()) == 4
    points = tuple(dataclasses.replace(p, output_similarity=0.9876) for p in embedding.points)
    assert "| 0.988 |" in dataclasses.replace(embedding, points=points).table()
    figure = result.figure()
    assert max(figure.axes[0].get_yticks()) <= 100
    assert {t.get_text() for t in figure.axes[0].get_legend().get_texts()} >= {"digit", "background"}
    assert json.dumps(result.to_dict())
    assert "what pairs of images that share the concept have in common" in result.caption
    with pytest.raises(ConfigError, match="no total_effect of 'size'"):
        result.share("size")


def test_checkpoints_are_jobs_for_any_executor(tmp_path):
    paths = {}
    for step in (20, 0, 10):
        paths[step] = tmp_path / f"{step}.safetensors"
        save_file(network(seed=step).state_dict(), paths[step])
    executor = Immediate()
    result = training_sweep(
        network(), paths, "2", Few(), held_out=Few(train=False), out=tmp_path / "out", executor=executor, **OPTIONS
    )
    assert [p.position for p in result.points] == [0, 10, 20]
    assert executor.names == ["10", "20"]  # the first trains what all share
    nats = [p.held_out for p in result.points]
    assert len(set(nats)) == 3


def test_a_job_that_fails_is_named_and_the_others_are_kept(tmp_path, swept):
    first = layer_sweep(network(), ["0"], Few(), held_out=Few(train=False), out=tmp_path, **OPTIONS)
    assert len(first.points) == 1
    with pytest.raises(TrainingError, match=r"1 of 3 jobs failed.*2: OSError: the node died"):
        layer_sweep(network(), ["0", "2", "3"], Few(), held_out=Few(train=False), out=tmp_path,
                    executor=Immediate(fails=["2"]), **OPTIONS)  # fmt: skip
    assert (tmp_path / "3" / "result.json").exists()
    whole = layer_sweep(network(), ["0", "2", "3"], Few(), held_out=Few(train=False), out=tmp_path, **OPTIONS)
    assert [p.name for p in whole.points] == ["0", "2", "3"]


def test_an_autoencoder_that_is_configured_is_trained_once_for_all(tmp_path):
    config = AutoencoderConfig.of_map(28, width=8, latent_channels=2, perceptual="")
    layer_sweep(network(), ["0", "2"], Few(), held_out=Few(train=False), out=tmp_path, autoencoder=config, **OPTIONS)
    records = [json.loads((tmp_path / name / "bundle" / "bundle.json").read_text()) for name in ("0", "2")]
    assert records[0]["autoencoder"]["config"]["latent"] == "map"
    assert records[0]["autoencoder"]["fingerprint"] == records[1]["autoencoder"]["fingerprint"]


def test_a_job_carries_all_it_needs(tmp_path):
    job = SweepJob(
        "0", 0.0, network(), None, "0", FitRequest(data=Few(), held_out=Few(train=False), out=tmp_path / "0"), OPTIONS
    )
    other = pickle.loads(pickle.dumps(job))
    assert other.key() == job.key()
    first = run_job(other)
    assert run_job(job) == first


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"layers": []}, "nothing to sweep over"),
        ({"layers": ["0", "0"]}, "named twice"),
        ({"layers": ["0"], "fit": {"out": "x"}}, "pass out to the sweep itself"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_trained(tmp_path, arguments, match):
    with pytest.raises(ConfigError, match=match):
        layer_sweep(network(), data=Few(), out=tmp_path, **arguments, **OPTIONS)
    with pytest.raises(ConfigError, match="There is no checkpoint"):
        training_sweep(network(), {0: tmp_path / "none"}, "0", Few(), out=tmp_path, **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_the_correlation_with_accuracy_is_pearsons():
    shares = [0.1, 0.2, 0.35, 0.3]
    accuracies = [0.2, 0.5, 0.9, 0.95]
    points = tuple(
        SweepPoint(str(k), k, "0", a, 1.0, None, 0.5, {"digit": {"total_effect": {"value": s, "standard_error": 0.01}}})
        for k, (s, a) in enumerate(zip(shares, accuracies, strict=True))
    )
    found = SweepResult(points, "training step").correlation_with_accuracy("digit")
    expected = torch.corrcoef(torch.tensor([shares, accuracies], dtype=torch.float64))[0, 1]
    assert found == pytest.approx(float(expected))


def test_the_key_of_a_job_is_made_of_what_was_set(tmp_path):
    def key(**options):
        return SweepJob("0", 0.0, network(), None, "0", FitRequest(data=None, out=tmp_path), OPTIONS | options).key()

    assert key() == key()
    assert key(seed=1) != key()
    assert key(preset=TINY.replace(interaction_weight=1.0)) != key()
    assert key(preset=TINY.replace(interaction_weight=TINY.interaction_weight)) == key()
