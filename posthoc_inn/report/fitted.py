"""The report of a fitted Interpreter: pictures of held-out images, figures, settings, and what to believe of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from posthoc_inn import __version__, analysis
from posthoc_inn.analysis.samples import class_names_of
from posthoc_inn.autoencoders import Autoencoder
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.errors import NotFittedError
from posthoc_inn.objectives import drawn
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.report.findings import findings
from posthoc_inn.report.html import ReportContent, write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS, SAMPLES = 10, 8
"""Images that are shown, and samples of each."""
LOOKED_AT = 256
"""Images that those of different classes are chosen from."""


class Fitted(Protocol):
    """What a report needs of a fitted Interpreter.

    These are used where they are there, as they are after a fit and not all of them after a load: `metrics_`,
    `fit_config_`, `probe_`, `pair_shares_`, `relevance_`, and `origin`, which may know the classes' names.
    """

    model: nn.Module
    layer: str
    seed: int
    autoencoder_: Autoencoder

    @property
    def pipeline(self) -> Pipeline:
        """The fitted parts."""

    @property
    def concept_model(self) -> ConceptModel:
        """The fitted e; raises NotFittedError where there is none."""


@dataclass(frozen=True)
class ReportWords:
    """What only the caller knows; everything has a default.

    Attributes:
        title: The heading.
        done: What was done, in a sentence or two.
        data: Which images.
        model: Name of the model.
        autoencoder: Where the autoencoder is from.
        class_names: Of the model's classes, in order.
        warnings: What a reader has to know first, before what the figures say.
        settings: More settings; those that the report has of its own are replaced.
        files: Name -> path, relative to the report.

    >>> ReportWords(data="my photographs").title
    ''
    """

    title: str = ""
    done: str = ""
    data: str = ""
    model: str = ""
    autoencoder: str = ""
    class_names: Sequence[str] = ()
    warnings: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def write_fitted_report(
    interpreter: Fitted,
    images: Tensor,
    v: Tensor | None,
    path: str | Path,
    *,
    words: ReportWords | None = None,
    samples: analysis.Samples | None = None,
) -> None:
    """Write the report of a fitted interpreter to `path`, replacing it at once.

    Args:
        interpreter: Fitted, or loaded.
        images: Held-out images as given to `fit`, (B, C, H, W); after a fit, `examples_.images`.
        v: Invariances of held-out images, (N, D), for their histogram; None for those of `images`.
        path: Where to.
        words: What the caller knows of model and data.
        samples: What `shown_samples` returned, where the caller has it already.

    Raises:
        NotFittedError: The interpreter is not fitted.
        ShapeError: `images` are no batch of images.
        DataError: The file cannot be written.
    """
    write_report(fitted_content(interpreter, images, v, words=words, samples=samples), Path(path))


def fitted_content(
    interpreter: Fitted,
    images: Tensor,
    v: Tensor | None,
    *,
    words: ReportWords | None = None,
    samples: analysis.Samples | None = None,
) -> ReportContent:
    """Return what the report of a fitted interpreter is made of; see `write_fitted_report`."""
    words = words or ReportWords()
    images = interpreter.pipeline.adapter.read(images)
    metrics = _metrics(interpreter)
    model = words.model or str((metrics.get("model") or {}).get("name") or type(interpreter.model).__name__)
    layer = f"the layer {interpreter.layer}" if interpreter.layer else "the output"
    done = f"What {layer} of {model} ignores, shown as images. The figures say how far to trust them."
    if words.data:
        done += f" Data: {words.data}."
    return ReportContent(
        title=words.title or f"What {interpreter.layer or 'the output'} of {model} ignores",
        done=[words.done or done],
        metrics=metrics,
        samples=samples or shown_samples(interpreter, images, words.class_names),
        v=_invariances(interpreter, images) if v is None else v,
        concepts=_concept_sections(interpreter, images),
        warnings=[*words.warnings, *_warnings(interpreter, metrics)],
        settings={**_settings(interpreter, metrics, words), **words.settings},
        files=words.files,
        version=__version__,
    )


def shown_samples(interpreter: Fitted, images: Tensor, class_names: Sequence[str] = ()) -> analysis.Samples:
    """Return samples for some of the images, one of each predicted class first.

    Args:
        interpreter: Fitted, or loaded.
        images: As given to `fit`, (B, C, H, W).
        class_names: Of the model's classes; by default what the interpreter's origin knows.
    """
    pipeline = interpreter.pipeline
    said = pipeline.extractor.said(pipeline.ask(images[:LOOKED_AT]))
    predicted = said if said is not None and said.ndim == 1 else None
    picks = one_of_each(predicted, min(ROWS, len(images)))
    known = class_names or class_names_of(getattr(interpreter, "origin", {}))
    return analysis.samples(pipeline, images[picks], SAMPLES, interpreter.seed, known)


def one_of_each(predicted: Tensor | None, rows: int) -> list[int]:
    """Return positions of images, one of each predicted class first, in the order of the classes.

    >>> one_of_each(torch.tensor([5, 5, 2, 5]), 3)
    [2, 0, 1]
    """
    if predicted is None:
        return list(range(rows))
    first = {int(k): i for i, k in reversed(list(enumerate(predicted)))}
    picks = [first[k] for k in sorted(first)][:rows]
    return picks + [i for i in range(len(predicted)) if i not in picks][: rows - len(picks)]


def _metrics(interpreter: Fitted) -> Mapping[str, Any]:
    return getattr(interpreter, "metrics_", {})


def _invariances(interpreter: Fitted, images: Tensor) -> Tensor:
    """Return v of images (B, D), at a draw of the encoder."""
    pipeline = interpreter.pipeline
    mean, std = pipeline.encode(images)
    context = pipeline.context(pipeline.features(images))
    return pipeline.invariances(drawn(mean, std, interpreter.seed), context)[0].cpu()


def _concepts(interpreter: Fitted) -> ConceptModel | None:
    try:
        return interpreter.concept_model
    except NotFittedError:
        return None


def _concept_sections(interpreter: Fitted, images: Tensor) -> list[tuple[str, Figure, str]]:
    """Return what the report shows of concepts: shares by pairs, the papers' measure, and edits."""
    concepts, pipeline = _concepts(interpreter), interpreter.pipeline
    if concepts is None or concepts.space != "z_bar":
        return []
    sections = []
    shares: analysis.PairShares | None = getattr(interpreter, "pair_shares_", None)
    if shares is not None:
        sections.append(("What the layer determines of each concept", shares.figure(), shares.caption))
    relevance: analysis.ConceptRelevance | None = getattr(interpreter, "relevance_", None)
    if relevance is None and len(images) >= 3:
        relevance = analysis.concept_relevance(pipeline, concepts, pipeline.features(images), seed=interpreter.seed)
    if relevance is not None:
        caption = relevance.caption
        if not hasattr(interpreter, "relevance_"):
            caption += f" Measured for this report, on {len(images)} images."
        sections.append(("The papers' measure: variance of each concept's factor", relevance.figure(), caption))
    if len(images) >= 2:
        gallery = analysis.edit_gallery(pipeline, concepts, images)
        sections.append(("Each concept taken from another image", gallery.figure(), gallery.caption))
    return sections


