"""What the autoencoder loses, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posthoc_inn.report.findings.judging import Finding, agreement, gain, judge, percent, says_one_thing

ERROR = (0.01, 0.03)
"""Squared reconstruction error of images in [-1, 1] that is good, and that is still usable."""
RECONSTRUCTION_AGREEMENT = (0.95, 0.85)


def autoencoder(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return what the autoencoder loses."""
    figures = metrics.get("autoencoder") or {}
    found = []
    limit = " A detail that the autoencoder loses is in no sample, whatever t does."
    loses = "The autoencoder loses what the model looks at, and this spoils all samples. Train it longer "
    loses += "(--autoencoder-steps)."
    if figures.get("output_similarity") is not None:
        value, between = figures["output_similarity"], (metrics.get("faithfulness") or {})
        found.append(
            Finding(
                "Autoencoder",
                "Same output for reconstructions",
                f"{value:.3f}",
                "Cosine similarity between the model's output for an image and for its reconstruction." + limit,
                gain(value, between.get("output_similarity_between")),
                loses,
            )
        )
    if figures.get("agreement") is not None and not says_one_thing(metrics):
        beside, status = agreement(metrics, figures, RECONSTRUCTION_AGREEMENT)
        labels = figures.get("label_overlap") is not None
        what = "predicts the same for an image and for its reconstruction"
        what = "gives an image and its reconstruction exactly the same labels" if labels else what
        found.append(
            Finding(
                "Autoencoder",
                f"Same {'labels' if labels else 'prediction'} for reconstructions",
                percent(figures["agreement"], figures.get("agreement_error")),
                f"How often the model {what}.{limit}{beside}",
                status,
                loses,
            )
        )
    if figures.get("error") is not None:
        found.append(
            Finding(
                "Autoencoder",
                "Reconstruction error",
                f"{figures['error']:.4f}",
                "Mean squared error on held-out images in [-1, 1].",
                judge(figures["error"], ERROR, low_is_good=True),
                "Reconstructions are blurred. Train the autoencoder longer (--autoencoder-steps).",
            )
        )
    if figures.get("kl") is not None:
        found.append(
            Finding(
                "Autoencoder",
                "Information in the latent",
                f"{figures['kl']:.0f} nats",
                "KL from the encoder to N(0, 1), for each image.",
                "info",
            )
        )
    return found
