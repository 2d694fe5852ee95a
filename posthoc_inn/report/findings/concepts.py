"""What the layer holds of each concept, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posthoc_inn.report.findings.judging import Finding, percent


def concepts(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return what the layer holds of each concept."""
    relevance = ((metrics.get("concepts") or {}).get("relevance") or {}).get("concepts") or []
    null = next((c for c in relevance if c["name"] == "(random)"), None)
    regularised = ""
    if is_regularised(metrics):
        regularised = (
            " This fit regularised total effects (interaction_weight): this one is lower than the layer's own, by an "
            "unknown amount."
        )
    found = []
    for concept in relevance:
        if concept["name"] in ("residual", "(random)") or concept["first_order"]["value"] is None:
            continue
        first, total = concept["first_order"], concept["total_effect"]
        beside = "" if null is None else f" A random concept has {percent(max(0.0, null['first_order']['value']))}."
        beside += _ceiling(metrics, concept["name"])
        found.append(
            Finding(
                "Concepts",
                f"{concept['name']}, explained by the layer",
                percent(max(0.0, first["value"]), first["standard_error"]),
                "Share of the concept's variance that the layer fixes for every v (first order). The papers' total "
                "effect (MSC eq. 20), which depends on how t uses v, is "
                f"{percent(max(0.0, total['value']))}.{regularised}{beside}",
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
