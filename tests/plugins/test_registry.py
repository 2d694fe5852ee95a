"""The registry that plugins fill."""

import pytest

from posthoc_inn.errors import DataError, DuplicateNameError, PluginError, UnknownNameError
from posthoc_inn.plugins.registry import Absent, Entry, OpenEnded, Registry, nearest


@pytest.fixture
def registry():
    registry = Registry("backbone")
    for name in ("resnet18", "resnet50", "alexnet"):
        registry.add(Entry(name, list, "nets", {"layers": ["a"]}))
    return registry


ANIMALS = ("lion", "tiger")


def zoo(distribution="zoo-plugin", **changes):
    def factory(name):
        return (lambda: name.upper()) if name in ANIMALS else None

    parts = {"names": lambda: ANIMALS, "factory": factory, "metadata": lambda name: {"layers": [name]}}
    return OpenEnded("zoo", distribution=distribution, **{**parts, **changes})


def test_a_miss_names_the_nearest_and_what_is_known():
    registry = Registry("flow")
    registry.add(Entry("affine", dict, "a"))
    with pytest.raises(UnknownNameError, match=r"no flow 'afine'\. Did you mean 'affine'\? Known: affine\."):
        registry.get("afine")


def test_a_duplicate_is_counted_once_and_no_factory_of_it_is_handed_out():
    registry = Registry("flow")
    registry.add(Entry("affine", dict, "first"))
    registry.add(Entry("affine", dict, "second"))
    with pytest.raises(DuplicateNameError, match="'affine' is registered by both first and second; uninstall one"):
        registry.get("affine")
    assert len(registry) == 1


@pytest.mark.parametrize("name", ["", "  ", "two words", "tab\there", None, 3])
def test_a_name_with_white_space_is_refused(name):
    with pytest.raises(UnknownNameError, match="a name is text without white space"):
        Registry("flow").add(Entry(name, dict, "a"))


def test_a_contested_name_is_an_error_for_who_asks_for_it_and_for_nobody_else(registry):
    registry.add(Entry("alexnet", dict, "others"))
    with pytest.raises(DuplicateNameError, match="'alexnet' is registered by both nets and others"):
        registry.get("alexnet")
    assert registry.get("resnet18").distribution == "nets"
    assert registry.names() == ["alexnet", "resnet18", "resnet50"]
    assert [entry.name for entry in registry] == ["resnet18", "resnet50"]


def test_open_ended_names_are_built_without_being_listed(registry):
    registry.add_open_ended(zoo())
    entry = registry.get("zoo:lion")
    assert (entry.factory(), entry.distribution, entry.metadata) == ("LION", "zoo-plugin", {"layers": ["lion"]})
    assert "zoo:lion" in registry
    assert "zoo:cat" not in registry
    assert "zoo:lion" not in registry.names()
    assert registry.open_ended_names() == ["zoo:lion", "zoo:tiger"]
    assert registry.open_ended_owner("zoo") == "zoo-plugin"


def test_a_miss_among_open_ended_names_suggests_the_nearest_of_them(registry):
    registry.add_open_ended(zoo())
    with pytest.raises(UnknownNameError, match=r"no backbone 'zoo:tigre'. Did you mean 'zoo:tiger'?"):
        registry.get("zoo:tigre")


def test_a_bare_name_is_found_behind_a_prefix(registry):
    registry.add_open_ended(zoo())
    with pytest.raises(UnknownNameError, match=r"no backbone 'lion'\. Did you mean 'zoo:lion'\? .* zoo:NAME"):
        registry.get("lion")


def test_an_unknown_prefix_says_which_package_may_be_missing(registry):
    with pytest.raises(UnknownNameError, match="Nothing installed brings 'timm:NAME'; is posthoc-inn-timm missing"):
        registry.get("timm:resnet18")


def test_a_contested_prefix_names_both_distributions(registry):
    registry.add_open_ended(zoo())
    registry.add_open_ended(zoo(distribution="safari"))
    with pytest.raises(DuplicateNameError, match=r"'zoo:...' are registered by both zoo-plugin and safari"):
        registry.get("zoo:lion")
    assert registry.get("resnet18").name == "resnet18"


def test_a_refusal_of_the_plugins_own_is_passed_on(registry):
    def factory(name):
        raise DataError(f"{name} bites")

    registry.add_open_ended(zoo(factory=factory))
    with pytest.raises(DataError, match="lion bites"):
        registry.get("zoo:lion")


def test_a_plugin_that_fails_over_a_name_is_named(registry):
    registry.add_open_ended(zoo(factory=lambda name: 1 / 0))
    with pytest.raises(PluginError, match="zoo-plugin fails over 'zoo:lion': ZeroDivisionError"):
        registry.get("zoo:lion")


def test_a_plugin_that_cannot_list_its_names_does_not_hide_the_miss(registry):
    registry.add_open_ended(zoo(names=lambda: 1 / 0))
    with pytest.raises(UnknownNameError, match=r"no backbone 'resnet19'.*'resnet18'.*zoo-plugin cannot list"):
        registry.get("resnet19")
    with pytest.raises(PluginError, match="zoo-plugin cannot list its backbones: ZeroDivisionError"):
        registry.open_ended_names()


def test_an_absent_plugins_names_say_why_they_are_missing(registry):
    registry.absent.append(
        Absent("safari", "failed to load (ImportError: no gin)", frozenset({"safari"}), frozenset({"zebra"}))
    )
    for name in ("zebra", "safari:gnu"):
        with pytest.raises(PluginError, match=f"'{name}' comes with safari, which failed to load .*no gin"):
            registry.get(name)
    with pytest.raises(UnknownNameError, match=r"no backbone 'hippo'.* safari might bring it, but failed"):
        registry.get("hippo")


def test_a_long_list_is_cut_and_counted():
    registry = Registry("backbone")
    for i in range(40):
        registry.add(Entry(f"net{i:02}", dict, "nets"))
    with pytest.raises(UnknownNameError, match=r"net11, 28 more\.$"):
        registry.get("zzz")


def test_the_nearest_names_ignore_case_and_compare_behind_the_colon():
    known = ["timm:resnet18", "ResNet18", "vgg"]
    assert nearest("RESNET18", known) == ["timm:resnet18", "ResNet18"]
    assert nearest("timm:resnet81", known)[0] == "timm:resnet18"
    assert nearest("gg", known) == ["vgg"]
    assert nearest("zzzzz", known) == []
