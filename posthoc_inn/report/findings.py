"""The figures of `metrics.json` in plain words: what each means, and whether it is good. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["good", "fair", "poor", "info"]

ERROR = (0.01, 0.03)
"""Squared reconstruction error of images in [-1, 1] that is good, and that is still usable."""
RECONSTRUCTION_AGREEMENT = (0.95, 0.85)
SAMPLE_AGREEMENT = (0.90, 0.75)
ONE_FOR_ALL = "one for all images"
"""Value of an agreement that says nothing."""
NEARLY_ALL = 0.95
"""Agreement of different images above which that of samples says little."""
SIMILARITY_GAIN = (0.75, 0.50)
"""Share of the way from different images' similarity to perfect similarity."""
GAP = (1.0, 5.0)
"""Nats between training and held-out images."""
ROUND_TRIP = (1e-3, 1e-2)


@dataclass(frozen=True)
class Finding:
    """One measured figure, for a reader.

    Attributes:
        group: Heading it stands under.
        label: What was measured.
        value: The figure, with its unit and error.
        meaning: What it says, in a sentence or two.
        status: Whether it is good, fair or poor; "info" where there is no good or bad.
        advice: What it means that it is poor, and what to do.

    >>> Finding("Samples", "Same prediction", "93 %", "The model ...", "good").status
    'good'
    """

    group: str
    label: str
    value: str
    meaning: str
    status: Status
    advice: str = ""


