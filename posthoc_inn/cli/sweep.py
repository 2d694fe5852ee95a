"""`posthoc-inn sweep`: t at several layers, checkpoints or models, with one autoencoder and one e for all."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc_inn.cli.echo import echo, echo_json
from posthoc_inn.cli.options import (
    chosen_preset,
    data_options,
    device_option,
    model_options,
    options,
    training_options,
)
from posthoc_inn.errors import ConfigError, DataError, LayerNotFoundError, Problems

if TYPE_CHECKING:
    from torch import nn

    from posthoc_inn.analysis.sweep_result import SweepResult
    from posthoc_inn.cli.data import Images
    from posthoc_inn.concepts import ConceptModel
    from posthoc_inn.config import FitConfig, ImageSpec

DEFAULT_OUT = Path("runs/sweep")
RESULT, FIGURE, REPORT = "sweep.json", "sweep.png", "analysis.html"


@click.command("sweep")
@options(
    click.option("--layers", metavar="A,B,...", help="Compare these layers of one model."),
    click.option(
        "--checkpoint",
        "checkpoints",
        metavar="STEP=FILE",
        multiple=True,
        help="Compare these checkpoints of one model at --layer; repeat for each.",
    ),
    click.option(
        "--network",
        "networks",
        metavar="NAME=LAYER[=WEIGHTS]",
        multiple=True,
        help="Compare these registered networks; repeat for each. WEIGHTS is a file, a published name, or none.",
    ),
    click.option("--layer", metavar="NAME", help="The layer, with --checkpoint."),
    click.option(
        "--bundle",
        type=click.Path(path_type=Path),
        help="Share model, autoencoder and e of this bundle or run, with --layers.",
    ),
)
@model_options(with_weights_help="A local .safetensors or .pth file, the name of published weights, or none.")
@data_options
@training_options
@options(
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=DEFAULT_OUT,
        show_default=True,
        help="Directory; what is done in it is kept, and what is missing is added.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."),
    click.option("--quiet", is_flag=True, help="No progress."),
)
def command(**given: Any) -> None:
    """Fit t at several layers, checkpoints or networks, and compare what each knows.

    The first one trains the autoencoder, and e with --concepts; all others share both, so that their figures can be
    compared. Writes a report, a figure and a table. Started again, it goes on where it was.

    \b
    posthoc-inn sweep --bundle runs/color-digits --layers features.3,features.7,features.11 --data color-digits
    posthoc-inn sweep --model mycode.nets:build --layer layer3 --checkpoint 0=a.pth --checkpoint 9=b.pth --data photos/
    posthoc-inn sweep --network resnet18=layer3=r18.pth --network vgg11=features.20=vgg.pth --data photos/
    """  # noqa: D301 (click reads a real \b)
    _check(given)

    from posthoc_inn.cli.fit.memory import keep_freed_memory
    from posthoc_inn.training.threads import using_threads

    keep_freed_memory()
    started = time.perf_counter()
    import torch

    with using_threads(given["threads"] or torch.get_num_threads()):
        result = _run(given)
    _write(result, given, time.perf_counter() - started)


def _check(given: dict[str, Any]) -> None:
    """Check what can be checked without reading anything, all at once."""
    problems = Problems("posthoc-inn sweep")
    kinds = [f"--{name}" for name in ("layers", "checkpoints", "networks") if given[name]]
    problems.check(
        len(kinds) == 1,
        "give exactly one of --layers (several layers), --checkpoint (repeated) and --network (repeated), "
        f"got {' and '.join(kinds) or 'none'}",
    )
    problems.check(not given["checkpoints"] or given["layer"] is not None, "--checkpoint needs --layer")
    has_model = given["backbone"] is not None or given["model"] is not None
    problems.check(
        bool(given["networks"]) or has_model != (given["bundle"] is not None),
        "give the model: one of --bundle, --backbone and --model",
    )
    problems.check(given["backbone"] is None or given["model"] is None, "give --backbone or --model, not both")
    problems.check(not given["networks"] or not has_model, "--network names its models itself")
    problems.check(given["bundle"] is None or bool(given["layers"]), "--bundle goes with --layers")
    problems.check(
        given["bundle"] is None or (":" in (given["autoencoder"] or ":") and given["concepts"] is None),
        "--bundle brings its autoencoder and its concepts; leave --autoencoder and --concepts out (but for "
        "--autoencoder PACKAGE.MODULE:FACTORY, where it was fitted with your own)",
    )
    problems.check(given["data"] is not None, "--data is missing: a registered data set, or a folder of images")
    problems.check(given["epochs"] is None or given["steps"] is None, "give --epochs or --steps, not both")
    problems.check(
        given["weights"] != "train", "--weights train is for fit: train the model once, then sweep its bundle"
    )
    wrong = device_option(given["device"])
    problems.check(wrong is None, wrong or "")
    problems.raise_if_any()


@dataclass(frozen=True)
class _Parts:
    """What all points share: images, sizes, autoencoder and e."""

    images: Images
    config: FitConfig
    size: int
    autoencoder: Any
    concept_model: ConceptModel | None


def _run(given: dict[str, Any]) -> SweepResult:
    from posthoc_inn.cli.terminal import choose_reporter
    from posthoc_inn.sweep import layer_sweep, model_sweep, training_sweep

    if given["networks"]:
        models = {name: _network(name, layer, weights, given) for name, layer, weights in _networks(given["networks"])}
        parts = _parts(given, next(iter(models.values()))[2]["spec"], None)
    else:
        model, spec, stored = _model(given)
        if stored is not None and given["prediction_kind"] == "auto":
            given["prediction_kind"] = stored.extractor.get("prediction_kind", "auto")
        parts = _parts(given, spec, stored)
    common: dict[str, Any] = {
        "held_out": parts.images.held_out,
        "concepts": given["concepts"],
        "concept_model": parts.concept_model,
        "out": given["out"],
        "fit": _fit_arguments(given, parts.images),
        "reporter": choose_reporter(_stages(given, parts), quiet=given["quiet"]),
        "preset": parts.config,
        "image_size": parts.size,
        "device": given["device"],
        "precision": given["precision"],
        "prediction_kind": given["prediction_kind"],
        "seed": given["seed"],
    }
    common["autoencoder"] = parts.autoencoder
    data = parts.images.train
    if given["networks"]:
        return model_sweep(models, data, **common)
    try:
        if given["layers"]:
            layers = [name.strip() for name in given["layers"].split(",") if name.strip()]
            return layer_sweep(model, layers, data, spec=spec, **common)
        steps = dict(_step(text) for text in given["checkpoints"])
        return training_sweep(model, steps, given["layer"], data, spec=spec, **common)
    except LayerNotFoundError as error:
        from posthoc_inn.cli.models import missing_layer

        which = f"--backbone {given['backbone'] or 'NAME'}" if given["model"] is None else f"--model {given['model']}"
        raise missing_layer(error, f"posthoc-inn layers {which}") from None


def _stages(given: dict[str, Any], parts: _Parts) -> int:
    """Return how many stages there are: four a point, and what the first one trains for all."""
    points = given["layers"].split(",") if given["layers"] else given["checkpoints"] or given["networks"]
    return 4 * len(points) + (parts.concept_model is None and parts.autoencoder is None) + bool(given["concepts"])


def _networks(texts: tuple[str, ...]) -> list[tuple[str, str, str]]:
    found = []
    for text in texts:
        name, _, rest = text.partition("=")
        layer, _, weights = rest.partition("=")
        if not name or not layer or not weights:
            raise ConfigError(f"--network takes NAME=LAYER=WEIGHTS (WEIGHTS may be none), got {text!r}.")
        found.append((name, layer, weights))
    return found


def _network(name: str, layer: str, weights: str, given: dict[str, Any]) -> Any:
    from posthoc_inn.cli.models import backbone_spec, build_model
    from posthoc_inn.plugins import get_plugin_manager

    manager = get_plugin_manager()
    spec = backbone_spec(manager, name, weights, input_size=given["input_size"], mean=given["mean"], std=given["std"])
    model = build_model(manager, backbone=name, model=None, weights=weights, num_classes=given["num_classes"])
    return model, layer, {"spec": spec}


def _step(text: str) -> tuple[float, str]:
    step, _, path = text.partition("=")
    try:
        number = float(step)
    except ValueError:
        number = -1.0
    if not number >= 0 or not path:
        raise ConfigError(f"--checkpoint takes STEP=FILE, such as 1000=step1000.pth; got {text!r}.")
    return number, path


def _model(given: dict[str, Any]) -> tuple[nn.Module, ImageSpec, Any]:
    """Return the model, how it wants canonical images, and the bundle that it came from, or None."""
    from posthoc_inn.cli.bundles import load
    from posthoc_inn.cli.models import backbone_spec, build_model, own_spec
    from posthoc_inn.plugins import get_plugin_manager

    if given["bundle"] is not None:
        interpreter, stored = load(
            given["bundle"], given["model"], given["weights"], given["device"], given["autoencoder"]
        )
        return interpreter.model, stored.adapter.spec, stored
    manager = get_plugin_manager()
    how = {"input_size": given["input_size"], "mean": given["mean"], "std": given["std"]}
    if given["backbone"] is None:
        spec = own_spec(channels=3, **how)
    else:
        spec = backbone_spec(manager, given["backbone"], given["weights"], **how)
        if given["weights"] is None and not given["checkpoints"]:
            raise ConfigError(
                f"--backbone {given['backbone']} needs --weights: a file, a published name, or none (random)."
            )
    model = build_model(
        manager,
        backbone=given["backbone"],
        model=given["model"],
        weights=given["weights"],
        num_classes=given["num_classes"],
    )
    return model, spec, None


def _parts(given: dict[str, Any], spec: ImageSpec, stored: Any) -> _Parts:
    """Open the images, and what all points share."""
    from posthoc_inn.cli.data import is_folder
    from posthoc_inn.cli.fit.inputs import check_canonical, given_autoencoder, open_autoencoder, open_images
    from posthoc_inn.cli.fit.options import FitOptions
    from posthoc_inn.fit.preparing import choose_image_size
    from posthoc_inn.images import BatchSource
    from posthoc_inn.plugins import get_plugin_manager

    manager = get_plugin_manager()
    if given["held_out"] is not None and not is_folder(manager, given["data"]):
        raise ConfigError(f"--held-out is for folders; the data set {given['data']} has its own held-out part.")
    names = ("autoencoder", "autoencoder_options", "image_size", "input_size", "held_out", "data_dir", "seed")
    chosen = FitOptions(**{name: given[name] for name in names}, data_options=list(given["data_options"]))
    shared = given_autoencoder(chosen, manager) if stored is None else stored.autoencoder
    images = open_images(chosen, given["data"], given["draws"], manager, spec, shared)
    for note in images.notes:
        echo(f"Note: {note}", err=True)
    source = BatchSource(images.train, batch_size=128, seed=given["seed"]).check()
    check_canonical(source, images.name)
    channels, height, width = source.image_shape
    config = chosen_preset(given["preset"] or "default", given["code_noise"], given["faithful"])
    if stored is not None:
        size = stored.autoencoder.config.size
        if stored.adapter.normalization is not None:
            raise DataError(
                f"The bundle {given['bundle']} was fitted in Python to normalised tensors; sweep it there, with "
                "posthoc_inn.sweep.layer_sweep."
            )
        return _Parts(images, config, size, stored.autoencoder, stored.concepts)
    size = given["image_size"] or choose_image_size(height, width)
    return _Parts(images, config, size, open_autoencoder(chosen, shared, config, size, channels), None)


def _fit_arguments(given: dict[str, Any], images: Images) -> dict[str, Any]:
    names = ("epochs", "steps", "autoencoder_steps", "concept_steps")
    return {name: given[name] for name in names} | {
        "draws": images.draws,
        "image_metrics": tuple(given["image_metrics"]),
        "concept_options": dict(given["concept_options"]),
    }


def _write(result: SweepResult, given: dict[str, Any], seconds: float) -> None:
    """Write report, figure and figures, and print the table."""
    from posthoc_inn import __version__
    from posthoc_inn.cli.bundles import write_picture
    from posthoc_inn.drawing import to_png
    from posthoc_inn.report.analyses import section_of, write_analyses

    out: Path = given["out"]
    title = f"What each {result.axis} knows"
    lead = [f"{len(result.points)} fits of t with one autoencoder; images: {given['data']}."]
    page, plain = write_analyses(title, lead, [section_of("Sweep", result, seconds)], out, __version__)
    write_picture(out / FIGURE, to_png(result.figure()))
    write_picture(out / RESULT, (json.dumps(result.to_dict(), indent=1) + "\n").encode())
    if given["as_json"]:
        echo_json({"out": str(out), "report": str(page), **result.to_dict()})
        return
    echo(result.table())
    echo(f"\nreport    {page}   (open it in a browser)\nfigures   {plain}\nfigure    {out / FIGURE}")
