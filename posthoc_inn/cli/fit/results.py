"""What `fit` leaves for readers: the picture grid, the report, and the summary on the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from posthoc_inn.cli.data import Images
from posthoc_inn.cli.echo import echo_json
from posthoc_inn.cli.fit.directory import RunDirectory
from posthoc_inn.cli.fit.options import Choice, FitOptions, command_line, title_of
from posthoc_inn.cli.models import TRAIN, Model
from posthoc_inn.cli.terminal import out, print_findings, print_lines
from posthoc_inn.drawing import to_png
from posthoc_inn.errors import BundleError
from posthoc_inn.interpreter import Interpreter
from posthoc_inn.report import findings
from posthoc_inn.report.fitted import ReportWords, shown_samples, write_fitted_report


def report_words(
    options: FitOptions, choice: Choice, model: Model, images: Images, *, device: torch.device, precision: str
) -> ReportWords:
    """Return what the report says of a run besides what its interpreter knows."""
    trains = choice.weights == TRAIN
    shares = options.autoencoder is not None and Path(options.autoencoder).is_dir()
    weights = "trained here" if trains else choice.weights or "its own"
    title = title_of(model.name)
    return ReportWords(
        title=f"What {choice.layer} of {title} ignores",
        done=f"What the layer {choice.layer} of {title} ({'trained for this run' if trains else 'left as it is'}) "
        f"ignores, shown as images. The figures say how far to trust them. Data: {images.told}.",
        data=images.told,
        model=f"{model.name}, weights: {weights}",
        autoencoder=f"shared from {options.autoencoder}" if shares else "trained for this run",
        class_names=tuple(images.classes),
        settings={
            "machine": f"{device}, {torch.get_num_threads()} threads, precision {precision}",
            "again": command_line(options),
        },
        files={"bundle": "bundle/", "all figures": "metrics.json", "the grid alone": "samples.png"},
    )


def write_pictures(interpreter: Interpreter, directory: RunDirectory, words: ReportWords, started: float) -> None:
    """Write samples.png and report.html of a run, and add the seconds that writing took to its figures.

    Args:
        interpreter: Fitted and measured.
        directory: Of the run.
        words: What the report says besides.
        started: When writing began, by `time.perf_counter`.
    """
    examples, metrics = interpreter.examples_, interpreter.metrics_
    shown = shown_samples(interpreter, examples.images, words.class_names)
    directory.write("samples.png", to_png(shown.figure()))
    writing = round(time.perf_counter() - started, 3)
    interpreter.metrics_ = {**metrics, "seconds": {**metrics["seconds"], "writing": writing}}
    write_fitted_report(interpreter, examples.images, examples.v, directory.report, words=words, samples=shown)


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
            f"The run in {options.out} was finished, but {directory.metrics} cannot be read ({error}). Start again "
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
        echo_json({"out": str(directory.path), **paths, "findings": found, "figures": metrics})
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
