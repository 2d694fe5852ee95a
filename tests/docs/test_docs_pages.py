"""The pages of docs/ tell the truth: their Python runs, commands and options exist, links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
from functools import partial

import click
import pytest
import torch
import yaml
from documents import ROOT, blocks, check_command, command_lines, few_steps_in, run, targets, what_readers_bring

import posthoc_inn
from posthoc_inn import StyleTransfer
from posthoc_inn.cli.main import COMMANDS, cli
from posthoc_inn.plugins import get_plugin_manager, hook_names

DOCS = ROOT / "docs"
GENERATED = (DOCS / "_build", DOCS / "reference" / "api")
PAGES = sorted(
    page
    for page in DOCS.rglob("*.md")
    if not page.name.startswith("_") and not any(page.is_relative_to(folder) for folder in GENERATED)
)
OWN_TESTS = ("guide.md",)
"""Run by tests/test_readme.py."""


def name_of(page):
    return page.relative_to(DOCS).as_posix()


EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=name_of)
WITH_PYTHON = [p for p in PAGES if p.name not in OWN_TESTS and any(b.language == "python" for b in blocks(p))]


def without_code(page):
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


# ---- Python


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs_in_order(page, monkeypatch, tmp_path, capsys):
    few_steps_in(monkeypatch, tmp_path)
    if "StyleTransfer" in page.read_text("utf-8"):
        pytest.importorskip("posthoc_inn_torchvision")
        state = get_plugin_manager().build_backbone("squeezenet1_1", weights=None).state_dict()
        torch.save(state, "squeezenet.pth")
        build = StyleTransfer.from_backbone
        quick = partial(build, side=64)
        monkeypatch.setattr(
            StyleTransfer, "from_backbone", lambda name, weights, steps: quick(name, weights=weights, steps=2)
        )
    namespace = what_readers_bring()
    model = namespace["model"]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for block in blocks(page):
        if block.language == "python":
            run(page, block, namespace)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=f"the page changes the model's {name}")


@EACH_PAGE
def test_blocks_name_their_language_or_are_commands(page):
    known = {"", "console", "python", "toml", "{toctree}", "{eval-rst}", "{image}", "{include}"}
    told = re.findall(r"^```(\S*)", page.read_text("utf-8"), re.MULTILINE)
    assert set(told[::2]) <= known
    assert set(told[1::2]) <= {""}


# ---- commands


def every_option(command=cli):
    """Return every option of every command, a plugin's too."""
    context = click.Context(cli)
    found = {"--help", "--version"}
    for name in cli.list_commands(context):
        for parameter in cli.get_command(context, name).params:
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found


def scripts(page):
    """Return (script, its arguments) of each line that runs one of the examples."""
    lines = [line for b in blocks(page) if b.language in ("", "console") for line in b.text.splitlines()]
    return [line.removeprefix("$ ").split()[1:] for line in lines if line.removeprefix("$ ").startswith("python ")]


@EACH_PAGE
def test_every_command_of_a_page_exists_with_its_options(page):
    for number, line in command_lines(page):
        if line.startswith("make"):
            assert set(line.split("#")[0].split()[1:]) <= targets(), f"{name_of(page)}, line {number}: {line}"
            continue
        try:
            check_command(line)
        except click.UsageError as error:
            pytest.fail(f"{name_of(page)}, line {number}: {line}: {error.format_message()}")


@EACH_PAGE
def test_every_option_that_a_page_names_is_one_of_some_command(page):
    told = without_code(page)
    for found in re.findall(r"`[^`]*`", told):
        if found.startswith("`python"):
            told = told.replace(found, "")
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", told))
    assert named <= every_option(), f"{name_of(page)} names options that no command has"


@EACH_PAGE
def test_the_scripts_of_a_page_are_examples_and_have_its_options(page):
    for script, *arguments in scripts(page):
        text = (ROOT / "examples" / script).read_text("utf-8")
        options = {word for word in arguments if word.startswith("--")}
        assert options <= set(re.findall(r'"(--[\w-]+)"', text)), f"{name_of(page)}: {script}"


def test_an_option_that_is_gone_is_found():
    with pytest.raises(click.UsageError, match="No such option"):
        check_command("posthoc-inn sample --bundle runs/a --no-such-option")
    assert "--no-such-option" not in every_option()


# ---- links and pictures


def slugs(page):
    """Return the anchors of a page's headings, as MyST and GitHub make them."""
    headings = re.findall(r"^#{1,4} (.+)$", without_code(page), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", h) for h in headings]
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in plain}


@EACH_PAGE
def test_links_anchors_and_pictures_of_a_page_are_there(page):
    text = page.read_text("utf-8")
    found = re.findall(r"\]\(([^)\s]+)\)", without_code(page)) + re.findall(r"^```\{image\} (\S+)", text, re.MULTILINE)
    for target in found:
        if target.startswith(("http://", "https://")):
            assert target.startswith("https://")
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if to.suffix == ".rst":  # made by the build, from the package of that name
            assert importlib.util.find_spec(f"posthoc_inn.{to.stem}")
            continue
        assert to.is_file(), f"{name_of(page)}: {target}"
        assert to.is_relative_to(ROOT)
        assert not anchor or anchor in slugs(to), f"{name_of(page)}: {target}; there are {sorted(slugs(to))}"


