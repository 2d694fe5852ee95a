"""A hook without a test, or whose signature is not in the tutorial, fails here."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from posthoc_inn.plugins import PluginManager, hook_names, hookspecs
from posthoc_inn.plugins.hookspecs import METADATA_KEYS

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "plugins" / "README.md"


def signature(name):
    source = inspect.getsource(getattr(hookspecs, name))
    return re.search(r"def (.*?):\n", source).group(1)


def all_tests():
    tests = set()
    for file in (ROOT / "tests" / "plugins").glob("test_*.py"):
        tests |= {n.name for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef)}
    return {name for name in tests if name.startswith("test_")}


def test_there_are_the_hooks_the_project_promises():
    assert hook_names() == [
        "fit_failed",
        "fit_finished",
        "fit_stage_finished",
        "fit_started",
        "register_analyses",
        "register_autoencoders",
        "register_backbones",
        "register_commands",
        "register_concept_sources",
        "register_datasets",
        "register_flows",
        "register_image_metrics",
    ]


@pytest.mark.parametrize("hook", hook_names())
def test_every_hook_has_a_test(hook):
    assert any(re.search(rf"_{hook}(_|$)", name) for name in all_tests()), (
        f"write a test in tests/plugins whose name contains {hook!r}"
    )


@pytest.mark.parametrize("hook", hook_names())
def test_every_hooks_signature_is_in_the_tutorial(hook):
    assert f"def {signature(hook)}: ..." in TUTORIAL.read_text(), (
        f"plugins/README.md must show: def {signature(hook)}: ..."
    )


def test_the_tutorial_shows_no_hook_that_does_not_exist():
    shown = re.findall(r"^def (\w+)\(.*\) -> None: \.\.\.$", TUTORIAL.read_text(), flags=re.MULTILINE)
    assert sorted(shown) == hook_names()


@pytest.mark.parametrize("hook", hook_names())
def test_every_hook_says_when_it_is_called(hook):
    assert "Called" in inspect.getdoc(getattr(hookspecs, hook))


def test_every_registry_has_metadata_keys_and_they_are_documented():
    registries = PluginManager([]).registries
    assert {registry.kind for registry in registries.values()} == set(METADATA_KEYS)
    assert set(registries) == {h for h in hook_names() if h.startswith("register_")} - {"register_commands"}
    text = TUTORIAL.read_text()
    for hook, registry in registries.items():
        documented = inspect.getdoc(getattr(hookspecs, hook))
        for key in set(METADATA_KEYS[registry.kind]) - set(hookspecs.COMMON_KEYS):
            assert f"`{key}`" in documented, f"{hook} does not document {key}"
            assert f"`{key}`" in text, f"plugins/README.md does not mention {key}"
