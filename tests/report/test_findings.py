from __future__ import annotations

import copy

import pytest
from report_helpers import METRICS

from posthoc_inn.report import findings


def by_label(metrics):
    return {finding.label: finding for finding in findings(metrics)}


def test_good_figures_are_called_good():
    found = by_label(METRICS)
    assert found["Same prediction as the image"].status == "good"
    assert found["Same prediction as the image"].value == "92.0 ± 0.9 %"
    assert found["Explained by what the layer ignores"].status == "info"
    assert {f.status for f in found.values()} == {"good", "info"}


@pytest.mark.parametrize(
    ("part", "figure", "value", "label", "status"),
    [
        ("faithfulness", "agreement", 0.8, "Same prediction as the image", "fair"),
        ("faithfulness", "agreement", 0.5, "Same prediction as the image", "poor"),
        ("faithfulness", "similarity", 0.6, "Same features at the layer", "poor"),
        ("autoencoder", "error", 0.02, "Reconstruction error", "fair"),
        ("autoencoder", "agreement", 0.5, "Same prediction for reconstructions", "poor"),
        ("likelihood", "verdict", "diverged", "Training", "poor"),
        ("likelihood", "verdict", "still improving", "Training", "fair"),
        ("likelihood", "held_out", 95.0, "Negative log-likelihood, held out", "poor"),
        ("likelihood", "train", 1.0, "Held-out minus training", "poor"),
        ("likelihood", "v_std", 1.5, "v: mean, deviation", "poor"),
        ("likelihood", "round_trip", 0.1, "Round trip", "poor"),
        ("model", "accuracy", 0.12, "Accuracy on held-out images", "poor"),
    ],
)
def test_bad_figures_are_called_bad_and_come_with_advice(part, figure, value, label, status):
    metrics = copy.deepcopy(METRICS)
    metrics[part][figure] = value
    found = by_label(metrics)[label]
    assert found.status == status
    assert found.advice


@pytest.mark.parametrize(
    ("agreement", "between", "status"),
    [(0.92, None, "good"), (0.92, 0.1, "good"), (0.92, 0.8, "fair"), (0.92, 0.9, "poor"), (0.99, 0.97, "info")],
)
def test_agreement_is_judged_beside_that_of_different_images(agreement, between, status):
    metrics = copy.deepcopy(METRICS)
    metrics["faithfulness"] |= {"agreement": agreement, "agreement_between": between}
    assert by_label(metrics)["Same prediction as the image"].status == status


@pytest.mark.parametrize(
    ("figures", "status", "told"),
    [
        ({"agreement": 0.95, "agreement_chance": 0.1, "kappa": 0.94}, "good", "Cohen's kappa"),
        ({"agreement": 0.95, "agreement_chance": 0.9, "kappa": 0.5}, "fair", "agree in 90.0 %"),
        ({"agreement": 0.95, "agreement_chance": 0.94, "kappa": 0.17}, "poor", "is 0.17"),
        ({"agreement": 1.0, "agreement_chance": 1.0, "kappa": None}, "info", "agreement says little"),
        ({"agreement": 1.0, "agreement_interval": [0.5, 1.0]}, "fair", "Too few images"),
        ({"agreement": 0.5, "agreement_interval": [0.4, 0.6]}, "poor", "between 40.0 % and 60.0 %"),
        ({"agreement": 0.95, "agreement_interval": [0.9, 0.97]}, "good", "between 90.0 % and 97.0 %"),
        ({"agreement": 0.95, "agreement_interval": [None, None]}, "good", ""),
    ],
)
def test_agreement_is_judged_by_kappa_and_its_interval(figures, status, told):
    metrics = copy.deepcopy(METRICS)
    metrics["faithfulness"] |= figures
    found = by_label(metrics)["Same prediction as the image"]
    assert found.status == status
    assert told in found.meaning


@pytest.mark.parametrize(
    ("figures", "status"),
    [
        ({"train": 10.0, "gap_error": 0.5, "gap_per_dim": 0.15}, "poor"),
        ({"train": 16.0, "gap_error": 0.5, "gap_per_dim": 0.06}, "fair"),
        ({"train": 16.0, "gap_error": 2.0, "gap_per_dim": 0.06}, "good"),
        ({"train": 10.0, "gap_error": 0.5, "gap_per_dim": 0.01}, "good"),
    ],
)
def test_a_gap_is_judged_a_dimension_and_beside_its_error(figures, status):
    metrics = copy.deepcopy(METRICS)
    metrics["likelihood"] |= figures
    found = by_label(metrics)["Held-out minus training"]
    assert found.status == status
    assert f"± {figures['gap_error']:.2f} nats ({figures['gap_per_dim']:+.3f} a dimension)" in found.value


def test_what_twice_the_steps_would_gain_is_told():
    metrics = copy.deepcopy(METRICS)
    metrics["likelihood"] |= {"verdict": "still improving", "doubling_gain": 3.14}
    assert "twice the steps would gain about 3.1 nats" in by_label(metrics)["Training"].meaning


def test_agreement_says_nothing_where_all_images_get_one_prediction():
    metrics = copy.deepcopy(METRICS)
    metrics["faithfulness"] |= {"agreement": 1.0, "agreement_between": 1.0}
    found = by_label(metrics)
    told = found["Same prediction as the image"]
    assert (told.value, told.status) == ("one for all images", "info")
    assert "Same prediction for reconstructions" not in found


def test_embeddings_are_judged_by_their_cosine_beside_that_of_different_images():
    metrics = copy.deepcopy(METRICS)
    metrics["prediction_kind"] = "embedding"
    metrics["faithfulness"] |= {"agreement": None, "output_similarity": 0.97, "output_similarity_between": 0.96}
    metrics["autoencoder"] |= {"agreement": None, "output_similarity": 0.99}
    found = by_label(metrics)
    assert (found["Same output as the image"].value, found["Same output as the image"].status) == ("0.970", "poor")
    assert found["Same output for reconstructions"].status == "good"


def test_a_layer_that_is_no_cut_is_told():
    assert by_label({**METRICS, "is_cut": False})["Layer"].status == "fair"


def test_a_model_that_is_no_classifier_has_no_agreement():
    metrics = copy.deepcopy(METRICS)
    metrics["model"] = {"name": "net"}
    metrics["faithfulness"] |= {"agreement": None, "agreement_error": None}
    metrics["autoencoder"] |= {"agreement": None, "agreement_error": None}
    found = by_label(metrics)
    assert "Same prediction as the image" not in found
    assert "Same features at the layer" in found


def test_nothing_measured_gives_no_findings():
    assert findings({}) == []
