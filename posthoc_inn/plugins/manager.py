"""The typed plugin manager: lists without importing, loads each plugin alone, survives the broken ones.

Installing a package is the user's act of trust; nothing that is read from a file can name code to import.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Collection, Iterable
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pluggy

from posthoc_inn.errors import (
    ConfigError,
    DataError,
    DuplicateNameError,
    PluginError,
    PosthocInnError,
    PosthocInnWarning,
    suggest,
)
from posthoc_inn.plugins import hookspecs
from posthoc_inn.plugins.environment import (
    ENVIRONMENT,
    installed_entry_points,
    limit_from_environment,
    normalize,
    owner_of,
)
from posthoc_inn.plugins.hookspecs import PROJECT, FitEvent
from posthoc_inn.plugins.implementation import checked_hooks
from posthoc_inn.plugins.registry import Absent, Registry, describe
from posthoc_inn.plugins.staging import PluginInfo, Staged

if TYPE_CHECKING:
    import click
    from torch import Tensor, nn
    from torch.utils.data import Dataset

    from posthoc_inn.config import ImageSpec
    from posthoc_inn.protocols import ConceptSource

CORE = "posthoc-inn"
"""The core's own distribution, whose registrations go through the same plugin hooks as anybody's."""
_CORE_ENTRY_POINT = EntryPoint(name="core", value="posthoc_inn.builtin.hooks", group=PROJECT)


class PluginManager:
    """Everything that plugins, and the core itself, registered; one method per event they can listen to.

    `load` must have been called; `get_plugin_manager` does that once per process.

    Args:
        entry_points: Plugins to load; None for all that are installed. Listing them imports none.
        only: Distributions or entry points to load; None for all. The core is always loaded.
        warn: Called with the text of each warning; None for `warnings.warn`.

    >>> manager = PluginManager(entry_points=[])
    >>> manager.load()
    >>> [p["distribution"] for p in manager.plugins()]
    ['posthoc-inn']
    >>> manager.backbones.names()
    ['small_cnn']
    """

    def __init__(
        self,
        entry_points: Iterable[EntryPoint] | None = None,
        *,
        only: Collection[str] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.backbones: Registry[nn.Module] = Registry("backbone")
        self.autoencoders: Registry[nn.Module] = Registry("autoencoder")
        self.flows: Registry[nn.Module] = Registry("flow")
        self.concept_sources: Registry[ConceptSource] = Registry("concept source")
        self.datasets: Registry[Dataset[Any]] = Registry("dataset")
        self.image_metrics: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry("image metric")
        self.analyses: Registry[Any] = Registry("analysis")
        self.commands: dict[str, tuple[str, click.Command]] = {}
        self._entry_points = list(installed_entry_points() if entry_points is None else entry_points)
        self._only = None if only is None else {normalize(name) for name in only}
        self._tell = warn or (lambda text: warnings.warn(PosthocInnWarning(text), stacklevel=4))
        self._told: set[str] = set()
        self._pending_warnings: list[str] = []
        self._infos: list[PluginInfo] = []
        self._plugins: dict[str, tuple[PluginInfo, object]] = {}
        self._is_loaded = False
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(hookspecs)

    @property
    def registries(self) -> dict[str, Registry[Any]]:
        """Hook that fills it -> registry."""
        return {
            "register_backbones": self.backbones,
            "register_autoencoders": self.autoencoders,
            "register_flows": self.flows,
            "register_concept_sources": self.concept_sources,
            "register_datasets": self.datasets,
            "register_image_metrics": self.image_metrics,
            "register_analyses": self.analyses,
        }

    def load(self) -> None:
        """Load the core's registrations and every plugin not switched off; a second call does nothing.

        A plugin that cannot be loaded leaves nothing behind but a `PosthocInnWarning` naming its
        distribution, once.
        """
        if self._is_loaded:
            return
        self._is_loaded = True
        self._load_one(_CORE_ENTRY_POINT, CORE, importlib.import_module("posthoc_inn").__version__)
        for entry_point in self._entry_points:
            distribution, version = owner_of(entry_point)
            names = {normalize(distribution), normalize(entry_point.name)}
            if self._only is None or names & self._only:
                self._load_one(entry_point, distribution, version)
            else:
                info = PluginInfo(distribution, version, entry_point.name, "disabled")
                self._infos.append(info)
                self._note_absent(info, None, f"is switched off by {ENVIRONMENT}")
        self._warn_about_unknown_limits()
        # Warnings come last: where they are errors, the manager is complete all the same.
        pending, self._pending_warnings = self._pending_warnings, []
        for text in pending:
            self._warn(text)

    def register(self, plugin: object, *, distribution: str, version: str = "", name: str = "direct") -> None:
        """Register a plugin object or module by hand: for tests, notebooks, programs that embed the project.

        Raises:
            PluginError: The plugin cannot be used; nothing of it is registered.
        """
        info = PluginInfo(distribution, version, name)
        self._infos.append(info)
        try:
            self._adopt(plugin, info)
        except Exception as error:
            self._infos.remove(info)
            raise PluginError(f"The plugin {distribution} cannot be registered: {describe(error)}") from error

    def _load_one(self, entry_point: EntryPoint, distribution: str, version: str) -> None:
        info = PluginInfo(distribution, version, entry_point.name)
        self._infos.append(info)
        staged = Staged(distribution)
        try:
            self._adopt(entry_point.load(), info, staged)
        except (Exception, SystemExit) as error:
            # Whatever a stranger's module does at import must not stop the host.
            info.status, info.error, info.registered = "broken", describe(error), {}
            self._note_absent(info, staged, f"failed to load ({info.error})")
            self._pending_warnings.append(
                f"The plugin {distribution} (entry point {entry_point.name!r}) failed to load and is left "
                f"out: {info.error}. Update or uninstall it, or leave it out with {ENVIRONMENT}."
            )

    def _adopt(self, plugin: object, info: PluginInfo, staged: Staged | None = None) -> None:
        staged = staged or Staged(info.distribution)
        key = f"{info.distribution}:{info.entry_point}"
        self._pluggy.register(plugin, name=key)
        try:
            info.hooks = checked_hooks(self._pluggy, plugin)
            for hook, registry in self.registries.items():
                if hook in info.hooks:
                    self._call(plugin, hook, register=staged.register_for(registry.kind))
            if "register_commands" in info.hooks:
                import click

                group = click.Group("posthoc-inn")
                self._call(plugin, "register_commands", cli=group)
                staged.commands = dict(group.commands)
        except BaseException:
            self._pluggy.unregister(plugin, name=key)
            raise
        self._plugins[key] = (info, plugin)
        self._commit(staged, info)

    def _call(self, plugin: object, hook: str, **kwargs: Any) -> None:
        others = [p for p in self._pluggy.get_plugins() if p is not plugin]
        self._pluggy.subset_hook_caller(hook, others)(**kwargs)

    def _commit(self, staged: Staged, info: PluginInfo) -> None:
        for registry in self.registries.values():
            for (kind, _), entry in staged.entries.items():
                if kind == registry.kind:
                    registry.add(entry)
            for (kind, _), opened in staged.opened.items():
                if kind == registry.kind:
                    registry.add_open_ended(opened)
            if staged.names(registry.kind):
                info.registered[registry.kind] = sorted(staged.names(registry.kind))
        for name, command in staged.commands.items():
            if name in self.commands:
                command = _contested_command(name, self.commands[name][0], info.distribution)
            self.commands[name] = (info.distribution, command)
        if staged.commands:
            info.registered["command"] = sorted(staged.commands)

    def _warn(self, text: str) -> None:
        """Warn of each thing once, however often it is come across."""
        if text not in self._told:
            self._told.add(text)
            self._tell(text)

    def _note_absent(self, info: PluginInfo, staged: Staged | None, why: str) -> None:
        named_for = normalize(info.distribution).removeprefix(f"{CORE}-")
        for registry in self.registries.values():
            entries = staged.entries if staged else {}
            opened = staged.opened if staged else {}
            registry.absent.append(
                Absent(
                    info.distribution,
                    why,
                    frozenset({named_for, *(p for k, p in opened if k == registry.kind)}),
                    frozenset(n for k, n in entries if k == registry.kind),
                )
            )

    def _warn_about_unknown_limits(self) -> None:
        installed = [owner_of(e)[0] for e in self._entry_points] + [e.name for e in self._entry_points]
        for name in sorted((self._only or set()) - {normalize(n) for n in installed}):
            self._pending_warnings.append(
                f"{ENVIRONMENT} names {name!r}, which is not installed. {suggest(name, sorted(set(installed)))}"
            )

    def plugins(self) -> list[dict[str, Any]]:
        """Return one JSON-able record a plugin, the core first; see `PluginInfo` for the keys."""
        return [info.to_dict() for info in self._infos]

    def conflicts(self) -> list[str]:
        """Return one sentence for each name that two distributions register."""
        return [text for registry in self.registries.values() for text in registry.contested.values()]

    def build(self, registry: Registry[Any], name: str, *args: Any, **kwargs: Any) -> Any:
        """Call the factory registered as `name` in one of the registries.

        Raises:
            UnknownNameError: Nobody registered it.
            PluginError: The factory raised something that is not a `PosthocInnError`.
        """
        entry = registry.get(name)
        try:
            return entry.factory(*args, **kwargs)
        except PosthocInnError:
            raise
        except Exception as error:
            raise PluginError(
                f"The {registry.kind} {name!r} of {entry.distribution} cannot be built: {describe(error)}"
            ) from error

    def build_backbone(self, name: str, *, weights: str | None = None, num_classes: int | None = None) -> nn.Module:
        """Build a registered network, in eval mode.

        Args:
            name: "resnet18", or open-ended "timm:resnet18".
            weights: None for random ones; else a name the plugin understands, or a local file.
            num_classes: Outputs; None for what the weights have.

        Raises:
            UnknownNameError: Nobody registered `name`, or nobody knows `weights`.
            DataError: The weights cannot be read or do not fit.
            PluginError: The plugin fails, or does not build a module.
        """
        from torch import nn

        model = self.build(self.backbones, name, weights=weights, num_classes=num_classes)
        if not isinstance(model, nn.Module):
            raise PluginError(
                f"The backbone {name!r} of {self.backbones.get(name).distribution} is a "
                f"{type(model).__name__}, not a torch.nn.Module."
            )
        return model.eval()

    def image_spec(
        self, name: str, *, weights: str | None = None, image_size: int | tuple[int, int] | None = None
    ) -> ImageSpec | None:
        """Return how the backbone `name` wants its images; None for canonical images as they are.

        Args:
            name: Registered name.
            weights: As in `build_backbone`; named weights may want another size than the network's default.
            image_size: Height and width in pixels, or one number for a square, instead of the spec's own (without its
                central crop).

        Raises:
            PluginError: The spec cannot be found out.
        """
        entry = self.backbones.get(name)
        spec = entry.metadata.get("spec")
        if callable(spec):
            try:
                spec = spec(weights)
            except PosthocInnError:
                raise
            except Exception as error:
                raise PluginError(
                    f"{entry.distribution} cannot say how {name!r} wants its images: {describe(error)}"
                ) from error
        from posthoc_inn.config import ImageSpec

        if spec is not None and not isinstance(spec, ImageSpec):
            raise PluginError(
                f"{entry.distribution} says how {name!r} wants its images by a {type(spec).__name__}, not an ImageSpec."
            )
        if image_size is None:
            return spec
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        return ImageSpec(size=size) if spec is None else spec.replace(size=size, crop=1.0)

    def build_dataset(
        self, name: str, root: str | None = None, *, train: bool = True, seed: int = 0, **options: Any
    ) -> Dataset[Any]:
        """Build a registered data set; `options` are those its metadata lists.

        Raises:
            ConfigError: An option is not one of the data set's.
            DataError: `root` is needed, or files are missing.
        """
        entry = self.datasets.get(name)
        known = entry.metadata.get("options", {})
        for key in options:
            if key not in known:
                raise ConfigError(f"The dataset {name!r} takes no option {key!r}. {suggest(key, known)}")
        if root is None and entry.metadata.get("needs_dir", False):
            raise DataError(f"The dataset {name!r} is read from a directory; pass it (--data-dir, or root=).")
        data: Dataset[Any] = self.build(self.datasets, name, root, train=train, seed=seed, **options)
        return data

    def register_commands(self, cli: click.Group, *, taken: Collection[str] = ()) -> None:
        """Add every plugin's commands to `cli`.

        Args:
            cli: The command line's group.
            taken: Names of built-in commands that `cli` makes on demand, besides those in ``cli.commands``.
        """
        for name, (distribution, command) in self.commands.items():
            if name in cli.commands or name in taken:
                self._warn(
                    f"The plugin {distribution} adds the command {name!r}, which posthoc-inn has itself; the "
                    "plugin's is left out."
                )
            else:
                cli.add_command(command, name)

    def fit_started(self, event: FitEvent) -> None:
        """Tell plugins that a fit begins."""
        self._notify("fit_started", event)

    def fit_stage_finished(self, event: FitEvent) -> None:
        """Tell plugins that a stage has been trained."""
        self._notify("fit_stage_finished", event)

    def fit_finished(self, event: FitEvent) -> None:
        """Tell plugins that the fit went well."""
        self._notify("fit_finished", event)

    def fit_failed(self, event: FitEvent) -> None:
        """Tell plugins that the fit ended by an error or Ctrl-C."""
        self._notify("fit_failed", event)

    def _notify(self, hook: str, event: FitEvent) -> None:
        for info, plugin in self._plugins.values():
            if hook in info.hooks:
                try:
                    self._call(plugin, hook, event=event)
                except Exception as error:
                    # Hours of training are not thrown away for an observer.
                    self._warn(f"The plugin {info.distribution} failed in {hook}: {describe(error)}")


def _contested_command(name: str, first: str, second: str) -> click.Command:
    import click

    def refuse(**_: Any) -> None:
        raise DuplicateNameError(
            f"The command {name!r} is registered by both {first} and {second}; uninstall one, or leave it "
            f"out with {ENVIRONMENT}."
        )

    return click.Command(name, callback=refuse, help=f"Unusable: registered by both {first} and {second}.")


@functools.cache
def get_plugin_manager() -> PluginManager:
    """Return the process's plugin manager, loaded at the first call; its ``cache_clear()`` forgets it."""
    manager = PluginManager(only=limit_from_environment())
    manager.load()
    return manager
