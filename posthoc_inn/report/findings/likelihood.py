"""The likelihood of t and its training, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posthoc_inn.report.findings.judging import Finding, Status, judge
from posthoc_inn.report.findings.ladder import ladder

GAP = (1.0, 5.0)
"""Nats between training and held-out images, where those a dimension are not known."""
GAP_PER_DIM = (0.02, 0.1)
"""The same a dimension."""
CLEAR = 3.0
"""Standard errors that a gap has to exceed."""
ROUND_TRIP = (1e-3, 1e-2)


def likelihood(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return how likely t makes held-out latents, and how its training went."""
    figures = metrics.get("likelihood") or {}
    if figures.get("held_out") is None:
        return []
    verdict = figures.get("verdict", "")
    status: Status = {"converged": "good", "still improving": "fair", "overfitting": "fair"}.get(verdict, "poor")  # type: ignore[assignment]
    gap = figures["held_out"] - figures["train"]
    found = [
        *ladder(figures),
        _training(verdict, figures, status),
        _gap(gap, figures),
        *_beside_linear(figures),
        *_parted(metrics),
    ]
    if figures.get("v_std") is not None and not (metrics.get("calibration") or {}).get("checks"):
        off = max(abs(figures["v_std"] - 1), abs(figures.get("v_mean") or 0.0))
        status = judge(off, (0.1, 0.3), low_is_good=True)
        found.append(
            Finding(
                "Likelihood of t",
                "v: mean, deviation",
                f"{figures['v_mean']:+.3f}, {figures['v_std']:.3f}",
                "Samples are drawn with mean 0 and deviation 1, and v of held-out images should have them too. All "
                "dimensions are taken together here, so that right figures prove little.",
                "info" if status == "good" else status,
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
                judge(figures["round_trip"], ROUND_TRIP, low_is_good=True),
                "Use --precision 32.",
            )
        )
    return found


def _training(verdict: str, figures: Mapping[str, Any], status: Status) -> Finding:
    """Return how the training went, and what twice the steps would gain."""
    advice, expected = figures.get("advice", ""), figures.get("doubling_gain")
    told = ""
    if expected is not None and verdict in ("converged", "still improving"):
        told = f" By its curve, twice the steps would gain about {expected:.1f} nats."
    return Finding("Likelihood of t", "Training", verdict, advice + told, status, advice)


def _gap(gap: float, figures: Mapping[str, Any]) -> Finding:
    """Return what t has learned by heart."""
    error, each = figures.get("gap_error"), figures.get("gap_per_dim")
    status = judge(gap, GAP, low_is_good=True) if each is None else judge(each, GAP_PER_DIM, low_is_good=True)
    meaning = "t fits its training images better than new ones."
    if status == "good":
        meaning = "Near zero: t works as well on new images."
    elif error is not None and gap <= CLEAR * error:
        status = "good"
        meaning = "Not clear of its error: nothing shows that t fits its training images better than new ones."
    value = f"{gap:+.2f}" + ("" if error is None else f" ± {error:.2f}") + " nats"
    meaning += "" if each is None else f" That is {each:+.3f} nats a dimension."
    return Finding(
        "Likelihood of t",
        "Held-out minus training",
        value,
        meaning,
        status,
        "More images help most, or more draws of each.",
    )


def _parted(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return whether the held-out images that are measured are others than those that chose the weights."""
    images = metrics.get("images") or {}
    if images.get("are_apart") is None:
        return []
    label = "Held-out images"
    if images["are_apart"]:
        value = f"{images['measured']:,} measured"
        meaning = f"{images['chose_weights']:,} others chose the best weights: figures are measured on images that had "
        meaning += "no part in that."
    else:
        value = f"{images['measured']:,}, not parted"
        meaning = "There are too few to be parted: the images that chose the best weights are measured too, and all "
        meaning += "figures are a little too good. From 200 held-out images on, others choose."
    return [Finding("Likelihood of t", label, value, meaning, "info")]


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
