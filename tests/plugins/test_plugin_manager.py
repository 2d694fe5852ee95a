"""Finding, loading and isolating plugins."""

import json
import os
import subprocess
import sys
import warnings

import pytest

from posthoc_inn.errors import (
    ConfigError,
    DataError,
    DuplicateNameError,
    PluginError,
    PosthocInnWarning,
    UnknownNameError,
)
from posthoc_inn.plugins import PluginManager, get_plugin_manager, limit_from_environment

GOOD = """
@hookimpl
def register_backbones(register):
    register("net-of-{0}", lambda *, weights, num_classes: __import__("torch").nn.Linear(2, num_classes or 2))
"""
HALFWAY = """
@hookimpl
def register_datasets(register):
    register("half-data", list)

@hookimpl
def register_backbones(register):
    register("half-net", list)
    register.open_ended("half", names=list, factory=lambda name: list)
    raise ValueError("second half missing")

@hookimpl
def register_commands(cli):
    cli.command("half-command")(lambda: None)
"""


def good(name):
    return GOOD.replace("{0}", name)


def test_listing_imports_nothing(site):
    site.install("explosive", "raise SystemExit('imported')")
    manager, _ = site.manager()
    assert manager.plugins() == []
    assert "explosive" not in sys.modules


def test_a_plugins_registrations_carry_its_distribution(site):
    site.install("posthoc-inn-mine", good("mine"), version="2.3", entry_point="mine")
    manager, warned = site.load()
    assert manager.backbones.get("net-of-mine").distribution == "posthoc-inn-mine"
    assert manager.plugins()[1] == {
        "distribution": "posthoc-inn-mine",
        "version": "2.3",
        "entry_point": "mine",
        "status": "loaded",
        "error": "",
        "hooks": ["register_backbones"],
        "registered": {"backbone": ["net-of-mine"]},
    }
    assert manager.build_backbone("net-of-mine", num_classes=3).out_features == 3
    assert warned == []


def test_the_core_registers_through_the_same_hooks(site):
    manager, _ = site.load()
    (core,) = manager.plugins()
    assert (core["distribution"], core["status"]) == ("posthoc-inn", "loaded")
    assert core["registered"]["flow"] == ["affine", "conv", "linear", "spline", "transformer"]
    assert core["registered"]["dataset"] == ["color-digits"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_that_is_not_there", "No module named 'a_module_that_is_not_there'"),
        ("this is no python", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (
            "@hookimpl\ndef register_backbone(register): ...",
            "no plugin hook 'register_backbone'. Did you mean 'register_backbones'",
        ),
        ("@hookimpl\ndef register_backbones(registrar): ...", "registrar"),
        ("def register_backbones(register): ...", "register_backbones is not marked with @posthoc_inn.hookimpl"),
        ("x = 1", "implements no plugin hook"),
        (
            "@hookimpl\ndef register_flows(register):\n    register('a', list)\n    register('a', dict)",
            "registers the flow 'a' twice",
        ),
        ("@hookimpl\ndef register_flows(register): register('a:b', list)", "open_ended"),
        ("@hookimpl\ndef register_flows(register): register('a b', list)", "without white space"),
        ("@hookimpl\ndef register_flows(register): register('a', 3)", "must be callable, got 3"),
        (
            "@hookimpl\ndef register_backbones(register): register('a', list, layer=['x'])",
            "unknown metadata 'layer'. Did you mean 'layers'",
        ),
        (HALFWAY, "ValueError: second half missing"),
    ],
)
def test_a_broken_plugin_is_one_warning_and_the_others_live_on(site, source, reason):
    site.install("a-broken-one", source)
    site.install("posthoc-inn-mine", good("mine"))
    manager, warned = site.load()
    assert len(warned) == 1
    assert "a-broken-one" in warned[0]
    assert reason in warned[0]
    assert [p["status"] for p in manager.plugins()] == ["loaded", "broken", "loaded"]
    assert reason in manager.plugins()[1]["error"]
    assert "net-of-mine" in manager.backbones
    manager.load()
    assert len(warned) == 1


def test_a_plugin_that_fails_halfway_leaves_nothing_behind(site):
    site.install("a-broken-one", HALFWAY)
    manager, _ = site.load()
    untouched = PluginManager([])
    untouched.load()
    for hook, registry in manager.registries.items():
        assert registry.names() == untouched.registries[hook].names()
        assert registry.prefixes() == untouched.registries[hook].prefixes()
    assert manager.commands == {}
    assert manager.plugins()[1]["registered"] == {}


