"""The code of plugins/README.md is run, block after block, as a reader would."""

import re
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import torch

from posthoc_inn.errors import UnknownNameError
from posthoc_inn.images import BatchSource
from posthoc_inn.plugins import PluginManager, hook_names, hookimpl
from posthoc_inn.plugins.hookspecs import PROJECT
from posthoc_inn.protocols import ConceptSource

TUTORIAL = Path(__file__).parents[2] / "plugins" / "README.md"
MY_PACKAGE = """
from torch import nn

class MyNet(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(3 * 64 * 64, classes))
"""


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TUTORIAL.read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """The names that the reader has after the last block; the first is in the file that it is printed for."""
    path = tmp_path_factory.mktemp("reader")
    code = blocks("python")
    (path / "posthoc_inn_mine").mkdir()
    (path / "posthoc_inn_mine" / "__init__.py").write_text(code[0])
    (path / "my_package.py").write_text(textwrap.dedent(MY_PACKAGE))
    names = {"__name__": "tutorial"}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path))
        hooks = []
        for block in code:
            exec(compile(block, str(TUTORIAL), "exec"), names)
            hooks.append(names.get("register_backbones"))
        yield {**names, "hooks": hooks}
    for module in ("posthoc_inn_mine", "my_package"):
        sys.modules.pop(module, None)


def manager_of(**functions):
    manager = PluginManager(entry_points=[])
    manager.load()
    plugin = type("Plugin", (), {name: staticmethod(function) for name, function in functions.items()})()
    manager.register(plugin, distribution="tutorial")
    return manager


def test_the_test_it_shows_passes(read):
    read["test_my_net_is_registered"]()


def test_its_network_is_built_with_weights_of_a_file(read, tmp_path):
    manager = manager_of(register_backbones=read["hooks"][0])
    model = manager.build_backbone("my-net", num_classes=4)
    torch.save(model.state_dict(), tmp_path / "my.pth")
    again = manager.build_backbone("my-net", num_classes=4, weights=str(tmp_path / "my.pth"))
    assert torch.equal(again[1].weight, model[1].weight)
    assert manager.image_spec("my-net").size == (64, 64)


def test_its_open_ended_names_are_found_and_missed_as_it_says(read):
    manager = manager_of(register_backbones=read["hooks"][1])
    assert manager.build_backbone("zoo:thin", num_classes=3)(torch.zeros(2, 1, 28, 28)).shape == (2, 3)
    assert manager.backbones.get("zoo:wide").metadata["layers"] == ["1", "2"]
    with pytest.raises(UnknownNameError, match=r"no backbone 'zoo:thinn'\. Did you mean 'zoo:thin'"):
        manager.build_backbone("zoo:thinn")


def test_its_concept_source_is_one_and_gives_pairs_of_the_data(read):
    source = read["Twins"](torch.zeros(9, 3, 8, 8))
    assert isinstance(source, ConceptSource)
    a, b, shared = source.pairs(50, seed=0)
    assert set((b - a).tolist()) == {1}
    assert int(b.max()) < BatchSource(torch.zeros(9, 3, 8, 8)).length
    assert shared.shape == (50, 2)


def test_the_signatures_it_shows_are_those_of_hooks_that_a_plugin_can_implement(read):
    shown = {name: read[name] for name in hook_names()}
    manager = manager_of(**{name: hookimpl(function) for name, function in shown.items()})
    assert manager.plugins()[-1]["hooks"] == hook_names()
    assert all("return" in function.__annotations__ for function in shown.values())


def test_its_project_file_names_the_module_under_the_entry_point_group():
    (project,) = map(tomllib.loads, blocks("toml"))
    (module,) = project["project"]["entry-points"][PROJECT].values()
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [module]
    assert f"`{module}/__init__.py`:\n\n```python" in TUTORIAL.read_text()
