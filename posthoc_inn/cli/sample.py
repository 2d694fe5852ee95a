"""`posthoc-inn sample`: a picture grid of what is nearly the same as given images to a fitted layer."""

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
    "--refine",
    type=click.IntRange(0, 10_000),
    default=0,
    metavar="STEPS",
    help="Gradient steps that bring each sample nearer to its image, for the layer: 20 to 40 do.  [default: none]",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("samples.png"), show_default=True, help="The picture."
)
@bundle_options
def command(
    bundle: Path,
    files: tuple[Path, ...],
    more: tuple[Path, ...],
    count: int,
    refine: int,
    out: Path,
    seed: int,
    model: str | None,
    weights: str | None,
    autoencoder: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Draw images that are nearly the same as given ones to a layer.

    Writes a grid: the input, its reconstruction, and samples with what the layer sees of the input.

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
    result = draw(interpreter, stored, [*files, *more], count, seed, out, refine)
    if as_json:
        echo_json(result)
    else:
        shown = len(result["images"])
        told = "1 image" if shown == 1 else f"{shown} images"
        echo(f"{out}: {told}, {count} samples each, layer {stored.extractor['layer']}")
        if result["outside"]:
            echo(result["outside"])
        between = result["similarity_between"]
        beside = "" if between is None else f"; different images here have {between:.3f}"
        echo(f"To the layer, the samples' cosine similarity to their image is {result['similarity']:.3f}{beside}.")
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
        if result["refinement"] is not None:
            click.echo(result["refinement"]["told"])


def draw(
    interpreter: Interpreter, stored: Bundle, files: list[Path], count: int, seed: int, out: Path, refine: int = 0
) -> dict[str, Any]:
    """Write the grid, and return what it shows."""
    from posthoc_inn.analysis.samples import class_names_of, samples
    from posthoc_inn.drawing import to_png

    paths = listed_images(files)
    given = read_images(stored, paths)
    look = look_outside(interpreter, given, [p.name for p in paths])
    with look.told_once():
        found = samples(
            interpreter.pipeline,
            given,
            count,
            seed,
            class_names_of(stored.origin),
            names=[p.name for p in paths],
            refine=refine,
        )
    write_picture(out, to_png(found.figure()))
    predictions, refined = found.predictions or [None] * len(paths), found.refinement
    return {
        "out": str(out),
        "layer": stored.extractor["layer"],
        "samples": count,
        "prediction_kind": found.prediction_kind,
        "agreement": found.agreement,
        "label_overlap": found.label_overlap,
        "output_similarity": found.output_similarity,
        "similarity": found.similarity,
        "similarity_between": found.similarity_between,
        "refinement": None if refined is None else {**refined.to_dict(), "told": refined.caption},
        "outside": look.line,
        "images": [
            {"file": str(p), "prediction": k, **own}
            for p, k, own in zip(paths, predictions, look.each(len(paths)), strict=True)
        ],
    }