def test_asking_for_what_a_broken_plugin_was_about_to_register_says_why_it_is_missing(site):
    site.install("a-broken-one", HALFWAY)
    manager, _ = site.load()
    for name in ("half-net", "half:anything", "a-broken-one:net"):
        with pytest.raises(PluginError, match=r"comes with a-broken-one, which failed to load .*second half"):
            manager.backbones.get(name)
    with pytest.raises(UnknownNameError, match="a-broken-one might bring it, but failed to load"):
        manager.backbones.get("something-else")


def test_warnings_that_are_errors_leave_a_complete_manager(site):
    site.install("a-broken-one", HALFWAY)
    site.install("posthoc-inn-mine", good("mine"))
    manager = PluginManager(site.entry_points())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PosthocInnWarning, match="a-broken-one"):
            manager.load()
    assert "net-of-mine" in manager.backbones


def test_a_duplicate_stops_only_who_asks_for_it(site):
    site.install("posthoc-inn-a", good("both") + good("a").replace("register_backbones", "register_analyses"))
    site.install("posthoc-inn-b", good("both"))
    manager, warned = site.load()
    assert warned == []
    with pytest.raises(DuplicateNameError, match="registered by both posthoc-inn-a and posthoc-inn-b"):
        manager.build_backbone("net-of-both")
    assert "small_cnn" in manager.backbones
    assert "net-of-a" in manager.analyses
    assert len(manager.conflicts()) == 1
    assert [p["status"] for p in manager.plugins()] == ["loaded"] * 3