def test_every_page_is_in_the_contents():
    index = (DOCS / "index.md").read_text("utf-8")
    listed = {line for block in re.findall(r"```\{toctree\}(.*?)```", index, re.DOTALL) for line in block.splitlines()}
    assert {name_of(page).removesuffix(".md") for page in PAGES} - {"index"} <= listed


def test_every_picture_of_the_examples_is_in_the_gallery_with_what_to_conclude():
    gallery = (DOCS / "gallery.md").read_text("utf-8")
    for picture in sorted((ROOT / "examples" / "pictures").iterdir()):
        assert f"../examples/pictures/{picture.name})" in gallery, picture.name
    assert gallery.count("**Conclude:**") == gallery.count("**Do not conclude:**") >= 8


# ---- what the reference has


def test_every_public_name_is_in_the_reference():
    text = "".join((DOCS / "reference" / name).read_text("utf-8") for name in ("python.md", "configuration.md"))
    there = set(re.findall(r"auto\w+:: posthoc_inn\.(\w+)$", text, re.MULTILINE))
    assert set(posthoc_inn.__all__) - {"__version__", "hookimpl"} == there


def test_every_command_and_every_hook_is_in_the_reference():
    text = (DOCS / "reference" / "cli.md").read_text("utf-8")
    assert set(re.findall(r":prog: posthoc-inn (\S+)", text)) == set(COMMANDS) - {"demo"}
    hooks = (DOCS / "reference" / "hooks.md").read_text("utf-8")
    assert set(re.findall(r"autofunction:: (\w+)", hooks)) == set(hook_names())


def test_every_configuration_is_in_the_reference():
    text = (DOCS / "reference" / "configuration.md").read_text("utf-8")
    from posthoc_inn import config

    public = {n for n in config.__all__ if isinstance(getattr(config, n), type)}
    assert public <= set(re.findall(r"autoclass:: [\w.]*?(\w+)$", text, re.MULTILINE))


def test_every_package_with_public_names_has_a_page():
    tree = ast.parse((DOCS / "conf.py").read_text("utf-8"))
    (value,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "PACKAGES"]
    listed = set(ast.literal_eval(value))
    packages = [m.name for m in pkgutil.iter_modules(posthoc_inn.__path__) if m.ispkg]
    public = {p for p in packages if "__all__" in (ROOT / "posthoc_inn" / p / "__init__.py").read_text("utf-8")} - {
        "config"
    }
    assert public == listed


def test_the_page_on_bundles_is_about_this_format():
    from posthoc_inn.bundle import FORMAT_VERSION, MEMBERS
    from posthoc_inn.bundle.modules import AUTOENCODER, CONCEPTS, FLOW, WORLD
    from posthoc_inn.bundle.record import Document

    text = (DOCS / "reference" / "bundle.md").read_text("utf-8")
    assert f"**format version {FORMAT_VERSION}**" in text
    assert re.search(rf"^\| {FORMAT_VERSION} \|", text, re.MULTILINE)
    for name in (*MEMBERS, *Document.__dataclass_fields__, FLOW, AUTOENCODER, CONCEPTS, WORLD):
        assert f"`{name}`" in text, name


def test_what_the_page_on_papers_names_is_in_the_code():
    text = (DOCS / "papers.md").read_text("utf-8")
    names = set(re.findall(r"`(posthoc_inn\.[\w.]+)`", text))
    assert len(names) > 30
    for name in sorted(names):
        pkgutil.resolve_name(name)
    for line in re.findall(r"^\| (?:MSC|IIN|public).*$", text, re.MULTILINE):
        assert "`posthoc_inn." in line, line


# ---- what stands beside the pages


def test_the_figure_of_the_method_is_what_its_script_draws(tmp_path):
    spec = importlib.util.spec_from_file_location("method_figure", DOCS / "method_figure.py")
    script = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["method_figure"] = script  # its dataclass looks there
    try:
        spec.loader.exec_module(script)
        drawn = script.write(tmp_path)
    finally:
        del sys.modules["method_figure"]
    assert [p.name for p in drawn] == ["method-light.svg", "method-dark.svg"]
    for path in drawn:
        # What is written, and where boxes and arrows are: coordinates of glyphs differ with matplotlib's version.
        kept = (DOCS / "images" / path.name).read_text("utf-8")
        told = re.findall(r"<!-- (.+?) -->", path.read_text("utf-8"))
        assert told == re.findall(r"<!-- (.+?) -->", kept)
        assert {"encoder", "decoder", "prediction"} <= set(told)
        assert kept.count('id="patch_') == path.read_text("utf-8").count('id="patch_')


def test_a_report_of_a_bug_asks_for_what_the_doctor_says():
    forms = [yaml.safe_load(p.read_text("utf-8")) for p in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))]
    assert len(forms) == 2
    (asked,) = [f for f in forms[0]["body"] if f.get("id") == "doctor"]
    assert "posthoc-inn doctor --json" in asked["attributes"]["label"]
    assert asked["validations"]["required"] is True
    check_command("posthoc-inn doctor --json")


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == posthoc_inn.__version__
    assert citation["license"] == "MIT"
    assert [r["year"] for r in citation["references"]] == [2020, 2020]
