"""One self-contained HTML file about a fit: style and pictures inside, no script."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from posthoc_inn.analysis import Samples
from posthoc_inn.analysis.samples import CONCLUSION, LIMITS
from posthoc_inn.files import replace_file, writing
from posthoc_inn.report import figures
from posthoc_inn.report.findings import findings
from posthoc_inn.report.findings.judging import ONE_FOR_ALL, Finding, percent, says_one_thing
from posthoc_inn.report.pages import Picture, fill, picture_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPERS = "MSC: Making Sense of CNNs (ECCV 2020)."

KEY = {
    "Same prediction as the image": "of samples get the same prediction as their image",
    "Same labels as the image": "of samples get exactly the labels of their image",
    "Same output as the image": "cosine between the model's outputs for samples and image",
    "Same features at the layer": "cosine between the features of samples and image",
    "Explained by what the layer ignores": "of what varies between images, the layer ignores",
    "Training": "training of t",
}
"""Label of a finding at the top of the page -> what stands below its value."""

STAGES = {
    "classifier": "training your model",
    "features": "reading images, features z",
    "autoencoder": "training the autoencoder",
    "latents": "encoding images",
    "e": "training e",
    "pictures": "finding pictures in z",
    "t": "training t",
    "faithful": "training t by its samples",
    "measuring": "measuring",
    "writing": "bundle and pictures",
}
"""Stage -> what it does."""

COLORS = ("#2f6fb3", "#d9822b", "#4c9f70", "#8a63b3", "#b8566b", "#7a8290", "#c2a83e", "#3f9aa5")
"""One a stage, in the bar that shows where the seconds went."""

CURVES = {
    "classifier": ("Your model", "cross-entropy, nats"),
    "autoencoder": ("The autoencoder", "loss, nats a value"),
    "e": ("e", "nats an image"),
    "t": ("t", "nats an image"),
    "faithful": ("t, by its samples too", "nats an image, and what the misfit costs"),
}
"""Network that was trained -> its name, and the unit of its loss."""


@dataclass(frozen=True)
class ReportContent:
    """All that a report is made of.

    Attributes:
        title: Its heading.
        done: What was done, a paragraph each.
        metrics: What `metrics.json` holds.
        samples: Of held-out images.
        v: Invariances of held-out images, any shape; None to leave the histogram out.
        concepts: Sections about the concepts: heading, figure, caption.
        warnings: What a reader has to know before believing anything.
        settings: Name -> value, as given or chosen.
        files: Name -> path, relative to the report.
        version: Of this program.
    """

    title: str
    done: Sequence[str]
    metrics: Mapping[str, Any]
    samples: Samples
    v: Tensor | None = None
    concepts: Sequence[tuple[str, Figure, str]] = ()
    warnings: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    version: str = ""


def write_report(content: ReportContent, path: Path) -> None:
    """Write the report to `path`, replacing it at once.

    Raises:
        DataError: The file cannot be written.
    """
    text = render(content)
    with writing(path):
        replace_file(path, text)


def render(content: ReportContent) -> str:
    """Return the whole HTML document."""
    found, metrics = findings(content.metrics), content.metrics
    seconds = {name: value for name, value in (metrics.get("seconds") or {}).items() if value and value > 0}
    return fill(
        "fit.html",
        title=content.title,
        lead=content.done,
        boxes=_boxes(found),
        warnings=content.warnings,
        samples=picture_of(
            content.samples.figure(), "Grid of images, reconstructions and samples", content.samples.legend
        ),
        conclusion=CONCLUSION,
        limits=_limits(content),
        groups=[(group, list(members)) for group, members in itertools.groupby(found, lambda f: f.group)],
        concepts=[
            {"heading": heading, "picture": picture_of(figure, heading), "caption": caption}
            for heading, figure, caption in content.concepts
        ],
        ignored=_ignored(metrics),
        likelihood=_likelihood(content),
        curves=_curves(metrics),
        whole=_duration(sum(seconds.values())),
        stages=_stages(seconds),
        settings=[(str(name), _value(value)) for name, value in content.settings.items()],
        files=list(content.files.items()),
        papers=PAPERS,
        version=content.version,
    )


def _boxes(found: Sequence[Finding]) -> list[dict[str, str]]:
    """Return the figures at the top: the most telling ones."""
    return [
        {"status": f.status, "value": f.value, "text": text}
        for label, text in KEY.items()
        for f in found
        if f.label == label and f.value != ONE_FOR_ALL
    ]


def _limits(content: ReportContent) -> str:
    """Return what not to conclude from the samples."""
    faithfulness = content.metrics.get("faithfulness") or {}
    agreement = faithfulness.get("agreement")
    cosine = faithfulness.get("output_similarity")
    if cosine is not None:
        asked = (
            f"The model's output for a sample has a cosine similarity of {cosine:.3f} to that for its image. Where it "
            "is lower, t or the autoencoder misses something that the layer holds."
        )
    elif says_one_thing(content.metrics):
        asked = "The model predicts the same for all held-out images, so only the features of samples are checked."
    elif content.metrics.get("prediction_kind") == "none":
        asked = "The model's predictions are not compared, so only the features of samples are checked."
    elif agreement is not None:
        asked = (
            f"{percent(1 - agreement)} of samples change the model's prediction. There, t or the autoencoder misses "
            "something that the layer holds."
        )
    elif content.samples.agreement is None:
        asked = "The model is no classifier, so only the features of samples are checked."
    else:
        asked = ""
    return f"{LIMITS} {asked}".rstrip()


def _ignored(metrics: Mapping[str, Any]) -> str:
    """Return how much the layer ignores, or "" where that was not measured."""
    figure = metrics.get("explained_by_invariances") or {}
    if figure.get("value") is None:
        return ""
    low, high = figure.get("interval") or (None, None)
    interval = f"; 95 % interval {100 * low:.1f} to {100 * high:.1f} %" if low is not None and high is not None else ""
    return (
        f"The layer's invariances v explain {percent(figure['value'], figure.get('standard_error'))} of the variance "
        f"of the autoencoder's latent (MSC eq. 19), from {figure['samples']:,} samples for {figure['images']:,} images"
        f"{interval}.{_above_floor(figure)}"
    )


def _above_floor(figure: Mapping[str, Any]) -> str:
    """Return what of that is not the encoder's noise, or "" where that was not measured, as in older bundles."""
    above, floor = figure.get("above_floor"), figure.get("floor")
    if above is None or floor is None:
        return ""
    low, high = figure.get("above_floor_interval") or (None, None)
    interval = f" (95 % interval {100 * low:.1f} to {100 * high:.1f} %)" if low is not None and high is not None else ""
    ignored = percent(max(0.0, above), figure.get("above_floor_error"))
    return (
        f" A layer that keeps all that the encoder's mean holds would have {percent(floor)}: that much is the "
        f"encoder's noise. Above this floor, the layer ignores {ignored}{interval}."
    )