def test_a_duplicate_of_a_core_name_is_not_preferred_and_goes_away_with_the_plugin(site):
    site.install("usurper", "@hookimpl\ndef register_backbones(register): register('small_cnn', list)")
    manager, _ = site.load()
    with pytest.raises(DuplicateNameError, match=r"both posthoc-inn and usurper.*POSTHOC_INN_PLUGINS"):
        manager.backbones.get("small_cnn")
    manager, _ = site.load(only=[])
    assert manager.backbones.get("small_cnn").distribution == "posthoc-inn"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), ("", []), ("none", []), (" None ", []), ("a", ["a"]), ("a, b_c,,", ["a", " b_c"])],
)
def test_the_environment_variable_limits_plugins(monkeypatch, value, expected):
    if value is None:
        monkeypatch.delenv("POSTHOC_INN_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("POSTHOC_INN_PLUGINS", value)
    assert limit_from_environment() == expected


@pytest.mark.parametrize(
    ("only", "loaded"),
    [
        (None, {"posthoc-inn-a", "posthoc-inn-b"}),
        ([], set()),
        (["posthoc_inn.A"], {"posthoc-inn-a"}),
        (["point-b"], {"posthoc-inn-b"}),
    ],
)
def test_plugins_are_chosen_by_distribution_or_entry_point(site, only, loaded):
    site.install("posthoc-inn-a", good("a"), entry_point="point-a")
    site.install("posthoc-inn-b", good("b"), entry_point="point-b")
    manager, warned = site.load(only=only)
    assert {p["distribution"] for p in manager.plugins()[1:] if p["status"] == "loaded"} == loaded
    assert {p["status"] for p in manager.plugins()[1:]} <= {"loaded", "disabled"}
    assert ("posthoc_inn_a" in sys.modules) == ("posthoc-inn-a" in loaded)
    assert warned == []


def test_a_switched_off_plugin_is_named_where_it_is_missed(site):
    site.install("posthoc-inn-a", good("a"))
    manager, _ = site.load(only=[])
    with pytest.raises(UnknownNameError, match="posthoc-inn-a might bring it, but is switched off by POSTHOC_INN"):
        manager.backbones.get("net-of-a")
    with pytest.raises(PluginError, match="'a:x' comes with posthoc-inn-a, which is switched off"):
        manager.backbones.get("a:x")


def test_limiting_to_a_plugin_that_is_not_installed_is_a_warning(site):
    site.install("posthoc-inn-a", good("a"))
    _, warned = site.load(only=["posthoc-inn-aa"])
    assert len(warned) == 1
    assert "'posthoc-inn-aa', which is not installed. Did you mean 'posthoc-inn-a'" in warned[0]


def test_the_summary_is_json(site):
    site.install("a-broken-one", HALFWAY)
    manager, _ = site.load()
    assert json.loads(json.dumps(manager.plugins())) == manager.plugins()


def test_a_plugin_object_can_be_registered_by_hand_and_fails_loudly(site):
    manager, _ = site.load()
    with pytest.raises(PluginError, match=r"The plugin mine cannot be registered: .*implements no plugin hook"):
        manager.register(object(), distribution="mine")
    assert len(manager.plugins()) == 1


def test_what_a_factory_raises_becomes_a_plugin_error_naming_the_distribution(site):
    site.install(
        "posthoc-inn-a",
        """
        from posthoc_inn.errors import DataError

        def fails(*, weights, num_classes):
            import a_module_that_is_not_there

        def says(*, weights, num_classes):
            raise DataError("no file")

        @hookimpl
        def register_backbones(register):
            register("fails", fails, spec=lambda weights: 1 / 0)
            register("says", says, spec="224")
            register("odd", lambda **_: 3)
        """,
    )
    manager, _ = site.load()
    with pytest.raises(PluginError, match="backbone 'fails' of posthoc-inn-a cannot be built: ModuleNotFound"):
        manager.build_backbone("fails")
    with pytest.raises(DataError, match="no file"):
        manager.build_backbone("says")
    with pytest.raises(PluginError, match=r"'odd' of posthoc-inn-a is a int, not a torch.nn.Module"):
        manager.build_backbone("odd")
    with pytest.raises(PluginError, match="posthoc-inn-a cannot say how 'fails' wants its images: ZeroDivision"):
        manager.image_spec("fails")
    with pytest.raises(PluginError, match="by a str, not an ImageSpec"):
        manager.image_spec("says")


def test_the_image_size_can_be_overridden(site):
    manager, _ = site.load()
    assert manager.image_spec("small_cnn").size == (28, 28)
    spec = manager.image_spec("small_cnn", image_size=64)
    assert (spec.size, spec.mean, spec.crop) == ((64, 64), (0.5, 0.5, 0.5), 1.0)


def test_metadata_of_open_ended_names_are_checked_too(site):
    site.install(
        "posthoc-inn-zoo",
        """
        @hookimpl
        def register_backbones(register):
            register.open_ended("zoo", names=list, factory=lambda n: list, metadata=lambda n: {"size": 3})
        """,
    )
    manager, _ = site.load()
    with pytest.raises(PluginError, match="backbone 'zoo:a' has unknown metadata 'size'"):
        manager.backbones.get("zoo:a")


def test_options_and_directories_of_data_sets_are_checked(site):
    site.install(
        "posthoc-inn-a",
        """
        @hookimpl
        def register_datasets(register):
            register("rows", lambda root, *, train, seed, size=1: [root, train, seed, size], needs_dir=True,
                     options={"size": "pixels"})
        """,
    )
    manager, _ = site.load()
    assert manager.build_dataset("rows", "d", train=False, seed=3, size=8) == ["d", False, 3, 8]
    with pytest.raises(ConfigError, match=r"'rows' takes no option 'sise'. Did you mean 'size'"):
        manager.build_dataset("rows", "d", sise=8)
    with pytest.raises(DataError, match="'rows' is read from a directory"):
        manager.build_dataset("rows")


def test_the_managers_accessor_loads_once(monkeypatch):
    monkeypatch.setenv("POSTHOC_INN_PLUGINS", "none")
    get_plugin_manager.cache_clear()
    try:
        assert get_plugin_manager() is get_plugin_manager()
        assert get_plugin_manager().backbones.names() == ["small_cnn"]
    finally:
        get_plugin_manager.cache_clear()


def test_loading_every_installed_plugin_imports_no_heavy_library():
    code = (
        "import sys\n"
        "from posthoc_inn.plugins import get_plugin_manager\n"
        "manager = get_plugin_manager()\n"
        "manager.plugins(), manager.backbones.names()\n"
        "import json; print(json.dumps([p['distribution'] for p in manager.plugins() if p['status'] == "
        "'loaded']))\nprint([m for m in ('torch', 'torchvision', 'timm', 'numpy', 'sklearn', 'PIL') if m in "
        "sys.modules])"
    )
    env = {k: v for k, v in os.environ.items() if k != "POSTHOC_INN_PLUGINS"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    loaded, heavy = run.stdout.splitlines()
    assert heavy == "[]"
    if not {"posthoc-inn-torchvision", "posthoc-inn-timm"} <= set(json.loads(loaded)):
        pytest.skip("the first-party plugins are not installed")
