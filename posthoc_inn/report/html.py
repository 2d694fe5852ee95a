"""One self-contained HTML file about a fit: style inline, pictures inside, no script, every text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from posthoc_inn.analysis import Samples
from posthoc_inn.analysis.samples import CONCLUSION, LIMITS
from posthoc_inn.errors import DataError
from posthoc_inn.files import replace_file
from posthoc_inn.report import figures
from posthoc_inn.report.findings import Finding, findings, percent
from posthoc_inn.report.style import CSS, STAGE_COLORS

SIGNS = {"good": "good", "fair": "fair", "poor": "poor", "info": "–"}

STAGES = {
    "classifier": "training your model",
    "features": "reading images, features z",
    "autoencoder": "training the autoencoder",
    "latents": "encoding images",
    "e": "training e",
    "t": "training t",
    "measuring": "measuring",
    "writing": "bundle and pictures",
}


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
    try:
        replace_file(path, render(content))
    except OSError as error:
        raise DataError(f"The report cannot be written to {path}: {error}.") from error


def render(content: ReportContent) -> str:
    """Return the whole HTML document."""
    found = findings(content.metrics)
    body = [
        _header(content, found),
        _warnings(content.warnings),
        _pictures(content),
        _findings(found),
        *(_section(heading, _figure(figure, heading), _p(caption)) for heading, figure, caption in content.concepts),
        _invariances(content.metrics),
        _likelihood(content),
        _training(content.metrics),
        _seconds(content.metrics.get("seconds") or {}),
        _settings(content),
    ]
    return page(content.title, body, "MSC: Making Sense of CNNs (ECCV 2020).", content.version)


def page(title: str, body: Iterable[str], papers: str, version: str) -> str:
    """Return an HTML document that needs nothing from elsewhere and runs nothing.

    Args:
        title: Its title, as text.
        body: Parts of it, as HTML; empty ones are left out.
        papers: What the footer says of abbreviations, as text.
        version: Of this program, or "".
    """
    told = f" {escape(version)}" if version else ""
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + f"\n<footer>Made by posthoc_inn{told}. {escape(papers)} "
        "This file is complete in itself and contains no script.</footer>\n</main></body></html>\n"
    )


def _section(heading: str, *parts: str, kind: str = "") -> str:
    name = f" class='{kind}'" if kind else ""
    return f"<section{name}><h2>{escape(heading)}</h2>\n" + "\n".join(p for p in parts if p) + "</section>"


def _p(text: str, kind: str = "") -> str:
    name = f" class='{kind}'" if kind else ""
    return f"<p{name}>{escape(text)}</p>"


def _figure(figure: Figure, description: str, caption: str = "", *, width: str = "") -> str:
    style = f" style='width:{width}'" if width else ""
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><img alt='{escape(description)}'{style} src='{figures.to_data_uri(figure)}'>{told}</figure>"


def _header(content: ReportContent, found: Iterable[Finding]) -> str:
    key = (
        "Same prediction as the image",
        "Same features at the layer",
        "Explained by what the layer ignores",
        "Training",
    )
    boxes = "".join(
        f"<div class='{f.status}'><b>{escape(f.value)}</b><span>{escape(_KEY_TEXT.get(f.label, f.label))}</span></div>"
        for label in key
        for f in found
        if f.label == label
    )
    lead = "".join(f"<p class='lead'>{escape(text)}</p>" for text in content.done)
    return f"<header><h1>{escape(content.title)}</h1>{lead}<div class='key'>{boxes}</div></header>"


_KEY_TEXT = {
    "Same prediction as the image": "of samples get the prediction of their image",
    "Same features at the layer": "cosine of the samples' features to the image's",
    "Explained by what the layer ignores": "of what varies between images, the layer ignores",
    "Training": "training of t",
}


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    return _section(
        "Know this first", "<ul>" + "".join(f"<li>{escape(w)}</li>" for w in warnings) + "</ul>", kind="warn"
    )


def _pictures(content: ReportContent) -> str:
    agreement = (content.metrics.get("faithfulness") or {}).get("agreement")
    if agreement is not None:
        asked = (
            f"{percent(1 - agreement)} of samples change the model's prediction: there t or the autoencoder misses "
            "something that the layer holds."
        )
    elif content.samples.agreement is None:
        asked = "The model is no classifier, so samples are checked by their features alone."
    else:
        asked = ""
    return _section(
        "What the layer cannot tell apart",
        _figure(content.samples.figure(), "Grid of images, reconstructions and samples", content.samples.legend),
        _p(CONCLUSION),
        _p(f"{LIMITS} {asked}".rstrip(), "soft"),
    )


def _findings(found: Sequence[Finding]) -> str:
    rows, group = "", ""
    for finding in found:
        if finding.group != group:
            rows += "</tbody>" if group else ""
            group = finding.group
            rows += f"<tbody class='g'><tr><th scope='rowgroup' colspan='4'>{escape(group)}</th></tr>"
        rows += (
            f"<tr><th scope='row'>{escape(finding.label)}</th><td class='n'>{escape(finding.value)}</td>"
            f"<td class='s {finding.status}'>{SIGNS[finding.status]}</td><td "
            f"class='m'>{escape(finding.meaning)}</td></tr>"
        )
    return _section(
        "Can it be believed?",
        f"<div class='scroll'><table>{rows}{'</tbody>' if group else ''}</table></div>",
    )


def _invariances(metrics: Mapping[str, Any]) -> str:
    figure = metrics.get("explained_by_invariances") or {}
    if figure.get("value") is None:
        return ""
    low, high = figure.get("interval") or (None, None)
    interval = f"; 95 % interval {100 * low:.1f} to {100 * high:.1f} %" if low is not None and high is not None else ""
    return _section(
        "How much the layer ignores",
        _p(
            f"{percent(figure['value'], figure.get('standard_error'))} of the variance of the autoencoder's latent is "
            f"explained by the layer's invariances v (MSC eq. 19), from {figure['samples']:,} samples for "
            f"{figure['images']:,} images{interval}."
        ),
        _p(
            "100 % would be a layer that keeps nothing of the image, 0 % one from which the image can be restored. The "
            "measure counts variance of the latent, not importance: a large uniform colour weighs more than a thin "
            "stroke.",
            "soft",
        ),
    )


def _likelihood(content: ReportContent) -> str:
    figure = content.metrics.get("likelihood") or {}
    if figure.get("held_out") is None:
        return ""
    ruler = ""
    if None not in (figure.get(k) for k in ("noise_floor", "held_out", "train", "standard_normal")):
        ruler = _figure(
            figures.likelihood_ruler(figure), "Likelihoods on a line", "Nats an image; further left is better."
        )
    error = figure.get("held_out_error")
    spread = f" ± {error:.1f}" if error is not None else ""
    return _section(
        "How well t knows the latents",
        _p(
            f"Held-out negative log-likelihood of a latent given z: {figure['held_out']:.1f}{spread} nats, "
            f"{figure['held_out_per_dim']:.2f} a dimension, with all constants. Under N(0, 1) the same latents cost "
            f"{figure['standard_normal']:.1f}; the encoder's own noise sets a floor of {figure['noise_floor']:.1f}."
        ),
        ruler,
        _histogram(content),
        _p(f"Verdict: {figure['verdict']}. {figure['advice']}"),
    )


def _histogram(content: ReportContent) -> str:
    if content.v is None or content.v.numel() == 0:
        return ""
    return _figure(
        figures.invariance_histogram(content.v),
        "Histogram of v against N(0, 1)",
        "v of held-out images. Where the bars follow the line, samples drawn from N(0, 1) are as typical as real "
        "images.",
        width="30rem",
    )


def _training(metrics: Mapping[str, Any]) -> str:
    training = metrics.get("training") or {}
    parts = []
    for key, name, unit in (
        ("classifier", "Your model", "cross-entropy, nats"),
        ("autoencoder", "The autoencoder", "loss, nats a value"),
        ("e", "e", "nats an image"),
        ("t", "t", "nats an image"),
    ):
        history = training.get(key)
        if history and history.get("rows"):
            rows = history["rows"]
            told = f"{name}: {rows[-1]['step']:,} steps, stopped: {history.get('stopped') or 'interrupted'}"
            if history.get("skipped"):
                told += f", {history['skipped']} steps skipped (not finite)"
            parts.append(_figure(figures.training_curve(history, label=unit), f"Training curve: {name}", told + "."))
    if not parts:
        return ""
    return _section("How training went", f"<div class='pair'>{''.join(parts)}</div>")


def _seconds(seconds: Mapping[str, float]) -> str:
    shown = {k: v for k, v in seconds.items() if v and v > 0}
    if not shown:
        return ""
    whole = sum(shown.values())
    bar, rows = "", ""
    for number, (name, value) in enumerate(shown.items()):
        color = STAGE_COLORS[number % len(STAGE_COLORS)]
        bar += f"<i style='width:{100 * value / whole:.2f}%;background:{color}'></i>"
        rows += (
            f"<tr><th scope='row'><span class='dot' style='background:{color}'></span>"
            f"{escape(STAGES.get(name, name))}</th><td class='n'>{_duration(value)}</td>"
            f"<td class='n m'>{100 * value / whole:.0f} %</td></tr>"
        )
    return _section(
        f"Where the {_duration(whole)} went",
        f"<div class='bar'>{bar}</div>",
        f"<div class='scroll'><table>{rows}</table></div>",
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def _settings(content: ReportContent) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(str(k))}</th><td><code>{escape(_value(v))}</code></td></tr>"
        for k, v in content.settings.items()
    )
    files = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td><code>{escape(path)}</code></td></tr>"
        for name, path in content.files.items()
    )
    table = f"<div class='scroll'><table>{rows}{files}</table></div>" if rows or files else ""
    return _section("Settings and files", table) if table else ""


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(v) for v in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_value(v)}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
