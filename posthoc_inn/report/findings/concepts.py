"""What the layer holds of each concept, and what e does, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posthoc_inn.report.findings.judging import Finding, Status, percent

RANDOM = "(random)"
GROUP = "Concepts"


def concepts(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return what the layer holds of each concept, by pairs first, then the papers' measure; and what e does."""
    known = metrics.get("concepts") or {}
    relevance = (known.get("relevance") or {}).get("concepts") or []
    pairs = known.get("pair_shares") or {}
    by_pairs = {c["name"]: c for c in pairs.get("concepts") or []}
    found = []
    for name, share in by_pairs.items():
        if name != RANDOM:
            found.append(_by_pairs(share, are_held_out=bool(pairs.get("are_held_out", True))))
            found.append(_in_e(share))
        elif share["is_learned"]:
            found.append(_leaks(share))
    if by_pairs and pairs.get("are_held_out", True):
        found += _likelihood_of_e(metrics)
    return found + _by_variance(metrics, relevance, is_first=not by_pairs)


def _by_pairs(share: Mapping[str, Any], *, are_held_out: bool) -> Finding:
    label = f"{share['name']}, determined by the layer"
    if not share["is_learned"]:
        return Finding(
            GROUP,
            label,
            "not learned by e",
            f"Nothing can be said of the layer: {share['note'] or 'e has not learned the concept'}.",
            "poor",
            "Give more pairs, or images that hold the concept; a concept that no image shows cannot be learned.",
        )
    low, high = share["interval"]
    between = ""
    if low is not None and high is not None:
        between = f" Between {percent(max(0.0, low))} and {percent(min(1.0, high))} at 95 %, over images."
    slope = share.get("slope")
    status: Status = "info"
    scaled = advice = ""
    if slope is not None and not 0.8 <= slope <= 1.25:
        status = "fair"
        scaled = f" Samples were scaled by {slope:.2f}, which they agree best with the images by."
        advice = "t, or e on its samples, is not right yet: train t longer, or e on more images, and trust this less."
    flattered = "" if are_held_out else " Measured on pairs of training images, for want of others: they flatter e."
    return Finding(
        GROUP,
        label,
        percent(min(1.0, max(0.0, share["value"])), share["standard_error"]),
        "Share of what images with the same value have in common, as far as e knows it, that the layer's features "
        f"determine.{between}{scaled} Not what the model uses.{flattered}",
        status,
        advice,
    )


def _in_e(share: Mapping[str, Any]) -> Finding:
    """Return whether e's factor holds its concept."""
    quality = share["quality"]
    correlations: Sequence[float] = [c for c in quality["correlations"] if c is not None]
    width = len(quality["deviations"])
    meaning = "Dimensions of e's factor in which images of a pair correlate by 0.2 or more."
    if correlations:
        meaning += f" The most is {max(correlations):.2f}."
    if quality["nats"] is not None:
        meaning += f" To know that a pair shares the concept is worth {quality['nats']:.2f} nats to e."
    probe, status = quality["probe"], "good" if share["is_learned"] else "poor"
    advice = "" if share["is_learned"] else "The factor holds nothing of its concept: do not read its edits and walks."
    if probe is not None:
        is_accuracy = probe["measure"] == "accuracy"
        told = "finds the value in" if is_accuracy else "explains, of the values' variance,"
        chance = f" (the most frequent value alone: {percent(probe['chance'])})" if is_accuracy else ""
        meaning += (
            f" A linear probe {told} {percent(max(0.0, probe['own']))} from the factor, and "
            f"{percent(max(0.0, probe['others']))} from all others{chance}."
        )
        if status == "good" and probe["others"] > probe["own"]:
            status = "fair"
            advice = "Other factors hold more of the concept than its own: an edit of the factor leaves much of it."
    value = f"{quality['holding']} of {width} dimensions"
    return Finding(GROUP, f"{share['name']}, held by e", value, meaning, _status(status), advice)


def _likelihood_of_e(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return e's likelihood of held-out pairs, beside that of training."""
    curve = (metrics.get("training") or {}).get("e") or {}
    best = next((row for row in curve.get("rows") or [] if row["step"] == curve.get("best_step")), None)
    if best is None or best.get("held_out") is None or best.get("train") is None:
        return []
    return [
        Finding(
            GROUP,
            "e, negative log-likelihood of held-out pairs",
            f"{best['held_out']:.1f} nats an image",
            f"Training pairs cost {best['train']:.1f} at that step, with dropout on. The further apart, the more e "
            "knows its training images by heart, and the less its factors mean for others.",
            "info",
        )
    ]


def _leaks(share: Mapping[str, Any]) -> Finding:
    return Finding(
        GROUP,
        "Random concept",
        f"{share['common']:.3f} in common",
        "Pairs that share nothing on purpose have something in common in its factor.",
        "fair",
        "That is chance in one run of forty. Else images are related, as copies are, and other shares are off too.",
    )


def _status(text: str) -> Status:
    return "good" if text == "good" else "fair" if text == "fair" else "poor"


def _by_variance(
    metrics: Mapping[str, Any], relevance: Sequence[Mapping[str, Any]], *, is_first: bool
) -> list[Finding]:
    """Return the papers' measure, which old runs have alone."""
    null = next((c for c in relevance if c["name"] == RANDOM), None)
    regularised = ""
    if is_regularised(metrics):
        regularised = (
            " This fit regularised total effects (interaction_weight): this one is lower than the layer's own, by an "
            "unknown amount."
        )
    junk = "" if is_first else " Dimensions of the factor that do not hold the concept count in both."
    found = []
    for concept in relevance:
        if concept["name"] in ("residual", RANDOM) or concept["first_order"]["value"] is None:
            continue
        first, total = concept["first_order"], concept["total_effect"]
        beside = "" if null is None else f" A random concept has {percent(max(0.0, null['first_order']['value']))}."
        beside += _ceiling(metrics, concept["name"])
        label = f"{concept['name']}, {'explained by the layer' if is_first else 'variance of its factor'}"
        found.append(
            Finding(
                GROUP,
                label,
                percent(max(0.0, first["value"]), first["standard_error"]),
                "Share of the variance of the concept's whole factor that the layer fixes for every v (first order). "
                "The papers' total effect (MSC eq. 20), which depends on how t uses v, is "
                f"{percent(max(0.0, total['value']))}.{regularised}{junk}{beside}",
                "info",
            )
        )
    return found


def is_regularised(metrics: Mapping[str, Any]) -> bool:
    """Whether t's loss held its interaction of z and v down, which biases total effects.

    >>> is_regularised({"fit": {"interaction_weight": 3.0, "flow_on_concepts": True}}), is_regularised({})
    (True, False)
    """
    fit = metrics.get("fit") or {}
    return bool(fit.get("interaction_weight")) and bool(fit.get("flow_on_concepts"))


def _ceiling(metrics: Mapping[str, Any], name: str) -> str:
    """Return what the encoder's noise leaves of a concept to any layer, where that was measured."""
    ceilings = (metrics.get("concepts") or {}).get("ceilings") or []
    own = next((c for c in ceilings if c["name"] == name), None)
    if own is None or own["of_reachable"]["value"] is None:
        return ""
    return (
        f" A layer that keeps all that the encoder's mean holds would have {percent(own['first_order']['value'])}; of "
        f"that this layer has {percent(max(0.0, own['of_reachable']['value']), own['of_reachable']['standard_error'])}."
    )
