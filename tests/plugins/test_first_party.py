"""The project's own plugins as their users get them: wheels, installed for real into a fresh environment."""

import json
import tomllib
import zipfile

import pytest
from fresh_environment import OFFLINE, PIP, ROOT, make_environment, run

FOLDERS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
BRINGS = {
    "facenet": {"backbone": ["facenet"], "command": ["align"]},
    "lpips": {"image metric": ["lpips-alex", "lpips-squeeze", "lpips-vgg"]},
    "timm": {"backbone": ["timm:*"]},
}
"""What some of them register, in full."""


def project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Build the core and every plugin: name of the distribution -> wheel."""
    pytest.importorskip("hatchling", reason="hatchling builds them; `make test` installs it")
    out = tmp_path_factory.mktemp("wheels")
    run([*PIP, "wheel", *OFFLINE, "--wheel-dir", out, ROOT, *FOLDERS])
    return {path.name.partition("-")[0].replace("_", "-"): path for path in out.glob("*.whl")}


@pytest.fixture(scope="module")
def posthoc_inn(wheels, tmp_path_factory):
    """Return a function that runs the installed `posthoc-inn`, with all of the plugins."""
    modules = ["posthoc_inn", *(project(f)["name"].replace("-", "_") for f in FOLDERS)]
    names = ",".join(project(f)["name"] for f in FOLDERS)
    return make_environment(tmp_path_factory.mktemp("environment"), wheels.values(), modules, only=names)


@pytest.fixture(scope="module")
def listed(posthoc_inn):
    return {p["distribution"]: p for p in json.loads(posthoc_inn("plugins", "--json"))["plugins"]}


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_wheel_holds_types_and_licence_and_no_tests(wheels, folder):
    with zipfile.ZipFile(wheels[project(folder)["name"]]) as wheel:
        names = wheel.namelist()
    package = project(folder)["name"].replace("-", "_")
    assert f"{package}/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {package}


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_installed_plugins_are_listed_with_what_they_registered(listed, folder):
    found = listed[project(folder)["name"]]
    assert (found["status"], found["error"], found["version"]) == ("loaded", "", project(folder)["version"])
    assert found["registered"]
    assert found["registered"] == BRINGS.get(folder.name, found["registered"])


@pytest.mark.slow
def test_the_command_of_a_plugin_stands_beside_the_built_in_ones(posthoc_inn):
    assert "Cut the faces out of photographs" in posthoc_inn("--help")
    assert "--min-face PIXELS" in posthoc_inn("align", "--help")


@pytest.mark.network
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_installing_a_plugin_changes_neither_torch_nor_numpy(wheels, folder, tmp_path):
    report = tmp_path / "report.json"
    both = [wheels["posthoc-inn"], wheels[project(folder)["name"]]]
    run([*PIP, "install", "--dry-run", "--report", report, *both])
    planned = {item["metadata"]["name"].lower().replace("_", "-") for item in json.loads(report.read_text())["install"]}
    assert planned & {"torch", "torchvision", "numpy"} == set()


def test_what_is_to_be_tested_is_there():
    assert {"torchvision", "timm", "facenet"} <= {folder.name for folder in FOLDERS}
