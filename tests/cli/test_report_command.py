"""`posthoc-inn report` makes the report of a run anew, of the same figures and images, and trains nothing."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from posthoc_inn.cli.fit.command import command as fit
from posthoc_inn.cli.report import command as report
from posthoc_inn.errors import BundleError, DataError


def pictures(folder, count, seed):
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    for k in range(count):
        pixels = torch.randint(0, 256, (28, 28, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / f"{k:02}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("report")
    data = pictures(place / "data", 60, 0)
    found = CliRunner().invoke(
        fit,
        ["--autoencoder-steps", "4", "--data", str(data), "--out", str(place / "run"), "--quiet",
         "--backbone", "small_cnn", "--weights", "none", "--layer", "pool", "--held-out", "0.4", "--preset", "linear"],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    return place / "run"


def test_a_runs_report_is_made_anew_with_its_figures_and_images(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    before = (copied / "report.html").read_text()
    bundle = {p.name: p.read_bytes() for p in (copied / "bundle").iterdir()}
    (copied / "report.html").unlink()
    found = CliRunner().invoke(report, [str(copied)])
    assert found.exit_code == 0, found.output
    page = (copied / "report.html").read_text()
    assert str(copied / "report.html") in found.output
    figures = json.loads((copied / "metrics.json").read_text())
    assert f"{figures['likelihood']['held_out']:.1f}" in page
    assert page.count("<img") == before.count("<img")
    # Nothing else is touched.
    assert {p.name: p.read_bytes() for p in (copied / "bundle").iterdir()} == bundle


def test_a_bundle_alone_needs_pictures(run, tmp_path):
    bundle = shutil.copytree(run / "bundle", tmp_path / "bundle")
    with pytest.raises(DataError, match="which images to show"):
        report.main([str(bundle)], standalone_mode=False)
    others = pictures(tmp_path / "others", 30, 1)
    inside = sorted(p.name for p in bundle.iterdir())
    found = CliRunner().invoke(report, [str(bundle), "--data", str(others)])
    assert found.exit_code == 0, found.output
    # Beside the bundle, as the help says: inside it nothing is written.
    assert (tmp_path / "report.html").is_file()
    assert sorted(p.name for p in bundle.iterdir()) == inside
    out = tmp_path / "page.html"
    found = CliRunner().invoke(report, [str(bundle), "--data", str(others), "--out", str(out), "--json"])
    assert found.exit_code == 0, found.output
    told = json.loads(found.output)
    assert told["report"] == str(out)
    assert told["layer"] == "pool"
    assert re.search(r"<img", out.read_text())


@pytest.mark.parametrize(
    ("arguments", "named"), [(["--out", "page.pdf"], "page.pdf"), (["--data-dir", "somewhere"], "--data-dir")]
)
def test_wrong_options_are_told(run, arguments, named):
    found = CliRunner().invoke(report, [str(run), *arguments])
    assert found.exit_code != 0
    assert named in found.output + str(found.exception)


def test_what_is_no_bundle_is_told(tmp_path):
    with pytest.raises((BundleError, DataError)):
        report.main([str(tmp_path / "nothing")], standalone_mode=False)
