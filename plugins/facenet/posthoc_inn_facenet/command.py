"""`posthoc-inn align`: the faces of a folder of photographs, a picture each. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

import click

from posthoc_inn.cli.echo import echo, echo_json


@click.command("align", short_help="Cut the faces out of photographs, as face networks want them.")
@click.argument("photos", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--size", type=click.IntRange(16, 4096), default=160, show_default=True, help="Side of a face in pixels.")
@click.option(
    "--margin", type=click.IntRange(min=0), default=0, show_default=True, help="Pixels around the face in it."
)
@click.option(
    "--min-face",
    type=click.IntRange(min=12),
    default=20,
    show_default=True,
    metavar="PIXELS",
    help="Side of the smallest face that is looked for; a larger one is faster.",
)
@click.option("--overwrite", is_flag=True, help="Align anew; removes what align wrote there, and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(
    photos: Path,
    out: Path,
    size: int,
    margin: int,
    min_face: int,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Cut the largest face out of each photograph below PHOTOS, as MTCNN finds it, and write it below OUT.

    Photographs without a face, and files that cannot be read, are left out and counted. Started again it goes on where
    it was.

    \b
    posthoc-inn align photos/ faces/
    posthoc-inn fit --backbone facenet --weights vggface2 --layer avgpool_1a --data faces/
    """  # noqa: D301 (click reads a real \b)
    from posthoc_inn.cli.terminal import choose_reporter
    from posthoc_inn_facenet.align import align_folder, check_any

    reporter = choose_reporter(1, quiet=quiet or as_json)
    try:
        with reporter:
            result = align_folder(
                photos, out, size=size, margin=margin, min_face=min_face, overwrite=overwrite, reporter=reporter
            )
    except KeyboardInterrupt:
        again = f"posthoc-inn align {photos} {out}" + " (with the same options, without --overwrite)"
        raise KeyboardInterrupt(f"Interrupted. To go on: {again}") from None
    check_any(result, photos)
    if as_json:
        echo_json(result.to_dict())
        return
    echo(result.told())
    for reason, names in sorted(result.left_out.items()):
        more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
        echo(f"  {reason}: {', '.join(names[:5])}{more}")
    echo(f"faces     {out}")
