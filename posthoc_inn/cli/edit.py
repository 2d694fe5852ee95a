"""`posthoc-inn edit`: pictures with a concept taken from others, drawn again, or walked to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc_inn.cli.bundles import bundle_options, listed_images, load, read_images, write_picture
from posthoc_inn.cli.echo import echo, echo_json
from posthoc_inn.cli.outside import look_outside
from posthoc_inn.errors import Problems, listed

if TYPE_CHECKING:
    from posthoc_inn.interpreter import Interpreter


@click.command("edit")
@click.option("--images", "files", type=click.Path(path_type=Path), multiple=True, help="An image or a folder of them.")
@click.option("--concept", help="Which concept; `residual` is what no concept describes.")
@click.option("--source", type=click.Path(path_type=Path), help="Take the concept from this image.")
@click.option("-n", "--draws", "count", type=click.IntRange(1, 32), help="Draw the concept at random so many times.")
@click.option("--to", "target", type=click.Path(path_type=Path), help="Walk to this image instead.")
@click.option("--steps", type=click.IntRange(2, 32), default=8, show_default=True, help="Of a walk.")
@click.option(
    "--kind", type=click.Choice(["linear", "spherical"]), default="linear", show_default=True, help="Of a walk."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("edits.png"), show_default=True, help="The picture."
)
@bundle_options
def command(
    bundle: Path,
    files: tuple[Path, ...],
    concept: str | None,
    source: Path | None,
    count: int | None,
    target: Path | None,
    steps: int,
    kind: str,
    out: Path,
    model: str | None,
    weights: str | None,
    autoencoder: str | None,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Change a concept of images and see the result.

    The bundle must have been fitted with --concepts.

    \b
    posthoc-inn edit --bundle runs/mine --images a.png --concept background --source b.png
    posthoc-inn edit --bundle runs/mine --images a.png --concept digit -n 8
    posthoc-inn edit --bundle runs/mine --images a.png --to b.png --steps 9
    """  # noqa: D301 (click reads a real \b)
    from posthoc_inn.cli.options import device_option

    problems = Problems("posthoc-inn edit")
    problems.check(bool(files), "--images is missing: the images to start from")
    ways = [source is not None, count is not None, target is not None]
    problems.check(
        sum(ways) == 1, "give exactly one of --source (take from it), -n (draw at random) and --to (walk there)"
    )
    problems.check(concept is not None or target is not None, "--concept is missing: what to change")
    problems.check(out.suffix.lower() == ".png", f"--out takes the name of a .png file, got {out}")
    wrong = device_option(device)
    problems.check(wrong is None, wrong or "")
    problems.raise_if_any()

    interpreter, stored = load(bundle, model, weights, device, autoencoder)
    names = list(interpreter.concept_model.factor_names)
    result = draw(
        interpreter,
        stored,
        list(files),
        concept=concept,
        source=source,
        count=count,
        target=target,
        steps=steps,
        kind=kind,
        out=out,
        seed=seed,
    )
    if as_json:
        echo_json({**result, "concepts": names})
    else:
        echo(f"{out}: {result['images']} images, {result['told']}. Concepts of this bundle: {listed(names, 20)}.")
        if result["outside"]:
            echo(result["outside"])


def draw(
    interpreter: Interpreter,
    stored: Any,
    files: list[Path],
    *,
    concept: str | None,
    source: Path | None,
    count: int | None,
    target: Path | None,
    steps: int,
    kind: Any,
    out: Path,
    seed: int,
) -> dict[str, Any]:
    """Write the picture, and return what it shows."""
    import torch

    from posthoc_inn.drawing import columns_of, grid, shortened, to_png

    paths = listed_images(files)
    images = read_images(stored, paths)
    adapter, pipeline = interpreter.pipeline.adapter, interpreter.pipeline
    shown = adapter.to_images(images.to(pipeline.device)).cpu()
    plain = pipeline.decode(pipeline.encode(images)[0]).cpu()
    columns, labels = [shown[:, None], plain[:, None]], ["image", "recon-\nstructed"]
    look = look_outside(interpreter, images, [path.name for path in paths])
    with torch.no_grad(), look.told_once():
        if source is not None:
            other = read_images(stored, [source])
            columns.append(
                adapter.to_images(other.to(pipeline.device)).cpu()[:, None].expand(len(shown), -1, -1, -1, -1)
            )
            columns.append(interpreter.edit(images, str(concept), source=other).cpu()[:, None])
            labels += ["source", f"{shortened(str(concept))}\nof source"]
            change = f"{concept} taken from {source.name}"
        elif count is not None:
            columns.append(interpreter.edit(images, str(concept), n=count, seed=seed).cpu())
            labels += [f"{shortened(str(concept))}\ndrawn"] * count
            change = f"{concept} drawn {count} times"
        else:
            other = read_images(stored, [Path(str(target))])
            columns.append(interpreter.walk(images, other, steps=steps, kind=kind, concept=concept).cpu())
            labels += [f"step {k + 1}" for k in range(steps)]
            change = f"walked to {Path(str(target)).name}" + (f" in {concept} alone" if concept else "")
    names = [shortened(path.name, 24) for path in paths]
    picture = to_png(grid(columns_of(torch.cat(columns, dim=1), headings=labels, gaps=(2,)), row_labels=names))
    write_picture(out, picture)
    return {
        "out": str(out),
        "images": len(paths),
        "told": change,
        "concept": concept,
        "seed": seed,
        "outside": look.line,
        "files": [{"file": str(p), **own} for p, own in zip(paths, look.each(len(paths)), strict=True)],
    }
