"""The card of a bundle, README.md: what it is, in words, for whoever finds the directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posthoc_inn.bundle.members import MODEL_FILE
from posthoc_inn.bundle.record import Document
from posthoc_inn.config import FlowConfig
from posthoc_inn.errors import shown

_FILES = {
    "bundle.json": "configurations, the model's fingerprint, sizes and sha256 of the other files",
    "weights.safetensors": "weights of t, of the autoencoder, and of e where there is one",
    "metrics.json": "every figure measured after fitting",
    "README.md": "this card; it is not read when the bundle is loaded",
    "model.safetensors": "weights of the explained model",
}


def write_card(document: Document, metrics: Mapping[str, Any]) -> str:
    """Return the card as Markdown.

    Args:
        document: What bundle.json says.
        metrics: What metrics.json says; figures that are absent are left out.
    """
    flow, pictures = document.flow, document.adapter
    layer = document.extractor.layer or "(the output)"
    z = "×".join(map(str, document.z_shape))
    kind = document.autoencoder
    own = (
        f"built in ({_code(kind.config.kind)}), stored here"
        if kind.is_stored
        else f"the user's own {_code(kind.class_name)}, **not stored here**"
    )
    facts = [
        f"- model: {_code(document.model.class_name)}, fingerprint {_code(document.model.fingerprint)}",
        f"- layer: {_code(layer)}; z has shape {z}",
        f"- autoencoder: {own}; images of {pictures.image_size} px, {pictures.channels} channels; latent of width "
        f"{flow.dim}",
        f"- t: {_shape(flow)}",
        *_concepts(document),
        f"- written by posthoc_inn {_text(document.project_version)}, format {document.format_version}",
    ]
    facts += [
        f"- {_text(key)}: {_code(value)}"
        for key, value in sorted(document.origin.items())
        if isinstance(value, (str, int, float)) and key != "weights_file"
    ]
    files = [f"- {_code(n)}: {_FILES[n]}" for n in _FILES if n != MODEL_FILE or n in document.members]
    figures = _figures(metrics) or ["- none were measured"]
    sections = (
        f"# What {_code(layer)} of a {_text(document.model.class_name)} ignores",
        "A posthoc_inn bundle: an autoencoder and an invertible network t that recover, for an image, what the "
        "layer kept (z) and what it ignores (the invariances v), as far as the figures below say.",
        "## What it was fitted to\n\n" + "\n".join(facts),
        "## Figures, on held-out images\n\n" + "\n".join(figures),
        "## Loading\n\n" + _loading(document),
        "## Files\n\n" + "\n".join(files),
        "## Licence and privacy\n\nWhoever made this bundle decides its licence; those of the model and of the "
        "training images still apply. A decoder can memorise images it was trained on, and samples can show them: "
        "share this directory only as you would share the training images themselves. The digests in bundle.json "
        "find damage, not forgery.",
    )
    return "\n\n".join(sections) + "\n"


def _shape(flow: FlowConfig) -> str:
    """Return the shape of t in words."""
    if flow.coupling is None:
        return "linear Gaussian, in closed form"
    first = "linear Gaussian, then " * flow.is_linear_first + "the picture in z, then " * flow.is_pictures_first
    return f"{first}{flow.blocks} blocks of {_code(flow.coupling)} couplings, width {flow.width}"


def _loading(document: Document) -> str:
    keyword = "" if document.autoencoder.is_stored else ", autoencoder=autoencoder"
    given = "" if document.autoencoder.is_stored else ", `autoencoder` the one it was fitted with"
    held = f"\n\nThe model's own weights are in {_code(MODEL_FILE)}." if MODEL_FILE in document.members else ""
    return (
        "```python\nfrom posthoc_inn import Interpreter\n\n"
        f'interpreter = Interpreter.load("path/to/this/directory", model=model{keyword})\n'
        "interpreter.sample(images, n=8)\n```\n\n`model` is the same trained "
        f"{_code(document.model.class_name)}{given}. Nothing in these files is run."
    ) + held


def _figures(metrics: Mapping[str, Any]) -> list[str]:
    def number(*path: str) -> float | None:
        value: Any = metrics
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    agreement, similarity = number("faithfulness", "agreement"), number("faithfulness", "similarity")
    alike, alike_between = (number("faithfulness", f"output_similarity{k}") for k in ("", "_between"))
    same_for_all = number("faithfulness", "agreement_between") == 1
    is_none = metrics.get("prediction_kind") == "none"
    between = number("faithfulness", "similarity_between")
    nats, normal = number("likelihood", "held_out"), number("likelihood", "standard_normal")
    linear = number("likelihood", "linear")
    floor, share = number("likelihood", "noise_floor"), number("explained_by_invariances", "value")
    above, nearest = number("explained_by_invariances", "above_floor"), number("retrieval", "similarity")
    error, rebuilt = number("autoencoder", "error"), number("autoencoder", "agreement")
    rebuilt = None if same_for_all else rebuilt
    verdict = metrics.get("likelihood", {}).get("verdict") if isinstance(metrics.get("likelihood"), Mapping) else None
    lines = [
        is_none and "the model's predictions are not compared",
        same_for_all and "the model predicts the same for all held-out images, so that agreement says nothing",
        agreement is not None
        and not same_for_all
        and f"the model predicts for {agreement:.1%} of the samples what it predicts for the image",
        alike is not None
        and f"the model's output for a sample has a cosine similarity of {alike:.3f} to that for the image"
        + (f"; different images have {alike_between:.3f}" if alike_between is not None else ""),
        similarity is not None
        and f"z of a sample has a cosine similarity of {similarity:.3f} to z of its image"
        + (f"; different images have {between:.3f}" if between is not None else "")
        + (f", the nearest training images {nearest:.3f}" if nearest is not None else ""),
        share is not None
        and f"v explains {share:.1%} of the latent's variance (MSC eq. 19)"
        + (f", {above:.1%} above the encoder's noise" if above is not None else ""),
        nats is not None
        and f"t costs {nats:.1f} nats an image"
        + (f", where N(0, 1) costs {normal:.1f}" if normal is not None else "")
        + (f" and the encoder's own noise {floor:.1f}" if floor is not None else ""),
        linear is not None and f"a linear t costs {linear:.1f} nats",
        verdict is not None and f"training of t: {_text(verdict)}",
        error is not None
        and f"reconstructions have a mean squared error of {error:.4f}, images in [-1, 1]"
        + (f"; the model predicts the same for {rebuilt:.1%} of them" if rebuilt is not None else ""),
    ]
    return [f"- {line}" for line in lines if line]


def _concepts(document: Document) -> list[str]:
    if document.concepts is None:
        return []
    sizes = zip(("residual", *document.concepts.names), document.concepts.sizes, strict=True)
    told = ", ".join(f"{_code(name)} {size}" for name, size in sizes)
    works = "; t works on its factors" if document.is_flow_on_concepts else ""
    return [f"- e: factors over {_code(document.concepts.space)} with their dimensions: {told}{works}"]


def _text(value: object) -> str:
    """Return a stranger's text as Markdown that shows it and nothing else."""
    plain = shown(value, 200).replace("`", "'")
    return "".join("\\" + c if c in "\\*_[]<>#|!&~" else c for c in plain)


def _code(value: object) -> str:
    return f"`{shown(value, 200).replace('`', chr(39))}`"
