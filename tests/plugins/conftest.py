"""Plugins as they come: distributions with metadata and entry points, written to a directory on the import path."""

import sys
import textwrap
from importlib.metadata import distributions

import pytest

from posthoc_inn.plugins import PluginManager
from posthoc_inn.plugins.hookspecs import PROJECT


class Site:
    """A directory of installed distributions."""

    def __init__(self, path):
        self.path = path
        self.modules = []

    def install(self, distribution, source, *, entry_point=None, version="1.0", target=None):
        module = distribution.replace("-", "_")
        self.modules.append(module)
        header = "from posthoc_inn import hookimpl\n"
        (self.path / f"{module}.py").write_text(header + textwrap.dedent(source))
        info = self.path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{PROJECT}]\n{entry_point or distribution} = {target or module}\n")

    def entry_points(self):
        found = [
            entry_point
            for distribution in distributions(path=[str(self.path)])
            for entry_point in distribution.entry_points
            if entry_point.group == PROJECT
        ]
        return sorted(found, key=lambda e: e.dist.name)

    def manager(self, **options):
        """Return a manager of these distributions alone, not loaded, and the list its warnings go to."""
        warnings = []
        return PluginManager(self.entry_points(), warn=warnings.append, **options), warnings

    def load(self, **options):
        manager, warnings = self.manager(**options)
        manager.load()
        return manager, warnings


@pytest.fixture
def site(tmp_path, monkeypatch):
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))
    site = Site(path)
    yield site
    for module in site.modules:
        sys.modules.pop(module, None)
