"""A trained autoencoder of the user's own on the command line: imported, remembered, and asked for again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_helpers import make_quick

from posthoc_inn.cli.main import main
from posthoc_inn.cli.models import means_import
from posthoc_inn.plugins import get_plugin_manager

MY_PARTS = """
import torch
from torch import nn
from posthoc_inn.autoencoders import GivenAutoencoder

def build(size=32, seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(48, 6))
        decoder = nn.Sequential(nn.Linear(6, 48), nn.Unflatten(1, (3, 4, 4)), nn.Upsample(size), nn.Sigmoid())
    return GivenAutoencoder(encoder, decoder, size=size)

class Other:
    def __new__(cls):
        return build(seed=2)

ready = build()
def grey():
    return GivenAutoencoder(nn.Flatten(), nn.Unflatten(1, (1, 8, 8)), size=8, channels=1)
def network():
    return nn.Linear(2, 2)
def broken():
    raise OSError("no file decoder.pth")
number = 3

from posthoc_inn import GivenGenerator
basis = torch.linalg.qr(torch.randn(192, 6, generator=torch.Generator().manual_seed(0)))[0].T
def paints():
    return GivenGenerator(lambda w: (w @ basis / 4 + 0.5).reshape(-1, 3, 8, 8), 6)
"""
NAME = "my_parts_of_a_test"


@pytest.fixture(scope="module")
def own_run(pictures, tmp_path_factory):
    """A directory with the user's code, and in it a run fitted with the user's autoencoder; not to be changed."""
    place = tmp_path_factory.mktemp("own")
    (place / f"{NAME}.py").write_text(MY_PARTS)
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        with pytest.raises(SystemExit) as exit_:
            main(
                [
                    *("fit", "--backbone", "small_cnn", "--weights", "none", "--num-classes", "2", "--layer", "pool"),
                    *("--data", str(pictures), "--autoencoder", f"{NAME}:build", "--precision", "32", "--quiet"),
                    *("--out", "run"),
                ]
            )
        assert exit_.value.code == 0
        yield place


def test_the_run_remembers_it_and_does_not_train_it(own_run):
    assert json.loads((own_run / "run" / "fit.json").read_text())["options"]["autoencoder"] == f"{NAME}:build"
    metrics = json.loads((own_run / "run" / "metrics.json").read_text())
    assert "autoencoder" not in metrics["seconds"]
    assert f"--autoencoder {NAME}:build" in (own_run / "run" / "report.html").read_text()


def test_a_finished_run_is_gone_on_with_without_naming_it_again(own_run, ask):
    answer = ask("fit", "--out", "run", "--resume")
    assert answer.code == 0, answer.err


def test_another_image_size_than_its_own_is_refused(own_run, ask, pictures):
    answer = ask(
        "fit", "--backbone", "small_cnn", "--weights", "none", "--layer", "pool", "--data", pictures, "--out", "other",
        "--autoencoder", f"{NAME}:build", "--image-size", "28",
    )  # fmt: skip
    assert answer.code == 1
    assert f"The autoencoder of {NAME}:build is for 32 px and 3 channels" in answer.err
    assert not Path("other").exists()


def test_images_of_a_folder_are_read_as_large_as_it_needs_them(own_run):
    # The pictures have 28 px, and the network takes what it gets.
    assert "read at 32 px" in (own_run / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    "extra", [["sample", "--images", "IMAGE"], ["analyze", "explained-by-invariances", "--data", "FOLDER"]]
)
def test_a_bundle_fitted_with_it_asks_for_it_and_takes_it(own_run, ask, pictures, extra, tmp_path):
    words = {"IMAGE": pictures / "one" / "00.png", "FOLDER": pictures}
    extra = [words.get(word, word) for word in extra]
    out = ["--out", tmp_path / ("a.png" if extra[0] == "sample" else "a")]
    without = ask(*extra, *out, "--bundle", "run")
    assert without.code == 1
    assert without.err.count("\n") == 1
    assert f"{NAME}:build), whose weights are not stored" in without.err
    assert "--autoencoder PACKAGE.MODULE:FACTORY" in without.err
    other = ask(*extra, *out, "--bundle", "run", "--autoencoder", f"{NAME}:Other")
    assert other.code == 1
    assert "has other weights than the one that the bundle" in other.err
    for name in ("build", "ready"):
        given = ask(*extra, *out, "--bundle", "run", "--autoencoder", f"{NAME}:{name}")
        assert given.code == 0, given.err


def test_edit_takes_it_too(own_run, ask, pictures):
    image = pictures / "one" / "00.png"
    answer = ask("edit", "--bundle", "run", "--images", image, "--to", image, "--autoencoder", f"{NAME}:build")
    assert "whose weights are not stored" not in answer.err
    assert "concepts" in answer.err


def test_a_sweep_takes_it_with_and_without_a_bundle(own_run, ask, pictures, tmp_path):
    layers = ["--layers", "pool", "--data", pictures, "--steps", "2", "--quiet", "--precision", "32"]
    own = ["--autoencoder", f"{NAME}:build"]
    shared = ask("sweep", "--bundle", "run", *own, *layers, "--out", tmp_path / "a", "--json")
    assert shared.code == 0, shared.err
    model = ["--backbone", "small_cnn", "--weights", "none", "--num-classes", "2"]
    fresh = ask("sweep", *model, *own, *layers, "--out", tmp_path / "b", "--json")
    assert fresh.code == 0, fresh.err
    registered = ask("sweep", "--bundle", "run", "--autoencoder", "conv", *layers, "--out", tmp_path / "c")
    assert "leave --autoencoder and --concepts out (but for" in registered.err


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no_such_module:build", "no_such_module cannot be imported (ModuleNotFoundError"),
        (f"{NAME}:bild", "Did you mean 'build'?"),
        (f"{NAME}:broken", "calling broken() raised OSError: no file decoder.pth"),
        (f"{NAME}:number", "number is a int; a function or class is needed"),
        (f"{NAME}:network", "network() returned a Linear. An autoencoder is a module with encode, decode"),
        (f"{NAME}:grey", "is for 8 px and 1 channels; the images have 3 channels"),
        (f"{NAME}:", "There is no autoencoder"),
        ("conf", "Did you mean 'conv'?"),
        ("runs/none", "there is no such bundle"),
    ],
)
def test_what_cannot_serve_is_told_in_one_line_before_anything_is_written(own_run, ask, pictures, name, told, tmp_path):
    answer = ask(
        "fit", "--backbone", "small_cnn", "--weights", "none", "--layer", "pool", "--data", pictures,
        "--autoencoder", name, "--out", tmp_path / "run",
    )  # fmt: skip
    assert answer.code == 1
    assert told in answer.err
    assert answer.err.count("\n") == 1
    assert not Path(tmp_path, "run").exists()


def test_a_prefix_that_a_plugin_brings_is_no_module():
    registry = SimpleNamespace(prefixes=lambda: ["hub"], absent=[SimpleNamespace(prefixes={"gone"})])
    manager = SimpleNamespace(autoencoders=registry)
    names = ("hub:build", "gone:build", "a.b:c.d", "a", "a:", ":b", "a/b:c")
    assert [name for name in names if means_import(manager, name)] == ["a.b:c.d"]
    assert means_import(get_plugin_manager(), "torch:nn")


def test_every_command_that_asks_a_bundle_takes_it():
    from posthoc_inn.cli.main import COMMANDS, cli

    for name in COMMANDS:
        options = {p.name for p in cli.get_command(None, name).params}
        assert "bundle" not in options or {"model", "autoencoder"} <= options, name


# ---- a generator


GENERATES = (
    *("fit", "--backbone", "small_cnn", "--weights", "none", "--num-classes", "2", "--layer", "pool"),
    *("--precision", "32", "--quiet"),
)  # fmt: skip


def test_a_generator_is_fitted_to_its_own_draws(own_run, ask):
    answer = ask(*GENERATES, "--autoencoder", f"{NAME}:paints", "--data", "draws:60", "--out", "drawn")
    assert answer.code == 0, answer.err
    metrics = json.loads(Path("drawn/metrics.json").read_text())
    assert (metrics["images"]["train"], metrics["images"]["held_out"]) == (54, 6)
    assert metrics["autoencoder"] is None


@pytest.mark.parametrize(
    ("data", "autoencoder", "told"),
    [
        ("draws:many", "paints", "after the colon stands how many pictures"),
        ("draws:3", "paints", "20 at least"),
        ("draws:60", "build", "whose factory returns a posthoc_inn.GivenGenerator"),
        ("draws:60", None, "whose factory returns a posthoc_inn.GivenGenerator"),
    ],
)
def test_draws_need_a_number_and_a_generator(own_run, ask, data, autoencoder, told):
    named = () if autoencoder is None else ("--autoencoder", f"{NAME}:{autoencoder}")
    answer = ask(*GENERATES, *named, "--data", data, "--out", "refused")
    assert answer.code in (1, 2)
    assert told in answer.err
    assert not Path("refused").exists()


def test_a_registered_autoencoder_with_a_map_is_chosen_by_name_and_options(pictures, tmp_path, monkeypatch):
    make_quick(monkeypatch)
    with pytest.raises(SystemExit) as exit_:
        main(
            [
                *("fit", "--backbone", "small_cnn", "--weights", "none", "--layer", "stage1", "--data", str(pictures)),
                *("--autoencoder", "residual", "--autoencoder-option", "latent_channels=2"),
                *("--autoencoder-option", "width=4", "--image-size", "24", "--out", str(tmp_path / "run"), "--quiet"),
            ]
        )
    assert exit_.value.code == 0
    found = json.loads((tmp_path / "run" / "bundle" / "bundle.json").read_text())["autoencoder"]["config"]
    assert (found["kind"], found["latent"], found["latent_channels"], found["reduction"]) == ("residual", "map", 2, 4)
    assert found["latent_dim"] == 2 * 6 * 6
