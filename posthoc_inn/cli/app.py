"""`posthoc-inn app`: a page to play with fitted bundles, on this machine alone unless told otherwise."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc_inn.cli.bundles import bundle_of, load, shape_of
from posthoc_inn.cli.echo import echo
from posthoc_inn.errors import DataError, PosthocInnError, Problems, listed
from posthoc_inn.names import file_name

if TYPE_CHECKING:
    from posthoc_inn.app.fitted import FittedLayer, Shown
    from posthoc_inn.bundle import Bundle
    from posthoc_inn.interpreter import Interpreter

DEMO = Path("runs/color-digits")
"""Run of the embedded example, which is opened where no bundle is named."""
DEMO_FIT = ("--data", "color-digits", "--concepts", "digit,foreground,background", "--concept-steps", "1500")
"""Options of its fit: as `posthoc-inn fit` alone, with concepts to move, for which fewer steps than usual will do."""
EXAMPLES, LOOKED_AT = 12, 60
"""Pictures to choose from, and those that they are chosen from: one of each predicted class first."""
MOST = 40
"""Bundles at the most."""


@click.command("app")
@click.option(
    "--bundle",
    "bundles",
    type=click.Path(path_type=Path),
    multiple=True,
    help="What fit wrote, or the directory of a sweep; can be repeated.  [default: the embedded example, made first "
    "where it is missing]",
)
@click.option(
    "--data",
    metavar="NAME|FOLDER",
    help="Pictures to choose from: a data set's held-out part, or a folder.  [default: those of the embedded data, for "
    "bundles fitted to it]",
)
@click.option("--data-dir", type=click.Path(), help="Directory the data set is read from.")
@click.option("--model", "models", metavar="PACKAGE.MODULE:FACTORY", multiple=True, help="As in sample: one a bundle.")
@click.option("--weights", metavar="FILE|NAME", multiple=True, help="As in sample: one a bundle.")
@click.option(
    "--autoencoder", metavar="PACKAGE.MODULE:FACTORY", help="Your own, when the bundles were fitted with one."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    help="Port to listen at; 0 for any free one.  [default: the first free one from 7860 on]",
)
@click.option("--keep", is_flag=True, help="Go on when the last page was closed; so it is with another --host too.")
@click.option("--browser/--no-browser", default=None, help="Open a browser.  [default: from a terminal]")
def command(
    bundles: tuple[Path, ...],
    data: str | None,
    data_dir: str | None,
    models: tuple[str, ...],
    weights: tuple[str, ...],
    autoencoder: str | None,
    device: str,
    host: str,
    port: int | None,
    keep: bool,
    browser: bool | None,
) -> None:
    """Play with fitted layers in a browser: samples, concepts, attacks, comparisons, clips, figures.

    With no option it opens the embedded example, and makes it first where there is none. The page is for this machine
    alone and asks nothing of the network. It ends when its last page is closed, or with Ctrl-C.

    \b
    posthoc-inn app
    posthoc-inn app --bundle runs/mine --data photos/
    posthoc-inn app --bundle runs/color-digits --bundle runs/sweep
    """  # noqa: D301 (click reads a real \b)
    from posthoc_inn.cli.options import device_option

    problems = Problems("posthoc-inn app")
    wrong = device_option(device)
    problems.check(wrong is None, wrong or "")
    given = expanded(bundles) if bundles else []
    problems.check(len(given) <= MOST, f"--bundle: up to {MOST} layers can be shown, got {len(given)}")
    for option, values in (("--model", models), ("--weights", weights)):
        problems.check(
            len(values) in (0, 1, len(given)),
            f"{option} is given once, for all bundles, or once for each of the {len(given)}, got {len(values)}",
        )
    problems.raise_if_any()

    from posthoc_inn.app.page import gradio
    from posthoc_inn.app.serving import is_private, open_socket, serve

    gradio()  # told before anything long
    with open_socket(host, port) as listening:
        if not given:
            make_demo(DEMO)
            given = [DEMO]
        from posthoc_inn.app.fitted import Opened

        layers = open_layers(given, models, weights, device, autoencoder)
        opened = Opened.of(layers, examples_for(layers, data, data_dir))
        if not opened.examples:
            echo("No pictures to choose from: pass --data NAME|FOLDER, or send your own on the page.", err=True)

        def started(address: str) -> None:
            echo(f"The page is at {address}   (Ctrl-C stops it)")
            if not is_private(host):
                echo("Warning: whoever reaches this address can use it; there is no password.", err=True)
            if browser or (browser is None and sys.stdout.isatty()):
                click.launch(address)

        is_over = serve(opened, listening, is_kept=keep or not is_private(host), started=started)
    echo("The last page was closed: stopped. (--keep goes on.)" if is_over else "Stopped.")


def expanded(paths: tuple[Path, ...]) -> list[Path]:
    """Return bundles and runs as they are, and for the directory of a sweep each of its points, in their order."""
    found: list[Path] = []
    for path in paths:
        points = [] if _is_bundle(path) else [p.parent.parent for p in path.glob("*/bundle/bundle.json")]
        found += sorted(points, key=_position) or [path]
    return found


def _is_bundle(path: Path) -> bool:
    return any((where / "bundle.json").is_file() for where in (path, bundle_of(path)))


def _position(point: Path) -> tuple[float, str]:
    """Return where a point of a sweep lies, as its result tells."""
    try:
        return float(json.loads((point / "result.json").read_text())["position"]), point.name
    except (OSError, ValueError, TypeError, KeyError):
        return float("inf"), point.name


def make_demo(run: Path) -> None:
    """Fit the embedded example with its concepts where it is not there, showing how far it is; go on with a begun one.

    Raises:
        PosthocInnError: It cannot be fitted.
        KeyboardInterrupt: After Ctrl-C; started again, it goes on.
    """
    if _is_bundle(run):
        return
    from posthoc_inn.cli.fit.command import command as fit
    from posthoc_inn.cli.fit.directory import FIT

    echo(f"There is no {run} yet: fitting the embedded example first. It is kept for the next time.", err=True)
    begun = ["--resume"] if (run / FIT).is_file() else list(DEMO_FIT)
    fit.main([*begun, "--out", str(run)], prog_name="posthoc-inn fit", standalone_mode=False)


def open_layers(
    paths: list[Path], models: tuple[str, ...], weights: tuple[str, ...], device: str, autoencoder: str | None
) -> list[FittedLayer]:
    """Load bundles, and name each by its layer, and by its run where that is not enough.

    Raises:
        PosthocInnError: One cannot be loaded.
    """
    from posthoc_inn.app.fitted import FittedLayer

    loaded: dict[int, tuple[Interpreter, Bundle]] = {}
    without: dict[int, DataError] = {}
    for k, path in enumerate(paths):
        model, state = (values[k] if len(values) > 1 else next(iter(values), None) for values in (models, weights))
        try:
            loaded[k] = load(path, model, state, device, autoencoder)
        except DataError as error:
            without[k] = error
    for k, problem in without.items():
        loaded[k] = _by_another(paths[k], [one for one, _ in loaded.values()], autoencoder, problem)
    names = names_of([(path, loaded[k][0].layer or "output") for k, path in enumerate(paths)])
    return [
        FittedLayer(name, interpreter, shape_of(stored))
        for name, (interpreter, stored) in ((name, loaded[k]) for k, name in enumerate(names))
    ]


def _by_another(
    path: Path, others: list[Interpreter], autoencoder: str | None, problem: DataError
) -> tuple[Interpreter, Bundle]:
    """Load a bundle that does not tell its model, as a sweep's do not, by the model of another one that is open.

    Raises:
        DataError: None of them has that model: `problem`, with what helps.
    """
    from posthoc_inn.bundle import load_bundle
    from posthoc_inn.cli.models import import_autoencoder
    from posthoc_inn.interpreter import Interpreter

    where = bundle_of(path)
    own = None if autoencoder is None else import_autoencoder(autoencoder)
    stored = load_bundle(where, autoencoder=own)
    for other in others:
        if stored.is_for(other.model):
            found = Interpreter.load(where, model=other.model, autoencoder=own)
            found.origin = found.origin or other.origin
            return found, stored
    raise DataError(f"{problem} Or open it together with the run that has its model: --bundle RUN --bundle {path}")


def names_of(runs: list[tuple[Path, str]]) -> list[str]:
    """Return a name for each run and its layer, no two alike: the layer, with the run where layers are alike.

    >>> names_of([(Path("runs/a"), "layer1"), (Path("runs/b"), "layer2")])
    ['layer1', 'layer2']
    >>> names_of([(Path("runs/a/bundle"), "layer1"), (Path("runs/b"), "layer1"), (Path("runs/b"), "layer1")])
    ['a: layer1', 'b: layer1', 'b: layer1 (2)']
    >>> names_of([(Path("runs/a"), "layer1"), (Path("runs/sweep/layer1"), "layer1")])
    ['a: layer1', 'sweep: layer1']
    """
    layers = [layer for _, layer in runs]
    found: list[str] = []
    for path, layer in runs:
        where = path.resolve()
        run = where.parent if where.name == "bundle" else where
        # A point of a sweep is called as its layer.
        told = run.parent.name if run.name == file_name(layer) else run.name
        base = layer if layers.count(layer) == 1 else f"{told}: {layer}"
        name, number = base, 2
        while name in found:
            name, number = f"{base} ({number})", number + 1
        found.append(name)
    return found


def examples_for(layers: list[FittedLayer], data: str | None, data_dir: str | None) -> list[Shown]:
    """Return pictures to choose from; none where nothing is known of the data.

    A bundle may be a stranger's: of what it tells of its data, the name of the embedded ones alone is followed.

    Raises:
        PosthocInnError: `data` cannot be read.
    """
    from posthoc_inn.cli.data import EMBEDDED

    known = {layer.interpreter.origin.get("data") for layer in layers}
    name = data or (EMBEDDED if known == {EMBEDDED} else None)
    found = [] if name is None else _examples(name, data_dir)
    if len(found) < 2:
        return found
    from posthoc_inn.report.fitted import one_of_each

    pipeline = layers[0].pipeline
    said = pipeline.extractor.said(pipeline.ask(layers[0].given(*found)))
    predicted = said if said is not None and said.ndim == 1 else None
    return [found[k] for k in one_of_each(predicted, min(EXAMPLES, len(found)))]


def _examples(name: str, root: str | None) -> list[Shown]:
    from posthoc_inn.app.fitted import Shown
    from posthoc_inn.cli.data import is_folder
    from posthoc_inn.images import BatchSource, find_image_files, some_of, some_places
    from posthoc_inn.plugins import get_plugin_manager

    manager = get_plugin_manager()
    if is_folder(manager, name):
        files = find_image_files(Path(name))
        found, wrong = [], []
        for place in some_places(len(files), LOOKED_AT, seed=0):
            try:
                found.append(Shown.of_file(files[int(place)]))
            except PosthocInnError as error:
                wrong.append(str(error))
        if not found:
            raise DataError(f"--data {name}: no picture could be read: {listed(wrong, 2)}")
        return found
    images: Any = manager.build_dataset(name, root, train=False, seed=0)
    batch = BatchSource(some_of(images, LOOKED_AT, seed=0), seed=0).first(LOOKED_AT)
    return [Shown(f"{name} {k}", picture) for k, picture in enumerate(batch, 1)]
