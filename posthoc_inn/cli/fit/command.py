"""`posthoc-inn fit`: the options; what they set in motion is in `fit_run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from posthoc_inn.cli.echo import echo
from posthoc_inn.cli.options import data_options, device_option, model_options, options, training_options
from posthoc_inn.errors import DataError, Problems

DEFAULT_OUT = "runs/color-digits"
NOT_OF_THE_RUN = ("out", "resume", "overwrite", "as_json", "quiet", "threads", "device")
"""Options that may change when a run is gone on with."""


@click.command("fit")
@model_options(
    with_weights_help="A local .safetensors or .pth file, or the name of published weights (may download); none: "
    "random ones, on purpose; train: train the model on the labelled data first."
)
@options(
    click.option("--layer", metavar="NAME", help="Dotted name of the layer (`posthoc-inn layers` lists them)."),
)
@data_options
@training_options
@options(
    click.option("--classifier-steps", type=click.IntRange(min=1), help="Steps of the model, with --weights train."),
    click.option(
        "--refits",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="More trainings of t with other seeds, for how much its figures vary.",
    ),
    click.option("--out", type=click.Path(path_type=Path), help=f"Directory of the run.  [default: {DEFAULT_OUT}]"),
    click.option("--resume", is_flag=True, help="Go on with the run in --out; its options are remembered."),
    click.option("--overwrite", is_flag=True, help="Replace the run in --out."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."),
    click.option("--quiet", is_flag=True, help="No progress."),
)
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Recover what a layer of a trained model ignores, and show it.

    Trains an autoencoder on the images, then the invertible network t on what the layer keeps of them; measures on
    held-out images; writes a bundle, metrics.json and report.html.

    With no option at all it runs on embedded data: the 1,797 handwritten digits that scikit-learn ships, at 28x28
    pixels in random colours, with a SqueezeNet 1.1 trained on them first as "your model".

    \b
    posthoc-inn fit
    posthoc-inn fit --backbone resnet50 --weights DEFAULT --layer layer4 --data photos/
    posthoc-inn fit --model mycode.nets:build --weights net.pth --layer features.7 --data photos/
    posthoc-inn fit --out runs/mine --resume
    """  # noqa: D301 (click reads a real \b)
    explicit = {name for name in given if ctx.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)}
    out = given["out"] or Path(DEFAULT_OUT)
    own = {name: _plain(value) for name, value in given.items() if name not in NOT_OF_THE_RUN}
    _check(given)

    from posthoc_inn.cli.fit.directory import RunDirectory, resumed_options

    directory = RunDirectory(out)
    record = directory.record() if given["resume"] else None
    if record is not None:
        own = resumed_options(record, own, explicit, out)
    elif not given["resume"] or directory.is_in_use():
        directory.check_new(overwrite=given["overwrite"])
    elif not explicit - set(NOT_OF_THE_RUN):
        # Nothing says what to begin: the embedded example would be a surprise in a directory of one's own.
        raise DataError(
            f"There is no run in {out} to go on with. Is --out the right directory? To begin one there, say what to "
            "fit (posthoc-inn fit --help), or leave --resume out for the embedded example."
        )
    elif not given["quiet"]:
        echo(f"Nothing in {out} to go on from: starting.", err=True)

    from posthoc_inn.cli.fit.options import FitOptions
    from posthoc_inn.cli.fit.results import finished_run
    from posthoc_inn.cli.fit.run import fit_run

    chosen = FitOptions(
        **own,
        out=out,
        device=given["device"],
        threads=given["threads"],
        resume=record is not None,
        as_json=given["as_json"],
        quiet=given["quiet"],
        resolved_precision=None if record is None else record.get("precision"),
    )
    if record is not None and record.get("finished"):
        finished_run(chosen)
        return
    try:
        fit_run(chosen)
    except KeyboardInterrupt:
        if not directory.is_in_use():
            raise KeyboardInterrupt("Interrupted before anything was written.") from None
        raise KeyboardInterrupt(f"Interrupted. To go on: posthoc-inn fit --out {out} --resume") from None


def _check(given: dict[str, Any]) -> None:
    """Check what can be checked without reading anything, all at once."""
    problems = Problems("posthoc-inn fit")
    problems.check(
        given["backbone"] is None or given["model"] is None,
        "give --backbone (a registered network) or --model (your own), not both",
    )
    problems.check(
        given["model"] is None or ":" in given["model"],
        f"--model takes PACKAGE.MODULE:FACTORY, got {given['model']!r}",
    )
    problems.check(given["epochs"] is None or given["steps"] is None, "give --epochs or --steps, not both")
    problems.check((given["mean"] is None) == (given["std"] is None), "--mean and --std go together")
    for name in ("mean", "std"):
        problems.check(
            given[name] is None or len(given[name]) in (1, 3), f"--{name} takes 1 or 3 numbers, got {given[name]}"
        )
    problems.check(
        given["std"] is None or all(s > 0 for s in given["std"]), f"--std must be positive, got {given['std']}"
    )
    problems.check(not (given["resume"] and given["overwrite"]), "give --resume or --overwrite, not both")
    problems.check(
        given["data_dir"] is None or given["data"] is not None or given["resume"],
        "--data-dir needs --data, the data set to read from there",
    )
    problems.check(
        given["classifier_steps"] is None or given["weights"] in (None, "train"),
        "--classifier-steps goes with --weights train only",
    )
    for name in ("concept_steps", "concept_options"):
        flag = "--" + name.rstrip("s").replace("_", "-") if name == "concept_options" else "--concept-steps"
        problems.check(not given[name] or given["concepts"] is not None or given["resume"], f"{flag} needs --concepts")
    problems.check(
        given["model"] is None or given["num_classes"] is None,
        "--num-classes is for --backbone; your factory knows its own",
    )
    problems.check(
        given["model"] is None or given["layer"] is not None or given["resume"],
        "--model needs --layer (`posthoc-inn layers --model ...` lists them)",
    )
    wrong_device = device_option(given["device"])
    problems.check(wrong_device is None, wrong_device or "")
    problems.raise_if_any()


def _plain(value: Any) -> Any:
    """Return an option's value as JSON will give it back."""
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
