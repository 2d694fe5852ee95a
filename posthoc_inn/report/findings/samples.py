"""Samples beside their images, and what the layer has thrown away, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posthoc_inn.report.findings.judging import (
    ONE_FOR_ALL,
    SIMILARITY_GAIN,
    Finding,
    agreement,
    gain,
    judge,
    percent,
    says_one_thing,
)

SAMPLE_AGREEMENT = (0.90, 0.75)


def samples(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return how near samples are to their images, for the model."""
    figures = metrics.get("faithfulness") or {}
    return [*_same_prediction(metrics, figures), *_same_features(figures), *_nearest(metrics, figures)]


def _nearest(metrics: Mapping[str, Any], figures: Mapping[str, Any]) -> list[Finding]:
    """Compare samples with what is there without any t: the training images with the nearest z."""
    found = metrics.get("retrieval") or {}
    if found.get("similarity") is None or figures.get("similarity") is None:
        return []
    same = "" if found.get("agreement") is None else f" The model predicts the same for {percent(found['agreement'])}."
    spread, own = found.get("spread"), found.get("sample_spread")
    varied = ""
    if spread is not None and own is not None:
        varied = f" They vary by {percent(spread)} of what all images vary by, samples by {percent(own)}."
    is_nearer = figures["similarity"] >= found["similarity"] - (found.get("similarity_error") or 0.0)
    verdict = (
        "Samples are at least as near."
        if is_nearer
        else f"Samples are less near: {figures['similarity']:.3f}. What they share with the image is less sure."
    )
    return [
        Finding(
            "Samples",
            "Nearest training images, for comparison",
            f"{found['similarity']:.3f}",
            f"Cosine similarity of z between an image and the {found['neighbours']} nearest training images, "
            f"among {found['rows']:,}: what is there without t.{same}{varied} {verdict}",
            "good" if is_nearer else "fair",
            "Train t longer (--steps), or with more images; look at the autoencoder's own agreement first. Gradient "
            "steps bring samples nearer (posthoc-inn sample --refine 40).",
        )
    ]


def _same_prediction(metrics: Mapping[str, Any], figures: Mapping[str, Any]) -> list[Finding]:
    """Return how the model's predictions for samples compare with those for their images, by their kind."""
    kind, bound = metrics.get("prediction_kind"), metrics.get("autoencoder") or {}
    advice = "Until this is higher, what varies between samples is not yet what the model ignores."
    if figures.get("output_similarity") is not None:
        between = figures.get("output_similarity_between")
        meaning = "Cosine similarity between the model's output for a sample and for its image. 1 is perfect."
        meaning += "" if between is None else f" Two different images have {between:.3f}."
        if bound.get("output_similarity") is not None:
            meaning += f" Plain reconstructions reach {bound['output_similarity']:.3f}."
        value = figures["output_similarity"]
        status = gain(value, between)
        return [Finding("Samples", "Same output as the image", f"{value:.3f}", meaning, status, advice)]
    if kind == "none":
        meaning = "What the model returns is no class, set of labels or embedding, or was not to be compared "
        meaning += "(prediction_kind). Samples are checked by their features at the layer alone."
        return [Finding("Samples", "Predictions", "not compared", meaning, "info")]
    if figures.get("agreement") is None:
        return []
    labels = figures.get("label_overlap") is not None
    label = "Same labels as the image" if labels else "Same prediction as the image"
    if says_one_thing(metrics):
        meaning = f"The model predicts {'the same labels' if labels else 'one class'} for all held-out images, so how "
        meaning += "often samples get the same prediction says nothing about the layer. The samples of these images do "
        meaning += f"in {percent(figures['agreement'])}. If the model should tell these images apart, look at its "
        meaning += "weights and at how images are normalised."
        return [Finding("Samples", label, ONE_FOR_ALL, meaning, "info")]
    beside, status = agreement(metrics, figures, SAMPLE_AGREEMENT)
    meaning = "How often the model predicts the same for a sample and for the image it was drawn from."
    if labels:
        meaning = "How often the model gives a sample exactly the labels of the image it was drawn from."
    if bound.get("agreement") is not None:
        reached = percent(bound["agreement"])
        meaning += f" Plain reconstructions reach {reached}; samples cannot be expected to do better."
    return [
        Finding(
            "Samples",
            label,
            percent(figures["agreement"], figures.get("agreement_error")),
            meaning + beside,
            status,
            advice,
        )
    ]


def _same_features(figures: Mapping[str, Any]) -> list[Finding]:
    found = []
    if figures.get("similarity") is not None:
        between = figures.get("similarity_between") or 0.0
        gain = (figures["similarity"] - between) / max(1e-6, 1 - between)
        found.append(
            Finding(
                "Samples",
                "Same features at the layer",
                f"{figures['similarity']:.3f}",
                "Cosine similarity between the z of a sample and the z of its image. 1 is perfect; two different "
                f"images have {between:.3f}.",
                judge(gain, SIMILARITY_GAIN) if between < 0.999 else "info",
                "Samples lose what the layer holds. Check the autoencoder first, then train t longer (--steps).",
            )
        )
    return found


def invariances(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return how much the layer has thrown away."""
    figures = metrics.get("explained_by_invariances") or {}
    if figures.get("value") is None:
        return []
    value = figures["value"]
    meaning = (
        "Of what varies between images, the share that the layer has thrown away (MSC eq. 19). "
        + (
            "Here it is nearly all: the layer keeps little."
            if value > 0.9
            else "Here it is most."
            if value > 0.5
            else "Here it is less than half: the layer still holds most of the image."
        )
        + " This is neither good nor bad: it is the answer."
    )
    return [
        Finding(
            "Invariances",
            "Explained by what the layer ignores",
            percent(value, figures.get("standard_error")),
            meaning,
            "info",
        )
    ]
