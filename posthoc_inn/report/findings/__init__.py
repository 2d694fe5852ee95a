"""The figures of `metrics.json` in plain words: what each means, and whether it is good. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posthoc_inn.report.findings.autoencoder import autoencoder
from posthoc_inn.report.findings.calibration import calibration
from posthoc_inn.report.findings.concepts import concepts
from posthoc_inn.report.findings.duplicates import duplicates
from posthoc_inn.report.findings.judging import Finding
from posthoc_inn.report.findings.likelihood import likelihood
from posthoc_inn.report.findings.model import model
from posthoc_inn.report.findings.refits import refits
from posthoc_inn.report.findings.samples import invariances, samples

PARTS = (model, samples, concepts, invariances, likelihood, calibration, refits, duplicates, autoencoder)
"""What makes findings of metrics, the most telling first."""


def findings(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return what a fit's metrics say, the most telling first.

    Args:
        metrics: What `metrics.json` holds; parts that are missing, and figures that are None, are left out.
    """
    found: list[Finding] = []
    for part in PARTS:
        found += part(metrics)
    return found
