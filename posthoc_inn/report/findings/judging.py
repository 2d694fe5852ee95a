"""What a finding is, and how figures are judged good, fair or poor. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["good", "fair", "poor", "info"]

NEARLY_ALL = 0.95
"""Agreement of different images above which that of samples says little."""
SIMILARITY_GAIN = (0.75, 0.50)
"""Share of the way from different images' similarity, or from agreement by chance (kappa), to a perfect one."""
ONE_FOR_ALL = "one for all images"
"""Value of an agreement that says nothing."""


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


def percent(value: float, error: float | None = None) -> str:
    """Return a share in percent, with its standard error where there is one.

    >>> percent(0.9312, 0.0041), percent(1.0)
    ('93.1 ± 0.4 %', '100.0 %')
    """
    spread = "" if error is None else f" ± {100 * error:.1f}"
    return f"{100 * value:.1f}{spread} %"


def judge(value: float, limits: tuple[float, float], *, low_is_good: bool = False) -> Status:
    """Return how good a figure is, by the limits of good and fair."""
    good, fair = limits
    if low_is_good:
        return "good" if value <= good else "fair" if value <= fair else "poor"
    return "good" if value >= good else "fair" if value >= fair else "poor"


def says_one_thing(metrics: Mapping[str, Any]) -> bool:
    """Whether the model predicts the same for all held-out images, so that agreement tells nothing."""
    between = (metrics.get("faithfulness") or {}).get("agreement_between")
    return between is not None and between >= 1


def gain(value: float, between: float | None) -> Status:
    """Judge a similarity by how far it is from that of different images, on the way to 1."""
    between = between or 0.0
    return judge((value - between) / max(1e-6, 1 - between), SIMILARITY_GAIN) if between < 0.999 else "info"


def agreement(
    metrics: Mapping[str, Any], figures: Mapping[str, Any], limits: tuple[float, float]
) -> tuple[str, Status]:
    """Return what there is to know beside an agreement of classes or sets of labels, and whether it is good."""
    beside = metrics.get("faithfulness") or {}
    between, overlap = beside.get("agreement_between"), figures.get("label_overlap")
    low, high = figures.get("agreement_interval") or (None, None)
    text = ""
    if low is not None and high is not None:
        text += f" With 95 % confidence it lies between {percent(low)} and {percent(high)}."
    text += "" if between is None else f" Two different images have the same in {percent(between)}."
    chance, kappa = figures.get("agreement_chance"), figures.get("kappa")
    if chance is not None and kappa is not None:
        text += f" By chance alone, the predictions would agree in {percent(chance)}: Cohen's kappa, "
        text += f"which is 0 for chance and 1 for full agreement, is {kappa:.2f}."
    if overlap is not None:
        apart = beside.get("label_overlap_between")
        text += f" The sets overlap by {percent(overlap)} (Jaccard index)"
        text += "." if apart is None else f", those of different images by {percent(apart)}."
    if (between is not None and between >= NEARLY_ALL) or (chance is not None and kappa is None):
        return f"{text} Where nearly all images get one prediction, agreement says little.", "info"
    if overlap is not None:
        return text, gain(overlap, beside.get("label_overlap_between"))
    beyond = gain(figures["agreement"], between) if kappa is None else judge(kappa, SIMILARITY_GAIN)
    found = [judge(figures["agreement"], limits), beyond]
    if set(found) == {"good"} and low is not None and low < limits[1]:
        # So few images that it may as well be worse than fair: not called good.
        found.append("fair")
        text += " Too few images were measured to call it good."
    return text, max(found, key=("good", "fair", "poor").index)
