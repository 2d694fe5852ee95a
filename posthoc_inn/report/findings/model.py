"""The model that is explained, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posthoc_inn.report.findings.judging import Finding, percent


def model(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return what is to know of the model."""
    figures = metrics.get("model") or {}
    found = []
    if figures.get("accuracy") is not None:
        chance = figures.get("chance") or 0.0
        is_chance = figures["accuracy"] < 1.5 * chance
        found.append(
            Finding(
                "The model",
                "Accuracy on held-out images",
                percent(figures["accuracy"]),
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
