"""`posthoc-inn sample`: a picture grid of what a fitted layer cannot tell apart from given images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc_inn.cli.bundles import bundle_options, listed_images, load, read_images, write_picture
from posthoc_inn.cli.echo import echo, echo_json
from posthoc_inn.cli.outside import look_outside

if TYPE_CHECKING:
    from posthoc_inn.bundle import Bundle
    from posthoc_inn.interpreter import Interpreter


@click.command("sample")
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
@bundle_options
def command(
    bundle: Path,
    files: tuple[Path, ...],
    more: tuple[Path, ...],
    count: int,
    out: Path,
    seed: int,
    model: str | None,
    weights: str | None,
    autoencoder: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Draw images that a layer cannot tell apart from given ones.

    Writes a grid: the input, its reconstruction, and samples with the same representation at the layer.

    \b
    posthoc-inn sample --bundle runs/color-digits/bundle --images a.png b.png --out grid.png
    """  # noqa: D301 (click reads a real \b)
    from posthoc_inn.cli.options import device_option
    from posthoc_inn.errors import Problems

    problems = Problems("posthoc-inn sample")
    problems.check(bool(files or more), "--images is missing: the images to start from")
    wrong = device_option(device)
    problems.check(wrong is None, wrong or "")
    problems.check(out.suffix.lower() == ".png", f"--out takes the name of a .png file, got {out}")
    problems.raise_if_any()

    interpreter, stored = load(bundle, model, weights, device, autoencoder)
    result = draw(interpreter, stored, [*files, *more], count, seed, out)
    if as_json:
        echo_json(result)
    else:
        echo(f"{out}: {len(result['images'])} images, {count} samples each, layer {stored.extractor['layer']}")
        if result["outside"]:
            echo(result["outside"])
        if result["agreement"] is not None:
            echo(
                f"The model predicts for {100 * result['agreement']:.0f} % of the samples what it predicts for the "
                "image."
            )
        if result["output_similarity"] is not None:
            click.echo(
                f"The model's output for the samples has a cosine similarity of {result['output_similarity']:.3f} to "
                "that for their image."
            )
        if result["prediction_kind"] == "none":
            click.echo("The model's predictions for the samples are not compared.")


def draw(
    interpreter: Interpreter, stored: Bundle, files: list[Path], count: int, seed: int, out: Path
) -> dict[str, Any]:
    """Write the grid, and return what it shows."""
    from posthoc_inn.analysis.samples import class_names_of, samples
    from posthoc_inn.drawing import to_png

    paths = listed_images(files)
    given = read_images(stored, paths)
    look = look_outside(interpreter, given, [p.name for p in paths])
    with look.told_once():
        found = samples(
            interpreter.pipeline, given, count, seed, class_names_of(stored.origin), names=[p.name for p in paths]
        )
    write_picture(out, to_png(found.figure()))
    predictions = found.predictions or [None] * len(paths)
    return {
        "out": str(out),
        "layer": stored.extractor["layer"],
        "samples": count,
        "prediction_kind": found.prediction_kind,
        "agreement": found.agreement,
        "label_overlap": found.label_overlap,
        "output_similarity": found.output_similarity,
        "outside": look.line,
        "images": [
            {"file": str(p), "prediction": k, **own}
            for p, k, own in zip(paths, predictions, look.each(len(paths)), strict=True)
        ],
    }
