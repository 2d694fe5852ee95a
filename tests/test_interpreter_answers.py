"""What an Interpreter answers besides pictures: representations instead of images, analyses by name, reports, state."""

import json
import math

import pytest
import torch
from small_parts import SPEC, TINY, network

from posthoc_inn import ConfigError, FitRequest, Interpreter, NotFittedError, ShapeError, UnknownNameError
from posthoc_inn.analysis import Result
from posthoc_inn.datasets import ColorDigits
from posthoc_inn.errors import DataError


def make(**more):
    return Interpreter(network(), "2", **({"spec": SPEC, "preset": TINY, "precision": "32"} | more))


@pytest.fixture(scope="module")
def digits():
    return ColorDigits(seed=0)


@pytest.fixture(scope="module")
def few(digits):
    return torch.utils.data.Subset(digits, range(120))


@pytest.fixture(scope="module")
def images(digits):
    return torch.stack([digits[k][0] for k in range(200, 212)])


@pytest.fixture(scope="module")
def fitted(few):
    return make().fit(few, concepts="labels")


# ---- z instead of images


def test_z_determines_what_its_images_do(fitted, images):
    z = fitted.pipeline.features(images)
    assert torch.equal(fitted.sample(z=z, n=2), fitted.sample(images, n=2))
    assert torch.equal(fitted.log_likelihood(images, z=z), fitted.log_likelihood(images))
    assert torch.equal(fitted.reconstruct(images, z=z), fitted.reconstruct(images))
    assert torch.equal(fitted.reconstruct(images, z=z.flip(0)), fitted.reconstruct(images, z_of=images.flip(0)))
    by_z = fitted.explained_by_invariances(z=z, samples=60)
    by_images = fitted.explained_by_invariances(images, samples=60)
    assert (by_z.value, by_z.standard_error) == (by_images.value, by_images.standard_error)
    assert math.isnan(by_z.floor)  # z alone does not tell the encoder's noise
    assert 0 < by_images.floor < 1
    assert fitted.analyze("explained-by-invariances", z=z, samples=60).value == by_z.value
    assert fitted.analyze("concept-relevance", z=z, samples=90) == fitted.analyze(
        "concept-relevance", images, samples=90
    )


@pytest.mark.parametrize(
    ("ask", "error", "match"),
    [
        (lambda it, x, z: it.sample(), ConfigError, "either images or z="),
        (lambda it, x, z: it.sample(x, z=z), ConfigError, "either images or z="),
        (lambda it, x, z: it.sample(z=z[:, :1]), ShapeError, r"z must be a tensor \(B, 4, 2, 2\)"),
        (lambda it, x, z: it.sample(z=z.numpy()), ShapeError, "ndarray"),
        (lambda it, x, z: it.log_likelihood(x, z=z * float("nan")), DataError, "not finite"),
        (lambda it, x, z: it.analyze("attack", z=z), ConfigError, "needs images"),
        (lambda it, x, z: it.analyze("attack"), ConfigError, r"data \(images\) or z="),
        (lambda it, x, z: it.analyze("atack", x), UnknownNameError, "Did you mean 'attack'"),
        (lambda it, x, z: it.analyze("edits", x, image=3), ConfigError, "no option 'image'"),
    ],
)
def test_what_cannot_be_asked_is_refused(fitted, images, ask, error, match):
    with pytest.raises(error, match=match):
        ask(fitted, images, fitted.pipeline.features(images))


def test_an_analysis_that_needs_e_says_so_where_there_is_none(few, images):
    plain = make().fit(few, evaluate=False)
    with pytest.raises(NotFittedError, match="no concepts"):
        plain.analyze("edits", images)
    with pytest.raises(NotFittedError, match="not fitted"):
        make().analyze("recombination", images)


def test_analyses_by_name_are_results_with_figures_and_captions(fitted, images):
    for name in ("samples", "recombination", "edits", "concept-relevance"):
        found = fitted.analyze(name, images)
        assert isinstance(found, Result)
        json.dumps(found.to_dict(), allow_nan=False)
        assert found.caption
        assert found.figure() is not None


