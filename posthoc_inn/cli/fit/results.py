"""What `fit` leaves for readers: the picture grid, the report, and the summary on the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import torch
from matplotlib.figure import Figure
from torch import Tensor

from posthoc_inn import __version__
from posthoc_inn.analysis import edit_gallery
from posthoc_inn.cli.fit.directory import RunDirectory
from posthoc_inn.cli.fit.options import FitOptions, command_line, title_of
from posthoc_inn.cli.models import TRAIN
from posthoc_inn.cli.terminal import out, print_findings, print_lines
from posthoc_inn.drawing import grid, sample_columns, to_png
from posthoc_inn.errors import BundleError
from posthoc_inn.features.outputs import is_classification
from posthoc_inn.images import BatchSource
from posthoc_inn.interpreter import Interpreter
from posthoc_inn.report import ReportContent, findings, write_report

if TYPE_CHECKING:
    from posthoc_inn.cli.fit.run import Run

ROWS, SAMPLES = 10, 8
EDITED = 100
"""Held-out images whose concepts are exchanged."""
HISTOGRAM = 1000
"""Held-out images whose v is drawn as a histogram."""


@dataclass(frozen=True)
class Pictures:
    """What is shown of held-out images; see `ReportContent` for the attributes."""

    images: Tensor
    reconstructions: Tensor
    samples: Tensor
    row_labels: list[str]
    sample_labels: list[list[str]]
    v: Tensor


@torch.no_grad()
def draw_pictures(interpreter: Interpreter, held_out: BatchSource, classes: Sequence[str], seed: int) -> Pictures:
    """Sample for some held-out images, one of each predicted class first, and ask the model about the samples."""
    pipeline = interpreter.pipeline
    images = held_out.take(HISTOGRAM)["images"]
    output = pipeline.predict(images[:256])
    predicted = output.argmax(1).cpu() if is_classification(output) else None
    picks = _one_of_each(predicted, min(ROWS, len(images)))
    chosen = images[picks]
    samples = interpreter.sample(chosen, n=SAMPLES, seed=seed).cpu()
    mean, std = pipeline.encode(images)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(mean)
    v, _ = pipeline.invariances(mean + std * noise, pipeline.context(pipeline.features(images)))
    row_labels: list[str] = []
    sample_labels: list[list[str]] = []
    if predicted is not None:
        names = classes if len(classes) == output.shape[1] else ()
        asked = pipeline.ask_model(samples.flatten(0, 1))[1].argmax(1).cpu().reshape(len(picks), -1)
        row_labels = [f"predicts {_class_name(names, int(predicted[i]))}" for i in picks]
        sample_labels = [
            ["" if int(k) == int(predicted[i]) else _class_name(names, int(k)) for k in row]
            for i, row in zip(picks, asked, strict=True)
        ]
    shown = pipeline.adapter.to_images(chosen.to(pipeline.device)).cpu()
    return Pictures(shown, pipeline.decode(mean[picks]).cpu(), samples, row_labels, sample_labels, v.cpu())


def write_pictures(run: Run, metrics: Mapping[str, Any], started: float) -> dict[str, Any]:
    """Write samples.png and report.html of a run.

    Args:
        run: The run.
        metrics: Its figures.
        started: When writing began, by `time.perf_counter`.

    Returns:
        The figures, with the seconds that writing took up to the report.
    """
    pictures = draw_pictures(run.interpreter, run.kept, run.images.classes, run.options.seed)
    shown = sample_columns(pictures.images, pictures.reconstructions, pictures.samples, pictures.sample_labels)
    run.directory.write("samples.png", to_png(grid(shown, row_labels=pictures.row_labels)))
    writing = round(time.perf_counter() - started, 3)
    metrics = {**metrics, "seconds": {**metrics["seconds"], "writing": writing}}
    trained = "trained for this run" if run.trains else "left as it is"
    layer, name = run.choice.layer, run.model.name
    content = ReportContent(
        title=f"What {layer} of {title_of(name)} cannot see",
        done=[
            f"posthoc_inn recovered what the layer {layer} of {title_of(name)} ({trained}) has thrown away, and shows "
            f"it as images. Data: {run.images.told}."
        ],
        metrics=metrics,
        images=pictures.images,
        reconstructions=pictures.reconstructions,
        samples=pictures.samples,
        row_labels=pictures.row_labels,
        sample_labels=pictures.sample_labels,
        v=pictures.v,
        concepts=_concept_sections(run),
        warnings=_warnings(run, metrics),
        settings=_settings(run, metrics),
        files={"bundle": "bundle/", "all figures": "metrics.json", "the grid alone": "samples.png"},
        version=__version__,
    )
    write_report(content, run.directory.report)
    return metrics


def _concept_sections(run: Run) -> list[tuple[str, Figure, str]]:
    """Return what the report shows of concepts: their relevance, and edits."""
    interpreter = run.interpreter
    if run.concepts is None:
        return []
    relevance = interpreter.relevance_
    some = run.kept.take(EDITED)["images"]
    gallery = edit_gallery(interpreter.pipeline, interpreter.concept_model, some)
    return [
        ("What the layer knows of each concept", relevance.figure(), relevance.caption),
        ("Each concept taken from another image", gallery.figure(), gallery.caption),
    ]


def _warnings(run: Run, metrics: Mapping[str, Any]) -> list[str]:
    warnings = [*run.choice.notes, *run.model.notes]
    if metrics.get("is_cut") is False:
        warnings.append(run.interpreter.probe_.note or "The layer is no true cut of the model.")
    return warnings + [f"{f.label}: {f.value}. {f.advice}" for f in findings(metrics) if f.status == "poor"]


def _settings(run: Run, metrics: Mapping[str, Any]) -> dict[str, Any]:
    config = metrics.get("fit") or {}
    flow, trained = config.get("flow") or {}, config.get("flow_training") or {}
    own = run.interpreter.autoencoder_.config
    given = isinstance(run.interpreter.autoencoder, torch.nn.Module)
    shared = f"shared from {run.options.autoencoder}" if given else "trained for this run"
    weights = run.choice.weights or "its own"
    return {
        "layer": run.choice.layer,
        "shape of z": "×".join(map(str, metrics.get("z_shape") or ())),
        "model": f"{run.model.name}, weights: {weights if weights != TRAIN else 'trained here'}",
        "data": run.images.told,
        "autoencoder": f"{own.kind}, {own.size} px, {own.channels} channels, latent {own.latent_dim}, {shared}",
        "t": f"preset {config.get('preset')}, {flow.get('blocks')} blocks of width {flow.get('width')}, "
        f"{trained.get('steps'):,} steps of {trained.get('batch_size')}",
        **_concept_settings(run),
        "seed": run.options.seed,
        "machine": f"{run.device}, {torch.get_num_threads()} threads, precision {run.precision}",
        "again": command_line(run.options),
    }


def _concept_settings(run: Run) -> dict[str, str]:
    if run.concepts is None:
        return {}
    concepts = run.interpreter.concept_model
    sizes = ", ".join(f"{n} {d}" for n, d in zip(concepts.factor_names, concepts.factor_dims, strict=True))
    config, trained = concepts.flow.config, run.interpreter.fit_config_.concepts.training
    return {
        "e": f"{config.blocks} blocks of width {config.width}, {trained.steps:,} steps of {trained.batch_size} pairs; "
        f"dimensions: {sizes}"
    }


def _one_of_each(predicted: Tensor | None, rows: int) -> list[int]:
    """Return positions of images, one of each predicted class first."""
    if predicted is None:
        return list(range(rows))
    first = {int(k): i for i, k in reversed(list(enumerate(predicted)))}
    picks = [first[k] for k in sorted(first)][:rows]
    return picks + [i for i in range(len(predicted)) if i not in picks][: rows - len(picks)]


def _class_name(names: Sequence[str], number: int) -> str:
    text = names[number] if names else str(number)
    return text if len(text) <= 14 else text[:13] + "…"


def finite(value: Any) -> Any:
    """Return plain data with None for what is not finite, which JSON cannot hold.

    >>> finite({"a": [1.0, float("nan")], 2: ("b",)})
    {'a': [1.0, None], '2': ['b']}
    """
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    return value


def finished_run(options: FitOptions) -> None:
    """Show a finished run again.

    Raises:
        BundleError: Its figures are gone.
    """
    directory = RunDirectory(options.out)
    try:
        metrics = json.loads(directory.metrics.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"The run in {options.out} was finished, but {directory.metrics} cannot be read ({error}). Start it anew "
            "with --overwrite."
        ) from error
    if not options.as_json:
        print_lines(out(), [f"The run in {options.out} is finished already; nothing was trained.", ""])
    show_result(directory, metrics, as_json=options.as_json)


def show_result(directory: RunDirectory, metrics: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what was found, and where it is."""
    paths = {
        "bundle": str(directory.bundle),
        "metrics": str(directory.metrics),
        "report": str(directory.report),
        "samples": str(directory.samples),
    }
    if as_json:
        found = [vars(f) for f in findings(metrics)]
        click.echo(json.dumps({"out": str(directory.path), **paths, "findings": found, "figures": metrics}, indent=2))
        return
    console = out()
    print_findings(console, findings(metrics))
    print_lines(
        console,
        [
            "",
            f"report    {paths['report']}   (open it in a browser)",
            f"figures   {paths['metrics']}",
            f"bundle    {paths['bundle']}",
            f"next      posthoc-inn sample --bundle {paths['bundle']} --images YOUR.png",
        ],
    )
