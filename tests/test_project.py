"""What is written more than once about the project agrees: Makefile, .ci/run, the public workflow, versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PYPROJECTS = [ROOT / "pyproject.toml", *sorted((ROOT / "plugins").glob("*/pyproject.toml"))]
TOOLS = {"ruff", "mypy", "pre-commit"}
"""What no test imports; it is not run at its lowest version."""


def makefile():
    """Return the commands of each target of the Makefile."""
    text = (ROOT / "Makefile").read_text("utf-8")
    found = re.findall(r"^([\w-]+):[^\n=]*\n((?:\t.*\n)*)", text, re.MULTILINE)
    return {target: [line.strip() for line in recipe.splitlines()] for target, recipe in found}


def workflow():
    return yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))


def commands(job):
    """Return the lines that a job of the workflow runs, in order."""
    return [line.strip() for step in job["steps"] for line in step.get("run", "").splitlines()]


def targets(lines):
    return [word for line in lines if re.match(r"make\b", line) for word in line.split()[1:] if "=" not in word]


def ci_run():
    return targets((ROOT / ".ci/run").read_text("utf-8").splitlines())


def settings(path):
    return tomllib.loads(path.read_text("utf-8"))


def test_the_makefile_declares_every_target_that_is_no_file():
    text = (ROOT / "Makefile").read_text("utf-8")
    assert set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()) == set(makefile())


@pytest.mark.parametrize("name", ["unix", "floors", "coverage"])
def test_the_workflow_names_targets_of_the_makefile(name):
    named = targets(commands(workflow()["jobs"][name]))
    assert named
    assert set(named) <= set(makefile())


def test_the_workflow_runs_what_a_submission_must_pass():
    assert ci_run() == ["lint", "types", "wheel", "test"]
    assert targets(commands(workflow()["jobs"]["unix"])) == ci_run()


@pytest.mark.parametrize("target", ["lint", "types", "wheel", "test"])
def test_without_make_the_workflow_runs_the_targets_own_commands(target):
    steps = {step.get("name"): step for step in workflow()["jobs"]["windows"]["steps"]}
    given = [line.strip() for line in steps[target]["run"].splitlines()]
    expected = []
    for line in makefile()[target]:
        line = line.replace("$(BIN)/", "").replace("$(PYTHON)", "python").replace("$$project", "$project")
        line = (
            line.replace(" --disable-pip-version-check", "")
            .replace(" || exit 1", "")
            .replace("fresh/bin", "fresh/Scripts")
        )
        for name, value in re.findall(r"^(\w+)=(\S+) ", line):
            assert steps[target]["env"] == {name: value}
            line = line.removeprefix(f"{name}={value} ")
        if not line.startswith("rm "):
            expected.extend(
                ["cd build", line.removeprefix("cd build && ")] if line.startswith("cd build &&") else [line]
            )
    assert given == list(dict.fromkeys(expected))


def test_the_workflow_runs_every_python_that_is_promised():
    project = settings(ROOT / "pyproject.toml")["project"]
    promised = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert project["requires-python"] == f">={promised[0]}"
    jobs = workflow()["jobs"]
    assert jobs["unix"]["strategy"]["matrix"]["python"] == promised
    assert jobs["windows"]["strategy"]["matrix"]["python"] == promised
    assert {s.partition("-")[0] for s in jobs["unix"]["strategy"]["matrix"]["system"]} == {"ubuntu", "macos"}
    assert jobs["windows"]["runs-on"].startswith("windows-")


def test_the_workflow_may_only_read_and_runs_what_it_has_pinned():
    text = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    parsed = workflow()
    assert parsed["permissions"] == {"contents": "read"}
    assert parsed["concurrency"]["cancel-in-progress"] is True
    assert "secrets" not in text
    for job in parsed["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 60
        for action in (step["uses"] for step in job["steps"] if "uses" in step):
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)
    assert len(re.findall(r"uses: \S+ # v\d+\.\d+\.\d+$", text, re.MULTILINE)) == text.count("uses:")


def lowest():
    """Return name -> lowest version of every dependency that has one, over the core and its plugins."""
    found = {}
    for path in PYPROJECTS:
        project = settings(path)["project"]
        listed = [
            *project["dependencies"],
            *(d for extra in project.get("optional-dependencies", {}).values() for d in extra),
        ]
        for name, version in re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(listed), re.MULTILINE):
            if name not in TOOLS and not name.startswith("posthoc-inn"):
                assert found.setdefault(name, version) == version, f"{name} has two lowest versions"
    return found


def test_the_list_of_lowest_versions_is_what_the_projects_name():
    own, _, others = (ROOT / ".ci/floors.txt").read_text("utf-8").partition("# What these versions need of others")
    assert dict(re.findall(r"^([\w-]+)==([\d.]+)$", own, re.MULTILINE)) == lowest()
    assert not set(re.findall(r"^([\w-]+)==", others, re.MULTILINE)) & set(lowest())


def test_every_dependency_of_a_user_has_a_lowest_version():
    for path in PYPROJECTS:
        for dependency in settings(path)["project"]["dependencies"]:
            assert ">=" in dependency, f"{path}: {dependency}"


def test_the_page_on_truth_names_tests_that_are_there():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "truth.md").read_text("utf-8"))
    assert len(named) > 10
    for file, name in named:
        assert (ROOT / file).is_file(), file
        assert f"def {name}" in (ROOT / file).read_text("utf-8"), f"{file}::{name}"