def findings(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return what a fit's metrics say, the most telling first.

    Args:
        metrics: What `metrics.json` holds; parts that are missing, and figures that are None, are left out.
    """
    found: list[Finding] = []
    for part in (_model, _samples, _concepts, _invariances, _likelihood, _autoencoder):
        found += part(metrics)
    return found


def percent(value: float, error: float | None = None) -> str:
    """Return a share in percent, with its standard error where there is one.

    >>> percent(0.9312, 0.0041), percent(1.0)
    ('93.1 ± 0.4 %', '100.0 %')
    """
    spread = "" if error is None else f" ± {100 * error:.1f}"
    return f"{100 * value:.1f}{spread} %"


def _concepts(metrics: Mapping[str, Any]) -> list[Finding]:
    concepts = metrics.get("concepts") or {}
    relevance = (concepts.get("relevance") or {}).get("concepts") or []
    null = next((c for c in relevance if c["name"] == "(random)"), None)
    found = []
    for concept in relevance:
        if concept["name"] in ("residual", "(random)") or concept["first_order"]["value"] is None:
            continue
        first, total = concept["first_order"], concept["total_effect"]
        beside = "" if null is None else f" A random concept has {percent(max(0.0, null['first_order']['value']))}."
        found.append(
            Finding(
                "Concepts",
                f"{concept['name']}, explained by the layer",
                percent(max(0.0, first["value"]), first["standard_error"]),
                "Share of the concept's variance that the layer fixes for every v (first order). The papers' total "
                "effect (MSC eq. 20), which depends on how t uses v, is "
                f"{percent(max(0.0, total['value']))}.{beside}",
                "info",
            )
        )
    return found


def _judge(value: float, limits: tuple[float, float], *, low_is_good: bool = False) -> Status:
    good, fair = limits
    if low_is_good:
        return "good" if value <= good else "fair" if value <= fair else "poor"
    return "good" if value >= good else "fair" if value >= fair else "poor"


def _model(metrics: Mapping[str, Any]) -> list[Finding]:
    model = metrics.get("model") or {}
    found = []
    if model.get("accuracy") is not None:
        chance = model.get("chance") or 0.0
        is_chance = model["accuracy"] < 1.5 * chance
        found.append(
            Finding(
                "The model",
                "Accuracy on held-out images",
                percent(model["accuracy"]),
                "No better than guessing. Are the weights, --mean/--std and the classes right?"
                if is_chance
                else "How often the model is right about the labels. Everything below explains this model, its "
                "mistakes included.",
                "poor" if is_chance else "info",
                "All that follows explains a model that guesses.",
            )
        )
    if metrics.get("is_cut") is False:
        found.append(
            Finding(
                "The model",
                "Layer",
                "no cut",
                "Part of the image reaches the output without passing this layer. The model knows more than this layer "
                "does, and may still see what varies between samples.",
                "fair",
            )
        )
    return found


def says_one_thing(metrics: Mapping[str, Any]) -> bool:
    """Whether the model predicts the same for all held-out images, so that agreement tells nothing."""
    between = (metrics.get("faithfulness") or {}).get("agreement_between")
    return between is not None and between >= 1


def _gain(value: float, between: float | None) -> Status:
    """Judge a similarity by how far it is from that of different images, on the way to 1."""
    between = between or 0.0
    return _judge((value - between) / max(1e-6, 1 - between), SIMILARITY_GAIN) if between < 0.999 else "info"


def _agreement(
    metrics: Mapping[str, Any], figures: Mapping[str, Any], limits: tuple[float, float]
) -> tuple[str, Status]:
    """Return what there is to know beside an agreement of classes or sets of labels, and whether it is good."""
    beside = metrics.get("faithfulness") or {}
    between, overlap = beside.get("agreement_between"), figures.get("label_overlap")
    text = "" if between is None else f" Two different images have the same in {percent(between)}."
    if overlap is not None:
        apart = beside.get("label_overlap_between")
        text += f" The sets overlap by {percent(overlap)} (Jaccard index)"
        text += "." if apart is None else f", those of different images by {percent(apart)}."
    if between is not None and between >= NEARLY_ALL:
        return f"{text} Where nearly all images get one prediction, agreement says little.", "info"
    if overlap is not None:
        return text, _gain(overlap, beside.get("label_overlap_between"))
    by_itself, beside_others = _judge(figures["agreement"], limits), _gain(figures["agreement"], between)
    return text, max(by_itself, beside_others, key=("good", "fair", "poor").index)


def _samples(metrics: Mapping[str, Any]) -> list[Finding]:
    figures = metrics.get("faithfulness") or {}
    return [*_same_prediction(metrics, figures), *_same_features(figures)]


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
        status = _gain(value, between)
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
    beside, status = _agreement(metrics, figures, SAMPLE_AGREEMENT)
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
                _judge(gain, SIMILARITY_GAIN) if between < 0.999 else "info",
                "Samples lose what the layer holds. Check the autoencoder first, then train t longer (--steps).",
            )
        )
    return found


def _invariances(metrics: Mapping[str, Any]) -> list[Finding]:
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


def _likelihood(metrics: Mapping[str, Any]) -> list[Finding]:
    figures = metrics.get("likelihood") or {}
    if figures.get("held_out") is None:
        return []
    verdict = figures.get("verdict", "")
    status: Status = {"converged": "good", "still improving": "fair", "overfitting": "fair"}.get(verdict, "poor")  # type: ignore[assignment]
    held_out, gap = figures["held_out"], figures["held_out"] - figures["train"]
    # A generator's latents are known without noise.
    floor = figures.get("noise_floor")
    noise = "" if floor is None else f"; the encoder's own noise allows no less than {floor:.1f}"
    found = [
        Finding(
            "Likelihood of t",
            "Negative log-likelihood, held out",
            f"{held_out:.1f} nats",
            f"Lower is better. N(0, 1), which ignores z, costs {figures['standard_normal']:.1f}{noise}.",
            "good" if held_out < figures["standard_normal"] else "poor",
            "t has learned nothing: it does worse than N(0, 1).",
        ),
        Finding("Likelihood of t", "Training", verdict, figures.get("advice", ""), status, figures.get("advice", "")),
        Finding(
            "Likelihood of t",
            "Held-out minus training",
            f"{gap:+.2f} nats",
            "Near zero: t works as well on new images."
            if gap <= GAP[0]
            else "t fits its training images better than new ones.",
            _judge(gap, GAP, low_is_good=True),
            "More images help most, or more draws of each.",
        ),
        *_beside_linear(figures),
    ]
    if figures.get("v_std") is not None:
        off = max(abs(figures["v_std"] - 1), abs(figures.get("v_mean") or 0.0))
        found.append(
            Finding(
                "Likelihood of t",
                "v: mean, deviation",
                f"{figures['v_mean']:+.3f}, {figures['v_std']:.3f}",
                "Samples are drawn with mean 0 and deviation 1. The closer v of held-out images comes to that, the "
                "more typical the samples are.",
                _judge(off, (0.1, 0.3), low_is_good=True),
                "Samples are not typical of held-out images.",
            )
        )
    if figures.get("round_trip") is not None:
        found.append(
            Finding(
                "Likelihood of t",
                "Round trip",
                f"{figures['round_trip']:.1e}",
                "Largest error after t and its inverse; v is exact up to this.",
                _judge(figures["round_trip"], ROUND_TRIP, low_is_good=True),
                "Use --precision 32.",
            )
        )
    return found


def _beside_linear(figures: Mapping[str, Any]) -> list[Finding]:
    """Return how the trained t does against the linear one, where that was measured."""
    gain, error, linear = (figures.get(name) for name in ("linear_gain", "linear_gain_error", "linear"))
    if gain is None or linear is None:
        return []
    where, label = "Likelihood of t", "Likelier than a linear t"
    if figures.get("is_linear") and figures.get("trained") == linear:
        meaning = "t is the linear one: ridge regression with a full residual covariance, fitted in closed form."
        return [Finding(where, label, "is linear", meaning, "info")]
    value = f"{gain:+.2f}" + (f" ± {error:.2f}" if error is not None else "") + " nats"
    meaning = f"A linear t, ridge regression in closed form, would reach {linear:.1f} nats on the same images."
    if gain > (error or 0.0):
        return [Finding(where, label, value, meaning, "good")]
    if figures.get("is_linear"):
        meaning = f"The linear t, ridge regression in closed form, reaches {linear:.1f} nats: it is what is used."
    advice = "t has learned no more than a line would say: more images, more steps, or the preset few may help."
    return [Finding(where, label, value, meaning, "fair" if gain >= -(error or 0.0) else "poor", advice)]


def _autoencoder(metrics: Mapping[str, Any]) -> list[Finding]:
    figures = metrics.get("autoencoder") or {}
    found = []
    limit = " This limits everything above: what the autoencoder loses cannot come back."
    loses = "The autoencoder loses what the model looks at, and this spoils all samples. Train it longer "
    loses += "(--autoencoder-steps)."
    if figures.get("output_similarity") is not None:
        value, between = figures["output_similarity"], (metrics.get("faithfulness") or {})
        found.append(
            Finding(
                "Autoencoder",
                "Same output for reconstructions",
                f"{value:.3f}",
                "Cosine similarity between the model's output for an image and for its reconstruction." + limit,
                _gain(value, between.get("output_similarity_between")),
                loses,
            )
        )
    if figures.get("agreement") is not None and not says_one_thing(metrics):
        beside, status = _agreement(metrics, figures, RECONSTRUCTION_AGREEMENT)
        labels = figures.get("label_overlap") is not None
        what = "predicts the same for an image and for its reconstruction"
        what = "gives an image and its reconstruction exactly the same labels" if labels else what
        found.append(
            Finding(
                "Autoencoder",
                f"Same {'labels' if labels else 'prediction'} for reconstructions",
                percent(figures["agreement"], figures.get("agreement_error")),
                f"How often the model {what}.{limit}{beside}",
                status,
                loses,
            )
        )
    if figures.get("error") is not None:
        found.append(
            Finding(
                "Autoencoder",
                "Reconstruction error",
                f"{figures['error']:.4f}",
                "Mean squared error on held-out images in [-1, 1].",
                _judge(figures["error"], ERROR, low_is_good=True),
                "Reconstructions are blurred. Train the autoencoder longer (--autoencoder-steps).",
            )
        )
    if figures.get("kl") is not None:
        found.append(
            Finding(
                "Autoencoder",
                "Information in the latent",
                f"{figures['kl']:.0f} nats",
                "KL from the encoder to N(0, 1), for each image.",
                "info",
            )
        )
    return found
