"""`posthoc-inn analyze`: the papers' analyses, and plugins', of a fitted bundle, in one report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc_inn.cli.bundles import bundle_of, bundle_options, load, shape_of
from posthoc_inn.cli.echo import echo, echo_json
from posthoc_inn.cli.options import KeyValue
from posthoc_inn.cli.outside import Look
from posthoc_inn.errors import ConfigError, PosthocInnError, Problems, UnknownNameError

if TYPE_CHECKING:
    from posthoc_inn.interpreter import Interpreter
    from posthoc_inn.plugins import PluginManager
    from posthoc_inn.report.analyses import AnalysisSection


@click.command("analyze")
@click.argument("names", nargs=-1)
@click.option("--data", metavar="NAME|FOLDER", help="Images to ask about: a data set's held-out part, or a folder.")
@click.option(
    "--train-data",
    metavar="NAME|FOLDER",
    help="Images to train on, for analyses that train: the data set's training part, or a folder.",
)
@click.option("--inversion", is_flag=True, help="The analysis inversion, which trains for minutes: needs --train-data.")
@click.option("--data-dir", type=click.Path(), help="Directory the data sets are read from.")
@click.option("--data-option", "data_options", type=KeyValue(), multiple=True, help="An option of the data set.")
@click.option(
    "--option",
    "own",
    type=KeyValue(),
    multiple=True,
    help="ANALYSIS.KEY=VALUE, an option of an analysis; can be repeated.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory for analysis.html and analysis.json.  [default: analysis/ in the run]",
)
@click.option("--list", "list_only", is_flag=True, help="List the analyses, and which of them this bundle allows.")
@bundle_options
def command(
    names: tuple[str, ...],
    bundle: Path,
    data: str | None,
    train_data: str | None,
    inversion: bool,
    data_dir: str | None,
    data_options: tuple[tuple[str, Any], ...],
    own: tuple[tuple[str, Any], ...],
    out: Path | None,
    list_only: bool,
    model: str | None,
    weights: str | None,
    autoencoder: str | None,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Analyse a fitted layer: all that the bundle allows, or those named.

    Writes one report with a section each, its figure, what to conclude and what not, and all figures as JSON. What
    trains (inversion) is run where it is asked for, or --train-data is given.

    \b
    posthoc-inn analyze --bundle runs/color-digits --data color-digits
    posthoc-inn analyze attack edits --bundle runs/mine --data photos/ --option attack.epsilon=0.1
    posthoc-inn analyze --inversion --bundle runs/mine --data test/ --train-data train/
    posthoc-inn analyze --bundle runs/mine --list
    """  # noqa: D301 (click reads a real \b)
    from posthoc_inn.cli.options import device_option
    from posthoc_inn.plugins import get_plugin_manager

    manager = get_plugin_manager()
    names = tuple(dict.fromkeys([*names, *(["inversion"] if inversion else [])]))
    problems = Problems("posthoc-inn analyze")
    for name in names:
        try:
            manager.analyses.get(name)
        except UnknownNameError as error:
            problems.check(False, str(error).rstrip("."))
    problems.check(list_only or data is not None, "--data is missing: images to ask about, such as those of the fit")
    wrong = device_option(device)
    problems.check(wrong is None, wrong or "")
    problems.raise_if_any()

    from posthoc_inn import __version__
    from posthoc_inn.analysis.by_name import needs_of
    from posthoc_inn.report.analyses import write_analyses

    where = bundle_of(bundle)
    interpreter, stored = load(bundle, model, weights, device, autoencoder)
    has = {"t", *(["e"] if stored.concepts is not None else [])} | ({"train"} if train_data is not None else set())
    if list_only:
        _list(manager, has, as_json)
        return
    wanted = _wanted(names, has, manager)
    settings = _settings(own, wanted)
    images = _images(str(data), data_dir, dict(data_options), stored, seed)
    if train_data is not None:
        trained = _images(train_data, data_dir, dict(data_options), stored, seed, train=True)
        for name in wanted:
            if "train" in needs_of(name):
                settings.setdefault(name, {})["train"] = trained
    look = Look.at(interpreter, images, seed)
    sections = []
    for name in wanted:
        if not as_json:
            echo(f"{name} ...", err=True)
        with look.told_once():
            sections.append(_run(interpreter, name, images, seed, settings.get(name, {}), is_asked=bool(names)))
    target = out or where.parent / "analysis"
    lead = [
        f"Layer {stored.extractor['layer']} of {stored.model_class}; bundle {where}; images: {data}.",
        *([look.line] if look.line else []),
    ]
    page, plain = write_analyses(
        f"What {stored.extractor['layer']} knows", lead, sections, target, __version__, outside=look.facts
    )
    if as_json:
        echo(plain.read_text().rstrip())
    else:
        for section in sections:
            echo(f"{section.title:28} {section.problem or f'{section.seconds:.1f} s'}")
        if look.line:
            echo(look.line)
        echo(f"report    {page}   (open it in a browser)\nfigures   {plain}")