def _likelihood(content: ReportContent) -> dict[str, Any] | None:
    """Return how likely latents are under t, or None where that was not measured."""
    figure = content.metrics.get("likelihood") or {}
    if figure.get("held_out") is None:
        return None
    pictures = []
    if None not in (figure.get(k) for k in ("held_out", "train", "standard_normal")):
        text = (
            "What one held-out latent costs under t and under simpler answers. t has to be left of all of them but the "
            "floor; if another image's z does as well as its own, t ignores z."
        )
        pictures.append(picture_of(figures.likelihood_ladder(figure), "A ladder of likelihoods", text))
    calibration = content.metrics.get("calibration") or {}
    if calibration.get("norms"):
        panels = figures.calibration_panels(calibration)
        pictures.append(picture_of(panels, "Is t calibrated on held-out images?", figures.CALIBRATION))
    elif content.v is not None and content.v.numel():
        histogram = picture_of(
            figures.invariance_histogram(content.v),
            "Histogram of v against N(0, 1)",
            "v of held-out images, all dimensions together. Bars off the line are a fault of t; bars that follow it "
            "prove little.",
            width="30rem",
        )
        pictures.append(histogram)
    error = figure.get("held_out_error")
    spread = f" ± {error:.1f}" if error is not None else ""
    floor = figure.get("noise_floor")
    noise = "" if floor is None else f"; the encoder's own noise sets a floor of {floor:.1f}"
    text = (
        f"Held-out negative log-likelihood of a latent given z: {figure['held_out']:.1f}{spread} nats, "
        f"{figure['held_out_per_dim']:.2f} for each dimension, all constants included. Under N(0, 1) the same latents "
        f"cost {figure['standard_normal']:.1f}{noise}."
    )
    if figure.get("linear") is not None and not figure.get("is_linear"):
        text += f" A linear t would reach {figure['linear']:.1f}."
    return {"text": text, "pictures": pictures, "verdict": f"Verdict: {figure['verdict']}. {figure['advice']}"}


def _curves(metrics: Mapping[str, Any]) -> list[Picture]:
    """Return the curve of each network that was trained."""
    training = metrics.get("training") or {}
    pictures = []
    for key, (name, unit) in CURVES.items():
        history = training.get(key)
        if history and history.get("rows"):
            steps = history["rows"][-1]["step"]
            text = f"{name}: {steps:,} steps, stopped: {history.get('stopped') or 'interrupted'}"
            if history.get("skipped"):
                text += f", {history['skipped']} steps skipped (the loss was not finite)"
            curve = figures.training_curve(history, label=unit)
            pictures.append(picture_of(curve, f"Training curve: {name}", text + "."))
    return pictures


def _stages(seconds: Mapping[str, float]) -> list[dict[str, str]]:
    """Return what each stage took."""
    whole = sum(seconds.values())
    return [
        {
            "name": STAGES.get(name, name),
            "color": COLORS[number % len(COLORS)],
            "duration": _duration(value),
            "share": f"{100 * value / whole:.2f}",
            "percent": f"{100 * value / whole:.0f}",
        }
        for number, (name, value) in enumerate(seconds.items())
    ]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(v) for v in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_value(v)}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
