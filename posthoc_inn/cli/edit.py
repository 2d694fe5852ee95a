"""`posthoc-inn edit`: pictures with a concept taken from others, drawn anew, or walked to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc_inn.cli.options import options
from posthoc_inn.errors import DataError, Problems

if TYPE_CHECKING:
    from torch import Tensor

    from posthoc_inn.interpreter import Interpreter


def bundle_options(command: Any) -> Any:
    """Add the options of every command that asks a fitted bundle."""
    return options(
        click.option("--bundle", type=click.Path(path_type=Path), required=True, help="What fit wrote: a bundle, or a "
                     "run."),
        click.option("--model", metavar="PACKAGE.MODULE:FACTORY", help="Your own model, when the bundle was fitted to "
                     "one: a bundle never names code to import."),
        click.option("--weights", metavar="FILE|NAME", help="The model's weights, when the bundle does not hold them."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    )(command)  # fmt: skip


@click.command("edit")
@click.option("--images", "files", type=click.Path(path_type=Path), multiple=True, help="An image or a folder of them.")
@click.option("--concept", help="Which concept; `residual` is what no concept describes.")
@click.option("--source", type=click.Path(path_type=Path), help="Take the concept from this image.")
@click.option("-n", "--draws", "count", type=click.IntRange(1, 32), help="Draw the concept anew so many times.")
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
    problems.check(sum(ways) == 1, "give exactly one of --source (take from it), -n (draw anew) and --to (walk there)")
    problems.check(concept is not None or target is not None, "--concept is missing: what to change")
    problems.check(out.suffix.lower() == ".png", f"--out takes the name of a .png file, got {out}")
    wrong = device_option(device)
    problems.check(wrong is None, wrong or "")
    problems.raise_if_any()

    from posthoc_inn.cli.sample import load

    where = bundle / "bundle" if (bundle / "bundle").is_dir() else bundle
    interpreter, stored = load(where, model, weights, device)
    names = list(interpreter.concepts.factor_names)
    result = draw(interpreter, stored, list(files), concept, source, count, target, steps, kind, out, seed)
    if as_json:
        click.echo(json.dumps({**result, "concepts": names}, indent=2))
    else:
        click.echo(f"{out}: {result['images']} images, {result['told']}. Concepts of this bundle: {', '.join(names)}.")


def draw(
    interpreter: Interpreter,
    stored: Any,
    files: list[Path],
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

    from posthoc_inn.cli.sample import MAX_ROWS
    from posthoc_inn.drawing import picture_grid, to_png
    from posthoc_inn.images import find_image_files

    paths = [f for file in files for f in (find_image_files(file) if file.is_dir() else [file])]
    if not paths or len(paths) > MAX_ROWS:
        raise DataError(f"A picture takes 1 to {MAX_ROWS} images, got {len(paths)}.")
    images = read(stored, paths)
    adapter, pipeline = interpreter.pipeline.adapter, interpreter.pipeline
    shown = adapter.to_images(images.to(pipeline.device)).cpu()
    plain = pipeline.decode(pipeline.encode(images)[0]).cpu()
    columns, labels = [shown[:, None], plain[:, None]], ["image", "recon-\nstructed"]
    with torch.no_grad():
        if source is not None:
            other = read(stored, [source])
            columns.append(
                adapter.to_images(other.to(pipeline.device)).cpu()[:, None].expand(len(shown), -1, -1, -1, -1)
            )
            columns.append(interpreter.edit(images, str(concept), source=other).cpu()[:, None])
            labels += ["source", f"{concept}\nof source"]
            told = f"{concept} taken from {source.name}"
        elif count is not None:
            columns.append(interpreter.edit(images, str(concept), n=count, seed=seed).cpu())
            labels += [f"{concept}\ndrawn"] * count
            told = f"{concept} drawn {count} times"
        else:
            other = read(stored, [Path(str(target))])
            columns.append(interpreter.walk(images, other, steps=steps, kind=kind, concept=concept).cpu())
            labels += [f"step {k + 1}" for k in range(steps)]
            told = f"walked to {Path(str(target)).name}" + (f" in {concept} alone" if concept else "")
    names = [path.name[:24] for path in paths]
    picture = to_png(picture_grid(torch.cat(columns, dim=1), row_labels=names, column_labels=labels, gaps=(2,)))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(picture)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}.") from error
    return {"out": str(out), "images": len(paths), "told": told, "concept": concept, "seed": seed}


def read(stored: Any, paths: list[Path]) -> Tensor:
    """Return images from files as the bundle's interpreter takes them, (B, C, H, W)."""
    from posthoc_inn.cli.sources import needed_side
    from posthoc_inn.images import apply_spec, stack_image_files

    adapter = stored.adapter
    side = max(adapter.image_size, needed_side(adapter.spec) or 0)
    images = stack_image_files(paths, side, channels=adapter.channels)
    return images if adapter.normalization is None else apply_spec(images, adapter.spec)
