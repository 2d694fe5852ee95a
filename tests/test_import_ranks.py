"""Modules import from lower ranks only, and what must answer fast imports no heavy library."""

import ast
from pathlib import Path

import pytest

from posthoc_inn.cli.main import COMMANDS

ROOT = Path(__file__).parents[1] / "posthoc_inn"

RANKS = {
    "names": -1,
    "errors": 0,
    "protocols": 0,
    "files": 0.5,
    "seeds": 0,
    "ambient": 0,
    "generators": 0,
    "config": 1,
    "progress": 1,
    # Pure functions of tensors, which autoencoders need too.
    "objectives": 1.5,
    "weights": 1.5,
    # Light: what is registered is imported when it is asked for.
    "plugins": 1.7,
    "images": 2,
    "datasets": 2,
    "features": 2,
    # Draws of a generator are images.
    "autoencoders": 2.5,
    "flows": 2,
    "drawing": 2,
    "concepts": 3,
    "rows": 3.5,
    "training": 4,
    "pipeline": 4,
    "bundle": 4.5,
    "analysis": 5,
    "fit": 5.3,
    "report": 5.5,
    "builtin": 5.5,
    "interpreter": 6,
    "testing": 6,
    "sweep": 6.5,
    "app": 7,
    "cli": 8,
}
"""Folder or module -> rank, from what everything may use to the command line."""

LIGHT = [
    f"posthoc_inn{name}"
    for name in ("", ".names", ".errors", ".config", ".plugins", ".builtin", ".builtin.hooks", ".cli", ".cli.main")
]
"""What is imported before anything is known of what the user wants."""

HEAVY = {"torch", "torchvision", "timm", "numpy", "sklearn", "matplotlib", "lightning_fabric", "PIL", "safetensors"}


def modules():
    found = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")
    assert len(found) > 10
    return found


def file_of(name):
    """Return the file of a module of the project, or None."""
    head, *rest = name.split(".")
    found = (ROOT.joinpath(*rest, "__init__.py"), ROOT.joinpath(*rest).with_suffix(".py"))
    return next((p for p in found if head == "posthoc_inn" and p.is_file()), None)


def part_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree, path):
    """Yield (dotted name, line, whether it happens when the module is imported) for each import of a module."""
    package = ["posthoc_inn", *path.relative_to(ROOT).parts[:-1]]

    def walk(node, at_import):
        for child in ast.iter_child_nodes(node):
            now = at_import
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                now = False
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for inner in child.body:
                    yield from walk(ast.Module([inner], []), False)
                for inner in child.orelse:
                    yield from walk(ast.Module([inner], []), at_import)
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno, now) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                base = ".".join([*base, *([child.module] if child.module else [])])
                yield base, child.lineno, now
                inner = (f"{base}.{alias.name}" for alias in child.names)
                yield from ((name, child.lineno, now) for name in inner if file_of(name) is not None)
            else:
                yield from walk(child, now)

    yield from walk(tree, True)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_lower_ranks_or_its_own_folder(path):
    part = part_of(path)
    assert part in RANKS, f"give {part!r} a rank in {Path(__file__).name}"
    wrong = []
    for name, line, _ in imported(ast.parse(path.read_text()), path):
        pieces = name.split(".")
        if pieces[0] != "posthoc_inn" or len(pieces) == 1 or pieces[1] == part or pieces[1].startswith("_"):
            continue
        if pieces[1] in RANKS and RANKS[pieces[1]] >= RANKS[part]:
            wrong.append(f"line {line}: {name} (rank {RANKS[pieces[1]]}, own rank {RANKS[part]})")
    assert not wrong, f"{path.relative_to(ROOT)} imports upwards or sideways: {'; '.join(wrong)}"


def edges(path):
    """Return the modules of the project that the one in `path` imports, wherever the import stands."""
    found = set()
    listed = list(imported(ast.parse(path.read_text()), path))
    for name, line, _ in listed:
        # `from package import module` imports the module; the package is only on the way.
        is_on_the_way = any(other.rpartition(".")[0] == name and at == line for other, at, _ in listed)
        if file_of(name) is not None and not is_on_the_way:
            found.add(file_of(name))
    return found - {path}


def circles(graph):
    """Return the groups of nodes that import each other, directly or through others."""
    reached = {}
    for start in graph:
        seen, waiting = set(), list(graph[start])
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting.extend(graph.get(node, ()))
        reached[start] = seen
    groups = {frozenset({a, *(b for b in reached[a] if a in reached.get(b, ()))}) for a in graph if a in reached[a]}
    return sorted(sorted(map(str, group)) for group in groups)


def test_no_two_modules_import_each_other_inside_a_folder_either():
    graph = {path.relative_to(ROOT): {p.relative_to(ROOT) for p in edges(path)} for path in modules()}
    assert circles(graph) == []


def test_a_circle_is_found_through_others():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def heavy_imports(start):
    """Return what importing the module `start` imports that is heavy, itself or through others of the project."""
    heavy, seen, waiting = [], set(), [start]
    while waiting:
        name = waiting.pop()
        path = file_of(name)
        if path is None or path in seen:
            continue
        seen.add(path)
        waiting.append(name.rpartition(".")[0])
        for other, line, at_import in imported(ast.parse(path.read_text()), path):
            if at_import and other.split(".")[0] in HEAVY:
                heavy.append(f"{path.relative_to(ROOT)} line {line}: {other}")
            elif at_import:
                waiting.append(other)
    return heavy


@pytest.mark.parametrize("name", LIGHT)
def test_what_must_answer_fast_imports_nothing_heavy_even_through_others(name):
    assert file_of(name), f"there is no module {name}"
    assert heavy_imports(name) == []


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_help_of_a_command_imports_nothing_heavy(command):
    assert heavy_imports(COMMANDS[command][0]) == []


def test_heavy_imports_are_found_through_others():
    assert any("images/" in found and "torch" in found for found in heavy_imports("posthoc_inn.images"))
    assert heavy_imports("posthoc_inn.rows.cache")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch", [("torch", 1, True)]),
        ("def f():\n    import torch", [("torch", 2, False)]),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy", [("torch", 2, False), ("numpy", 4, True)]),
        ("class A:\n    from posthoc_inn.config import X", [("posthoc_inn.config", 2, True)]),
        ("try:\n    from . import sibling\nexcept ImportError:\n    pass", [("posthoc_inn.flows", 2, True)]),
        ("from ..errors import X", [("posthoc_inn.errors", 1, True)]),
        ("from posthoc_inn import cli", [("posthoc_inn", 1, True), ("posthoc_inn.cli", 1, True)]),
    ],
)
def test_imports_are_found_wherever_they_hide(source, expected):
    assert list(imported(ast.parse(source), ROOT / "flows" / "x.py")) == expected
