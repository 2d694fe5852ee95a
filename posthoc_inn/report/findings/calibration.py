"""Whether t is calibrated on held-out images, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posthoc_inn.report.findings.judging import Finding, Status, judge, percent

WHERE = "Calibration of t"
TAIL = 0.10
"""Share of held-out ‖v‖² beyond the 95 % point up to which a t that fails is still usable."""
DEPENDENCE = 0.02
"""Squared distance correlation of v and z up to which it is."""
OFF = (0.01, 0.05)
"""How far a coverage of 90 % is missed by a good t, and by a usable one."""

WORDS = {
    "norm": "the lengths of v",
    "tail": "how many v lie far out",
    "mean": "the mean of v",
    "covariance": "the covariance of v",
    "independence": "v still tells of z",
    "size and z": "the length of v depends on z",
    "coverage": "coverage",
    "coverage by dimension": "coverage of single dimensions",
}
"""Name of a check -> what it looks at."""


def calibration(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return how v of held-out images compares with N(0, 1), and how often t's intervals hold."""
    figures = metrics.get("calibration") or {}
    if not figures.get("checks"):
        return []
    return [_of_v(figures), _coverage(figures)]


def _of_v(figures: Mapping[str, Any]) -> Finding:
    checks = figures["checks"]
    failed = [WORDS.get(c["name"], c["name"]) for c in checks if not c["passes"]]
    low, high = figures["eigenvalues"]
    least, most = figures["eigenvalues_of_exact"]
    is_small = figures["tail"] <= TAIL and (figures["dependence"] or 0.0) <= DEPENDENCE
    status: Status = (
        "good" if not failed else "fair" if is_small and low > 0.7 * least and high < 1.4 * most else "poor"
    )
    meaning = (
        f"Samples are drawn with v from N(0, 1), so v of held-out images has to look like that, whatever z is. Of "
        f"{figures['images']:,} images {percent(figures['tail'])} lie farther out than 5 % should; variances of v go "
        f"from {low:.2f} to {high:.2f} by direction (an exact t: {least:.2f} to {most:.2f}); distance correlation of v "
        f"and z, squared: {figures['dependence']:.3f} (an exact t: 0)."
    )
    meaning += f" Off: {', '.join(failed)}." if failed else " No check tells this t from an exact one."
    advice = "Samples are not typical of new images. More images, or more draws of each, help most."
    if any(c["name"] == "independence" and not c["passes"] for c in checks):
        advice += " Where v still tells of z, t has not read all of z: train it longer."
    return Finding(
        WHERE, "Calibration of v", f"{len(checks) - len(failed)} of {len(checks)} checks", meaning, status, advice
    )


def _coverage(figures: Mapping[str, Any]) -> Finding:
    value, error = figures["coverage"], figures.get("coverage_error")
    each = figures["coverage_by_dimension"]
    off = max(0.0, abs(value - 0.9) - 2 * (error or 0.0))
    told = ""
    if off > OFF[0]:
        told = (
            " t is too sure: its samples vary too little." if value < 0.9 else " t is too careful: they vary too much."
        )
    return Finding(
        WHERE,
        "Coverage of t's intervals",
        percent(value, error),
        "How often a held-out image's latent lies between the least and the largest of 19 samples for its z, over all "
        f"dimensions; an exact t has 90 %. By dimension from {percent(min(each))} to {percent(max(each))}.{told}",
        judge(off, OFF, low_is_good=True),
        "What varies between samples is less, or more, than what the layer leaves open. More images help most.",
    )
