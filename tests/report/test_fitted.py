"""The report of a fitted interpreter: complete after a fit, after a load, and when nothing was measured."""

from __future__ import annotations

import json

import pytest
import torch
from small_parts import SPEC, TINY, network

from posthoc_inn import Interpreter
from posthoc_inn.datasets import ColorDigits
from posthoc_inn.errors import NotFittedError, ShapeError
from posthoc_inn.report import figures
from posthoc_inn.report.fitted import ReportWords, fitted_content, one_of_each, shown_samples, write_fitted_report


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(figures.to_data_uri, "__defaults__", (30,))


@pytest.fixture(scope="module")
def digits():
    return ColorDigits(train=False, seed=0)


@pytest.fixture(scope="module")
def fitted(digits):
    return Interpreter(network(), "3", spec=SPEC, preset=TINY, precision="32").fit(digits, concepts=["digit"])


@pytest.fixture(scope="module")
def loaded(fitted, tmp_path_factory):
    path = fitted.save(tmp_path_factory.mktemp("bundles") / "bundle")
    return Interpreter.load(path, model=fitted.model)


def content(interpreter, examples, **words):
    return fitted_content(interpreter, examples.images, examples.v, words=ReportWords(**words))


def test_a_fitted_interpreter_gives_a_whole_report(fitted, tmp_path):
    examples = fitted.examples_
    write_fitted_report(fitted, examples.images, examples.v, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    for part in (
        "What 3 of Sequential ignores",
        "What the layer determines of each concept",
        "The papers&#39; measure: variance of each concept&#39;s factor",
        "Each concept taken from another image",
        "How training went",
        "Is t calibrated",
        "preset tiny, 2 blocks of width 8, 8 steps of 32",
        "8 steps of 32 pairs; dimensions: residual",
    ):
        assert part in text, part


def test_a_loaded_interpreter_gives_one_too(fitted, loaded, tmp_path):
    write_fitted_report(loaded, fitted.examples_.images[:5], None, str(tmp_path / "a.html"))
    text = (tmp_path / "a.html").read_text()
    for part in (
        "Measured for this report, on 5 images.",
        "Is t calibrated",
        "How training went",
        "8 steps of 32 pairs",
    ):
        assert part in text, part


def test_a_loaded_interpreter_shows_the_same_settings_and_samples(fitted, loaded):
    before, after = (content(x, fitted.examples_) for x in (fitted, loaded))
    assert before.settings == after.settings
    assert torch.allclose(before.samples.pictures, after.samples.pictures, atol=1e-6)
    assert before.samples.predictions == after.samples.predictions


def test_v_of_the_images_is_used_where_none_is_given(fitted):
    found = fitted_content(fitted, fitted.examples_.images[:6], None).v
    assert found.shape == (6, 8)
    assert torch.equal(found, fitted_content(fitted, fitted.examples_.images[:6], None).v)


def test_nothing_measured_still_gives_a_report(digits, tmp_path):
    plain = Interpreter(network(), "3", spec=SPEC, preset=TINY, precision="32").fit(digits, evaluate=False)
    images = torch.stack([digits[k][0] for k in range(3)])
    write_fitted_report(plain, images, None, tmp_path / "a.html")
    assert "preset tiny" in (tmp_path / "a.html").read_text()


def test_what_the_caller_knows_replaces_what_the_report_would_say(fitted):
    found = content(
        fitted,
        fitted.examples_,
        title="Title",
        done="Done.",
        data="digits",
        model="my net",
        warnings=["Mind this."],
        settings={"machine": "mine", "again": "command"},
        files={"bundle": "bundle/"},
    )
    assert (found.title, found.done, found.warnings[0]) == ("Title", ["Done."], "Mind this.")
    assert (found.settings["model"], found.settings["data"]) == ("my net", "digits")
    assert list(found.settings)[-2:] == ["machine", "again"]
    assert found.settings["machine"] == "mine"
    assert found.files == {"bundle": "bundle/"}


def test_classes_are_named_where_they_are_known(fitted):
    names = [f"class {k}" for k in range(10)]
    images = fitted.examples_.images
    assert shown_samples(fitted, images, names).predictions[0].startswith("class ")
    assert shown_samples(fitted, images).predictions[0].isdigit()


def test_pictures_of_each_predicted_class_come_first():
    assert one_of_each(torch.tensor([3, 3, 1, 3, 2]), 4) == [2, 4, 0, 1]
    assert one_of_each(torch.tensor([3, 3, 1, 3, 2]), 2) == [2, 4]
    assert one_of_each(None, 3) == [0, 1, 2]


def test_one_image_is_enough(fitted, tmp_path):
    write_fitted_report(fitted, fitted.examples_.images[:1], None, tmp_path / "a.html")
    assert "Each concept taken" not in (tmp_path / "a.html").read_text()


def test_what_cannot_be_reported_is_refused(fitted, tmp_path):
    with pytest.raises(NotFittedError, match="is not fitted"):
        write_fitted_report(Interpreter(network(), "3"), torch.rand(2, 3, 28, 28), None, tmp_path / "a.html")
    with pytest.raises(ShapeError, match=r"must be a tensor \(B, C, H, W\)"):
        write_fitted_report(fitted, torch.rand(3, 28, 28), None, tmp_path / "a.html")


def test_what_is_measured_is_plain_data_and_names_the_model(fitted, loaded):
    assert json.loads(json.dumps(fitted.metrics_, allow_nan=False)) == fitted.metrics_ == loaded.metrics_
    assert fitted.metrics_["model"]["name"] == "Sequential"


def test_the_accuracy_is_measured_where_there_are_classes(digits):
    images, labels = torch.stack([digits[k][0] for k in range(120)]), digits.digits[:120].long()
    found = Interpreter(network(), "3", spec=SPEC, preset=TINY, precision="32").fit((images, labels))
    model = found.metrics_["model"]
    assert model["images"] == found.metrics_["images"]["held_out"]
    assert 0 <= model["accuracy"] <= 1