# ---- the report


def test_a_report_is_written_from_what_the_fit_kept_and_by_a_loaded_one_from_images(fitted, images, tmp_path):
    page = fitted.report(tmp_path / "report.html", class_names=[f"digit {k}" for k in range(10)])
    text = page.read_text(encoding="utf-8")
    assert text.count("<img") >= 4
    assert "What the layer determines of each concept" in text
    fitted.save(tmp_path / "bundle")
    loaded = Interpreter.load(tmp_path / "bundle", model=fitted.model)
    with pytest.raises(NotFittedError, match="pass data="):
        loaded.report(tmp_path / "again.html")
    assert "<img" in loaded.report(tmp_path / "again.html", images).read_text(encoding="utf-8")
    with pytest.raises(NotFittedError, match="not fitted"):
        make().report(tmp_path / "none.html")


# ---- state


def test_planning_and_preparing_change_nothing(few):
    it = make()
    before = dict(vars(it))
    plan = it.plan(few, steps=3)
    fit = it.prepare(FitRequest(data=few, steps=3))
    assert vars(it) == before
    assert any("3 steps" in line for line in plan.lines)
    assert fit.plan() is fit.plan()
    with pytest.raises(NotFittedError, match="has not run"):
        _ = fit.result


def test_a_prepared_fit_learns_what_fit_does(few):
    one, other = make(), make()
    one.fit(few, steps=3)
    other.learn(other.prepare(FitRequest(data=few, steps=3)))
    for name, value in one.flow_.state_dict().items():
        assert torch.equal(value, other.flow_.state_dict()[name]), name


def test_no_row_outlives_a_fit_and_every_learned_name_is_documented(fitted):
    learned = {name for name in vars(fitted) if name.endswith("_") and not name.startswith("_")}
    documented = Interpreter.__doc__ or ""
    assert learned
    assert all(f"{name}" in documented for name in learned), learned
    assert fitted.examples_.images.shape[0] <= 100
    held = sum(v.nbytes for v in vars(fitted.examples_).values())
    assert held < 2**20


def test_metrics_are_ready_for_json(fitted):
    assert json.loads(json.dumps(fitted.metrics_, allow_nan=False)) == fitted.metrics_
    assert {"model", "notes", "seconds", "autoencoder", "likelihood", "faithfulness"} <= set(fitted.metrics_)


def test_all_problems_of_a_request_are_said_at_once(few):
    with pytest.raises(ConfigError, match=r"steps must be at least 1.*draws must be at least 1.*resume needs out"):
        make().fit(few, steps=0, draws=0, resume=True)
    with pytest.raises(ConfigError, match=r"no argument 'stepps'.*Did you mean 'steps'"):
        make().plan(few, stepps=3)


# ---- refined samples


def test_refined_samples_are_nearer_to_the_image_for_the_layer(fitted, images):
    pipeline, z = fitted.pipeline, fitted.pipeline.features(images)

    def misfit(pictures):
        seen = pipeline.ask_model(pictures.flatten(0, 1))[0]
        return (seen - z.repeat_interleave(2, 0)).square().flatten(1).sum(1)

    plain, refined = (fitted.sample(images, n=2, refine=steps) for steps in (0, 8))
    assert torch.equal(plain, fitted.sample(images, n=2))
    assert bool((misfit(refined) <= misfit(plain) * (1 + 1e-3)).all())
    assert misfit(refined).mean() < 0.95 * misfit(plain).mean()
    assert torch.equal(refined, fitted.sample(z=z, n=2, refine=8))
    told = fitted.analyze("samples", images, images=3, samples=2, refine=4).to_dict()["refinement"]
    assert told["after"]["similarity"] > told["before"]["similarity"]
    with pytest.raises(ConfigError, match="refine takes the number of gradient steps"):
        fitted.sample(images, refine=-1)
