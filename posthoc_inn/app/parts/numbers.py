"""Numbers: the figures of the fit with their words, as the report has them."""

from __future__ import annotations

from posthoc_inn.app.fitted import FittedLayer
from posthoc_inn.report.findings import findings
from posthoc_inn.report.findings.judging import Finding


def numbers(layer: FittedLayer) -> list[Finding]:
    """Return what was measured of a fitted layer; nothing where the fit was not measured."""
    return findings(getattr(layer.interpreter, "metrics_", {}))
