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
    assert f"± {figures['gap_error']:.2f} nats" in found.value
    assert f"{figures['gap_per_dim']:+.3f} nats a dimension" in found.meaning


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


SHARE = {
    "value": 0.708,
    "standard_error": 0.03,
    "interval": [0.65, 0.77],
    "is_learned": True,
    "note": "",
    "common": 2.8,
}
QUALITY = {
    "correlations": [0.93, 0.05],
    "deviations": [1.0, 1.1],
    "holding": 1,
    "nats": 1.4,
    "probe": {"measure": "accuracy", "own": 0.9, "others": 0.3, "chance": 0.1},
}
ESTIMATE = {"value": 0.45, "standard_error": 0.01, "interval": [0.43, 0.47]}


def with_concepts(share=None, quality=None, fit=None, name="digit"):
    one = {"name": name, **SHARE, **(share or {}), "quality": {**QUALITY, **(quality or {})}}
    by_variance = {"name": "digit", "total_effect": ESTIMATE | {"value": 0.5}, "first_order": ESTIMATE}
    shares = {"concepts": [one], "are_held_out": True}
    return copy.deepcopy(METRICS) | {
        "concepts": {"names": ["digit"], "relevance": {"concepts": [by_variance]}, "pair_shares": shares},
        "fit": fit or {},
    }


def test_shares_by_pairs_come_before_the_papers_measure():
    found = [f for f in findings(with_concepts()) if f.group == "Concepts"]
    assert [f.label for f in found] == [
        "digit, determined by the layer",
        "digit, held by e",
        "digit, variance of its factor",
    ]
    assert found[0].value == "70.8 ± 3.0 %"
    assert "Between 65.0 % and 77.0 %" in found[0].meaning
    assert found[1].status == "good"
    assert "finds the value in 90.0 % from the factor, and 30.0 % from all others" in found[1].meaning
    assert "eq. 20" in found[2].meaning
    old = with_concepts()
    del old["concepts"]["pair_shares"]
    assert "digit, explained by the layer" in by_label(old)


def test_a_concept_that_e_has_not_learned_gets_no_share():
    nothing = {"value": None, "standard_error": None, "interval": [None, None], "is_learned": False, "note": "why"}
    found = by_label(with_concepts(nothing, {"holding": 0, "probe": None, "nats": None}))
    assert found["digit, determined by the layer"].value == "not learned by e"
    assert found["digit, determined by the layer"].status == "poor"
    assert found["digit, held by e"].status == "poor"
    assert found["digit, held by e"].advice


def test_a_concept_that_other_factors_hold_is_fair_and_a_random_one_in_common_is_told():
    probe = QUALITY["probe"] | {"own": 0.3, "others": 0.9}
    assert by_label(with_concepts(None, {"probe": probe}))["digit, held by e"].status == "fair"
    assert by_label(with_concepts(name="(random)"))["Random concept"].status == "fair"
    assert "Random concept" not in by_label(with_concepts({"is_learned": False}, name="(random)"))


def test_regularised_total_effects_are_told():
    label = "digit, variance of its factor"
    assert "regularised" not in by_label(with_concepts())[label].meaning
    on = {"interaction_weight": 3.0, "flow_on_concepts": True}
    assert "lower than the layer's own" in by_label(with_concepts(fit=on))[label].meaning


def test_the_likelihood_of_e_is_told_beside_that_of_training():
    label = "e, negative log-likelihood of held-out pairs"
    assert label not in by_label(with_concepts())
    rows = [{"step": 100.0, "train": -16.3, "held_out": -13.3}, {"step": 200.0, "train": -22.7, "held_out": -12.0}]
    metrics = with_concepts() | {"training": {"e": {"rows": rows, "best_step": 100.0}}}
    found = by_label(metrics)[label]
    assert found.value == "-13.3 nats an image"
    assert "-16.3" in found.meaning
