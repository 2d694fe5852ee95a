"""How Sphinx builds this site; `make docs` calls it. Nothing is fetched, neither to build nor to read it."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from sphinx.pycode import ModuleAnalyzer  # noqa: E402

import posthoc_inn  # noqa: E402
from posthoc_inn.config import PRESETS  # noqa: E402

project = "posthoc_inn"
author = "The posthoc_inn developers"
copyright = "The posthoc_inn developers, MIT licence"
version = release = posthoc_inn.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build", "**/_*.md"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

# Docstrings write names in single backticks, as Markdown does.
default_role = "literal"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Without it, `metrics_` is read as a link to "metrics".
strip_signature_backslash = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "posthoc_inn"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

PACKAGES = (
    "analysis",
    "autoencoders",
    "bundle",
    "concepts",
    "datasets",
    "drawing",
    "features",
    "fit",
    "flows",
    "images",
    "plugins",
    "report",
    "testing",
    "training",
    "weights",
)
"""Public subpackages with a page of their own; `config` has a page that is written by hand."""


def write_api_pages(folder: Path) -> None:
    """Write a page for each public subpackage: what its `__all__` has and the top level has not.

    Args:
        folder: Where the pages go; it is made anew with every build.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        module = importlib.import_module(f"posthoc_inn.{package}")
        names = [name for name in module.__all__ if name not in posthoc_inn.__all__]
        title = f"posthoc_inn.{package}"
        lines = [title, "=" * len(title), "", (module.__doc__ or "").strip(), "", f".. currentmodule:: {title}", ""]
        also = [f"``{name}``" for name in module.__all__ if name in posthoc_inn.__all__]
        if also:
            lines += [f"At the top level of the package, and described in :doc:`../python`: {', '.join(also)}.", ""]
        lines += [line for name in names for line in directive(module, name)]
        (folder / f"{package}.rst").write_text("\n".join(lines), encoding="utf-8")


def directive(module: ModuleType, name: str) -> list[str]:
    """Return the lines that document one public name."""
    value = getattr(module, name)
    if isinstance(value, type):
        return [f".. autoclass:: {name}", "   :members:", "   :show-inheritance:", ""]
    if hasattr(value, "__code__"):
        return [f".. autofunction:: {name}", ""]
    return [f".. py:data:: {name}", "", *(f"   {line}" for line in comment(module.__name__, name)), ""]


def comment(package: str, name: str) -> list[str]:
    """Return the lines of the string that stands below a constant, in whichever module of `package` defines it."""
    for found in sorted(m for m in sys.modules if m.startswith(package)):
        path = getattr(sys.modules[found], "__file__", None)
        docs = ModuleAnalyzer.for_module(found).find_attr_docs() if path and path.endswith(".py") else {}
        if ("", name) in docs:
            return docs["", name]
    return []


def plain_markup(app: object, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Keep `*z_shape` and `|x|` of docstrings as they are: they are no emphasis and no substitution."""
    code: int | None = None  # the indent of the line that a literal block hangs on
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if code is not None and line.strip() and indent <= code:
            code = None
        if code is None and not line.lstrip().startswith((">>>", "...")):
            parts = [part if part.startswith("`") else escaped(part) for part in SPANS.split(line)]
            # "flow_: t." is no list whose first item is empty.
            parts[0] = re.sub(r"^(\s+\w+: )([A-Za-z])\.(?=\s|$)", r"\1\2\\.", parts[0])
            # A name ends where a letter follows ("`DataError`s") only if it is told.
            lines[number] = re.sub(r"(?<=`)\0(?=\w)", r"\\ ", "\0".join(parts)).replace("\0", "")
        if line.rstrip().endswith("::"):
            code = indent


SPANS = re.compile(r"(``.+?``|`[^`]+`)")


def escaped(text: str) -> str:
    """Return text in which a star before a name, and a bar, are themselves; *words* stay emphasised."""
    parts = re.split(r"((?<![\w*])\*[^\s*][^*]*(?<=[^\s*])\*(?![\w*]))", text)
    return "".join(
        part if number % 2 else re.sub(r"(?<![\w*\\])\*(?=\w)|\|", r"\\\g<0>", part)
        for number, part in enumerate(parts)
    )


def setup(app: Any) -> None:
    """Add what is said above to Sphinx."""
    app.connect("autodoc-process-docstring", plain_markup, priority=400)


def write_presets(path: Path) -> None:
    """Write the table of presets: what a fit trains, as `posthoc_inn.config.PRESETS` has it."""
    rows = [
        f"| `{name}` | {p.latent_dim} | {p.flow.kind} | {p.flow.blocks} | {p.flow.width} "
        f"| {p.autoencoder_training.steps:,} | {p.flow_training.steps:,} | {p.concepts.training.steps:,} |"
        for name, p in PRESETS.items()
    ]
    head = "| Preset | Numbers in a code | Kind of t | Blocks | Width | Steps: autoencoder | t | e |\n" + "| --- " * 8
    path.write_text(head + "|\n" + "\n".join(rows) + "\n", encoding="utf-8")


write_api_pages(HERE / "reference" / "api")
write_presets(HERE / "reference" / "_presets.md")
