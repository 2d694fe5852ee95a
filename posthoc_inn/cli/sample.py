"""`posthoc-inn sample`: a picture grid of what a fitted layer cannot tell apart from given images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc_inn.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from posthoc_inn.bundle import Bundle
    from posthoc_inn.interpreter import Interpreter

MAX_ROWS = 50


@click.command("sample")
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="What fit wrote: a bundle, or a run.")
@click.option(
    "--images",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    help="An image or a folder of them; can be repeated, or followed by more.",
)
@click.argument("more", nargs=-1, type=click.Path(path_type=Path))
@click.option("-n", "--samples", "count", type=click.IntRange(1, 64), default=8, show_default=True, help="Per image.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("samples.png"), show_default=True, help="The picture."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the samples.")
@click.option(
    "--model",
    metavar="PACKAGE.MODULE:FACTORY",
    help="Your own model, when the bundle was fitted to one: a bundle never names code to import.",
)
@click.option("--weights", metavar="FILE|NAME", help="The model's weights, when the bundle does not hold them.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle: Path,
    files: tuple[Path, ...],
    more: tuple[Path, ...],
    count: int,
    out: Path,
    seed: int,
    model: str | None,
    weights: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Draw images that a layer cannot tell apart from given ones.

    Writes a grid: the input, its reconstruction, and samples with the same representation at the layer.

    \b
    posthoc-inn sample --bundle runs/color-digits/bundle --images a.png b.png --out grid.png
    """  # noqa: D301 (click reads a real \b)  # fmt: skip
    from posthoc_inn.cli.options import device_option
    from posthoc_inn.errors import Problems

    problems = Problems("posthoc-inn sample")
    problems.check(bool(files or more), "--images is missing: the images to start from")
    wrong = device_option(device)
    problems.check(wrong is None, wrong or "")
    problems.check(out.suffix.lower() == ".png", f"--out takes the name of a .png file, got {out}")
    problems.raise_if_any()

    where = bundle / "bundle" if (bundle / "bundle").is_dir() else bundle
    interpreter, stored = load(where, model, weights, device)
    result = draw(interpreter, stored, [*files, *more], count, seed, out)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(f"{out}: {len(result['images'])} images, {count} samples each, layer {stored.extractor['layer']}")
        if result["agreement"] is not None:
            click.echo(
                f"The model predicts for {100 * result['agreement']:.0f} % of the samples what it predicts for the "
                "image."
            )


def load(where: Path, model: str | None, weights: str | None, device: str) -> tuple[Interpreter, Bundle]:
    """Load a bundle and rebuild the model it was fitted to.

    Raises:
        BundleError: The bundle is damaged, or for another model.
        DataError: The model cannot be rebuilt from what the bundle tells.
    """
    from posthoc_inn.bundle import load_bundle
    from posthoc_inn.cli.fit_inputs import open_device
    from posthoc_inn.interpreter import Interpreter

    stored = load_bundle(where)
    module = rebuild(stored, where, model, weights)
    if device != "auto":
        module.to(open_device(device))
    return Interpreter.load(where, model=module, device=device), stored


def rebuild(stored: Bundle, where: Path, model: str | None, weights: str | None) -> nn.Module:
    """Build the explained model from a bundle's origin (a registered name, never code) or from what is given."""
    from posthoc_inn.bundle import load_model_state
    from posthoc_inn.cli import sources
    from posthoc_inn.plugins import get_plugin_manager
    from posthoc_inn.weights import load_into

    origin = stored.origin
    backbone = None if model is not None else origin.get("backbone")
    if model is None and not isinstance(backbone, str):
        was = origin.get("model")
        told = f" ({was})" if isinstance(was, str) and was != "None" else ""
        raise DataError(
            f"The bundle {where} was fitted to a model of your own{told}. Pass it: --model PACKAGE.MODULE:FACTORY, and "
            "--weights FILE where the factory does not load them."
        )
    holds_weights = origin.get("weights_file") is not None and weights is None
    named: Any = weights
    if weights is None and not holds_weights and model is None:
        named = origin.get("weights")
        if named not in (None, sources.NONE) and ("." in str(named) or named == sources.TRAIN):
            raise DataError(
                f"The bundle {where} was fitted to {backbone} with the weights {named}, which it does not hold. "
                "Pass them: "
                "--weights FILE."
            )
    classes = origin.get("num_classes")
    built = sources.build_model(
        get_plugin_manager(),
        backbone=backbone,
        model=model,
        weights=named,
        num_classes=classes if isinstance(classes, int) and 1 <= classes <= 1_000_000 else None,
    )
    if holds_weights:
        load_into(built, load_model_state(where), source=str(where))
    return built.eval()


def draw(
    interpreter: Interpreter, stored: Bundle, files: list[Path], count: int, seed: int, out: Path
) -> dict[str, Any]:
    """Write the grid, and return what it shows."""
    import torch

    from posthoc_inn.images import apply_spec, find_image_files, stack_image_files
    from posthoc_inn.pipeline import is_classification
    from posthoc_inn.report.figures import sample_grid, to_png

    paths = [f for file in files for f in (find_image_files(file) if file.is_dir() else [file])]
    if len(paths) > MAX_ROWS:
        raise DataError(f"A grid takes up to {MAX_ROWS} images, got {len(paths)}; pass fewer.")
    pipeline, adapter = interpreter.pipeline, interpreter.pipeline.adapter
    images = stack_image_files(list(paths), _side(stored), channels=adapter.channels)
    given: Tensor = images if adapter.normalization is None else apply_spec(images, adapter.spec)
    with torch.no_grad():
        samples = interpreter.sample(given, n=count, seed=seed).cpu()
        mean, _ = pipeline.encode(given)
        reconstructions = pipeline.decode(mean).cpu()
        pictures = adapter.to_images(given.to(pipeline.device)).cpu()
        output = pipeline.extractor.predict(adapter.to_model(given.to(pipeline.device)))
        asked = pipeline.ask_model(samples.flatten(0, 1))[1]
    rows, labels, agreement = [path.name[:24] for path in paths], [], None
    predictions: list[str | None] = [None] * len(paths)
    if is_classification(output):
        names = stored.origin.get("classes")
        names = names if isinstance(names, list) and len(names) == output.shape[1] else None

        def name(number: int) -> str:
            return str(names[number])[:14] if names else str(number)

        own, others = output.argmax(1).cpu(), asked.argmax(1).cpu().reshape(len(paths), count)
        predictions = [name(int(k)) for k in own]
        rows = [f"{row}: {prediction}" for row, prediction in zip(rows, predictions, strict=True)]
        labels = [["" if k == own[i] else name(int(k)) for k in others[i]] for i in range(len(paths))]
        agreement = float((others == own[:, None]).double().mean())
    grid = to_png(sample_grid(pictures, reconstructions, samples, row_labels=rows, sample_labels=labels))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(grid)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}.") from error
    return {
        "out": str(out),
        "layer": stored.extractor["layer"],
        "samples": count,
        "agreement": agreement,
        "images": [{"file": str(p), "prediction": k} for p, k in zip(paths, predictions, strict=True)],
    }


def _side(stored: Bundle) -> int:
    """Return the side at which files are read: what the model or the autoencoder needs, the larger one."""
    from posthoc_inn.cli.sources import needed_side

    return max(stored.adapter.image_size, needed_side(stored.adapter.spec) or 0)