def _wanted(names: tuple[str, ...], has: set[str], manager: PluginManager) -> list[str]:
    """Return the analyses to run: those named, or all that the bundle allows.

    Raises:
        ConfigError: One that was named needs what the bundle lacks.
    """
    from posthoc_inn.analysis.by_name import needs_of

    for name in names:
        missing = sorted(set(needs_of(name)) - has)
        if missing == ["train"]:
            raise ConfigError(f"The analysis {name} needs training images: pass --train-data, as the fit had them.")
        if missing:
            raise ConfigError(
                f"The analysis {name} needs {' and '.join(missing)}, which this bundle lacks: fit with --concepts."
            )
    return list(names) or [n for n in manager.analyses.names() if set(needs_of(n)) <= has]


def _list(manager: PluginManager, has: set[str], as_json: bool) -> None:
    from posthoc_inn.analysis.by_name import needs_of

    rows: list[dict[str, Any]] = []
    for name in manager.analyses.names():
        metadata = manager.analyses.get(name).metadata
        rows.append(
            {
                "name": name,
                "description": metadata.get("description") or "",
                "allowed": set(needs_of(name)) - {"train"} <= has,
                "trains": "train" in needs_of(name),
                "options": dict(metadata.get("options") or {}),
            }
        )
    if as_json:
        echo_json(rows)
        return
    for row in rows:
        needed = "" if row["allowed"] else "(needs --concepts) "
        needed += "(needs --train-data) " if row["trains"] else ""
        echo(f"{row['name']:28} {needed}{row['description']}")
        for key, text in row["options"].items():
            echo(f"{'':30}{row['name']}.{key}: {text}")


def _settings(own: tuple[tuple[str, Any], ...], wanted: list[str]) -> dict[str, dict[str, Any]]:
    from posthoc_inn.analysis.by_name import check_options

    found: dict[str, dict[str, Any]] = {}
    for key, value in own:
        name, dot, option = key.rpartition(".")
        if not dot or name not in wanted:
            raise ConfigError(f"--option takes ANALYSIS.KEY=VALUE of an analysis that is run, got {key!r}.")
        found.setdefault(name, {})[option] = value
    for name, options in found.items():
        check_options(name, options)
    return found


def _images(name: str, root: str | None, given: dict[str, Any], stored: Any, seed: int, *, train: bool = False) -> Any:
    """Return held-out images as the bundle's interpreter takes them, canonical or as the model eats them.

    With `train` those of training: the data set's training part, or a folder's.
    """
    from posthoc_inn.cli.data import folder_images, is_folder
    from posthoc_inn.images import BatchSource, apply_spec, some_of
    from posthoc_inn.plugins import get_plugin_manager

    manager = get_plugin_manager()
    adapter = stored.adapter
    if is_folder(manager, name):
        found = folder_images(
            Path(name), size=None, channels=adapter.channels, held_out=None, seed=seed, needed=shape_of(stored)
        )
        images = found.train if train else found.held_out
    else:
        images = manager.build_dataset(name, root, train=train, seed=seed, **given)
    if adapter.normalization is None:
        return images
    count = 2000
    if train:
        # All of them are held at once: as many as a gigabyte has room for.
        count = max(count, min(20_000, 2**28 // BatchSource(images, seed=seed).first(1)[0].numel()))
    # Not the first ones: folders come class by class.
    images = some_of(images, count, seed=seed)
    return apply_spec(BatchSource(images, seed=seed).first(count), adapter.spec)


def _run(
    interpreter: Interpreter, name: str, images: Any, seed: int, settings: dict[str, Any], *, is_asked: bool
) -> AnalysisSection:
    """Run one analysis; a problem of one that was not asked for by name goes into its section."""
    from posthoc_inn.analysis.by_name import run_analysis
    from posthoc_inn.report.analyses import AnalysisSection, section_of

    title = name.replace("-", " ").capitalize()
    started = time.perf_counter()
    try:
        # Not `interpreter.analyze`, which would look at all images anew for each.
        result = run_analysis(interpreter, name, images, z=None, seed=seed, options=settings)
        return section_of(title, result, time.perf_counter() - started)
    except PosthocInnError as error:
        if is_asked:
            raise
        return AnalysisSection(title, problem=f"Left out: {error}")