def _warnings(interpreter: Fitted, metrics: Mapping[str, Any]) -> list[str]:
    warnings = [str(note) for note in metrics.get("notes") or ()]
    if metrics.get("is_cut") is False:
        note = getattr(getattr(interpreter, "probe_", None), "note", "")
        warnings.append(note or "The layer is no true cut of the model.")
    return warnings + [f"{f.label}: {f.value}. {f.advice}" for f in findings(metrics) if f.status == "poor"]


def _settings(interpreter: Fitted, metrics: Mapping[str, Any], words: ReportWords) -> dict[str, str]:
    pipeline, own = interpreter.pipeline, interpreter.autoencoder_.config
    autoencoder = f"{own.kind}, {own.size} px, {own.channels} channels, latent {own.latent_told}"
    return {
        "layer": interpreter.layer or "output",
        "shape of z": "×".join(map(str, pipeline.z_shape)),
        "model": words.model or type(interpreter.model).__name__,
        **({"data": words.data} if words.data else {}),
        **_prediction_settings(metrics),
        "autoencoder": autoencoder + (f", {words.autoencoder}" if words.autoencoder else ""),
        **_perceptual_settings(metrics),
        **_network_settings(interpreter, metrics),
        "seed": str(interpreter.seed),
        "machine": f"{pipeline.device}, {torch.get_num_threads()} threads",
    }


def _perceptual_settings(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return by what else than pixels the autoencoder was trained; bundles of before know of nothing."""
    found = metrics.get("perceptual") or {}
    layers = ", ".join(map(str, found.get("layers") or ()))
    at = f" at {layers}" if layers else ""
    return {"pictures compared by": f"pixels, and {found.get('features')}{at}"} if found else {}


def _prediction_settings(metrics: Mapping[str, Any]) -> dict[str, str]:
    kind, why = metrics.get("prediction_kind"), metrics.get("prediction")
    return {} if not kind else {"prediction": f"{kind}: {why}" if why else str(kind)}


def _network_settings(interpreter: Fitted, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return sizes and steps of t and e, as far as they are known: a loaded interpreter has them in its metrics."""
    chosen = getattr(interpreter, "fit_config_", None)
    config: Mapping[str, Any] = metrics.get("fit") or {} if chosen is None else chosen.to_dict()
    flow, found = interpreter.pipeline.flow.flow.config, {}
    shape = flow.told
    found["t"] = f"preset {config['preset']}, {shape}" if config.get("preset") else shape
    noise = metrics.get("code_noise")
    if noise:
        found["noise of codes"] = (
            f"{noise['share']:g} of each channel's deviation, besides the encoder's own: likelihoods, v and samples "
            "are those of codes with it"
        )
    if flow.coupling is not None:
        found["t"] += _steps(config.get("flow_training"), "")
    by_samples = metrics.get("faithful")
    if by_samples:
        before, after = by_samples["before"], by_samples["after"]
        found["t, by its samples"] = (
            f"{by_samples['steps']:,} more steps, asking the model of {by_samples['samples']} samples each: "
            f"their misfit to z went from {before['misfit']:.2f} to {after['misfit']:.2f} (images' own latents: "
            f"{by_samples['floor']:.2f}), held-out nats from {before['nats']:.1f} to {after['nats']:.1f}"
        )
    concepts = _concepts(interpreter)
    if concepts is not None:
        sizes = ", ".join(f"{n} {d}" for n, d in zip(concepts.factor_names, concepts.factor_dims, strict=True))
        shape = f"{concepts.flow.config.blocks} blocks of width {concepts.flow.config.width}"
        trained = (config.get("concepts") or {}).get("training")
        found["e"] = f"{shape}{_steps(trained, ' pairs')}; dimensions: {sizes}"
    return found


def _steps(training: Mapping[str, Any] | None, unit: str) -> str:
    return "" if not training else f", {training['steps']:,} steps of {training['batch_size']}{unit}"
