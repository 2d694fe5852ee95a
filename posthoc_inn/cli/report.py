"""`posthoc-inn report`: the report of a finished run or of a bundle, made anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc_inn.cli.bundles import bundle_of, load, options_of_a_model, shape_of
from posthoc_inn.cli.echo import echo, echo_json
from posthoc_inn.errors import DataError, Problems

if TYPE_CHECKING:
    from posthoc_inn.bundle import Bundle
    from posthoc_inn.cli.data import Images
    from posthoc_inn.cli.fit.options import FitOptions


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="NAME|FOLDER",
    help="Pictures to show: a data set's held-out part, or a folder.  [default: those of the run]",
)
@click.option("--data-dir", type=click.Path(), help="Directory the data set is read from.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The page.  [default: report.html in the run, or beside the bundle]"
)
@options_of_a_model
def command(
    run: Path,
    data: str | None,
    data_dir: str | None,
    out: Path | None,
    model: str | None,
    weights: str | None,
    autoencoder: str | None,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Write the report of RUN anew: what fit wrote, a directory or the bundle in it. Nothing is trained or measured.

    Figures are those of the fit; pictures are drawn again, for the images that the run held out.

    \b
    posthoc-inn report runs/color-digits
    posthoc-inn report bundle --data photos/ --out report.html
    """  # noqa: D301 (click reads a real \b)
    from posthoc_inn.cli.fit.directory import RunDirectory
    from posthoc_inn.cli.options import device_option

    problems = Problems("posthoc-inn report")
    wrong = device_option(device)
    problems.check(wrong is None, wrong or "")
    problems.check(
        out is None or out.suffix.lower() in (".html", ".htm"), f"--out takes the name of an .html file, got {out}"
    )
    problems.check(data_dir is None or data is not None, "--data-dir needs --data, the data set to read from there")
    problems.raise_if_any()
    record = RunDirectory(run).record() if run.is_dir() else None
    interpreter, stored = load(run, model, weights, device, autoencoder)
    interpreter.seed = seed

    from posthoc_inn.fit.measuring import EXAMPLES
    from posthoc_inn.images import BatchSource, apply_spec
    from posthoc_inn.report.fitted import ReportWords, write_fitted_report

    options = _options(record, run, data, data_dir)
    images = _images(stored, options)
    shown = BatchSource(images.held_out, batch_size=128, seed=seed).first(EXAMPLES)
    if stored.adapter.normalization is not None:
        shown = apply_spec(shown, stored.adapter.spec)
    where = bundle_of(run)
    target = out or where.parent / "report.html"
    is_beside = target.resolve().parent == where.resolve().parent
    words = ReportWords(
        data=images.told,
        class_names=tuple(images.classes),
        files={"bundle": "bundle/", "all figures": "metrics.json"} if is_beside and where != run else {},
    )
    write_fitted_report(interpreter, shown, None, target, words=words)
    if as_json:
        echo_json({"report": str(target), "images": len(shown), "layer": stored.extractor["layer"]})
    else:
        echo(f"{target}   (open it in a browser)")


def _options(record: dict[str, Any] | None, run: Path, data: str | None, data_dir: str | None) -> FitOptions:
    """Return the options of the fit, as far as its images go."""
    from posthoc_inn.cli.fit.options import FitOptions

    known = {} if record is None else record["options"]
    if data is not None:
        return FitOptions(data=data, data_dir=data_dir)
    names = ("data", "data_dir", "data_options", "held_out", "seed", "image_size")
    return FitOptions(**{name: known[name] for name in names if name in known}, out=run)


def _images(stored: Bundle, options: FitOptions) -> Images:
    """Open the images to show.

    Raises:
        DataError: Nobody says which, or they cannot be read.
    """
    from posthoc_inn.autoencoders import as_autoencoder
    from posthoc_inn.cli.data import EMBEDDED, is_folder
    from posthoc_inn.cli.fit.inputs import open_images
    from posthoc_inn.plugins import get_plugin_manager

    name = options.data or (EMBEDDED if stored.origin.get("data") == EMBEDDED else None)
    if name is None:
        raise DataError(
            "Nothing here says which images to show: a bundle keeps none. Pass --data, a folder or a data set."
        )
    manager = get_plugin_manager()
    is_folder(manager, name)  # told at once where it is neither
    given = as_autoencoder(stored.autoencoder) if hasattr(stored.autoencoder, "native") else None
    size = min(shape_of(stored))
    options = type(options)(**{**vars(options), "image_size": options.image_size or size})
    return open_images(options, name, 1, manager, stored.adapter.spec, given)
