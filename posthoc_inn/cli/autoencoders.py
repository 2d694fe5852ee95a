"""What --autoencoder and --autoencoder-option come to: the configuration of an autoencoder that is to be trained."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posthoc_inn.config import AutoencoderConfig, FitConfig
from posthoc_inn.errors import ConfigError, Problems, suggest
from posthoc_inn.plugins import PluginManager, get_plugin_manager

BUILT_IN, BUILT_IN_MAP = "conv", "residual"
"""The registered autoencoders that are trained unless another is named: for codes that are vectors, and maps."""
ELSEWHERE = ("kind", "size", "channels", "latent", "seed")
"""What is not an option: the kind, the data and other options say it."""


def autoencoder_changes(
    name: str | None, options: Sequence[tuple[str, str]], manager: PluginManager | None = None
) -> dict[str, Any]:
    """Return the attributes of `AutoencoderConfig` that options KEY=VALUE say, in their types.

    Args:
        name: Registered autoencoder; None for a built-in one, which the size of the images will decide.
        options: Pairs of key and value, as texts.
        manager: Knows what is registered.

    Raises:
        ConfigError: A key is unknown, a value is not of its type, or the autoencoder is none that is to be trained.

    >>> autoencoder_changes("residual", [("latent_channels", "8"), ("min_gamma", "0.01")])
    {'latent_channels': 8, 'min_gamma': 0.01}
    """
    is_open, name, registry = name is None, name or BUILT_IN, (manager or get_plugin_manager()).autoencoders
    if not options:
        return {}
    if Path(name).is_dir() or name not in registry:
        raise ConfigError(f"--autoencoder-option is for a registered autoencoder that is to be trained; {name} is none")
    is_map = registry.get(name).metadata.get("latent") == "map"
    other = ("latent_dim",) if is_map else ("latent_channels", "reduction")
    only = () if is_open else other
    hints = {k: h for k, h in typing.get_type_hints(AutoencoderConfig).items() if k not in (*ELSEWHERE, *only)}
    problems, found = Problems("--autoencoder-option"), {}
    for key, text in options:
        if key not in hints:
            problems.check(False, f"the autoencoder {name} has no option {key!r}. {suggest(key, hints)}")
            continue
        try:
            found[key] = _read(text, hints[key])
        except ValueError:
            problems.check(False, f"{key} is a {getattr(hints[key], '__name__', 'text')}, got {text!r}")
    problems.raise_if_any()
    return found


def _read(text: str, hint: Any) -> Any:
    if hint in (int, float):
        return hint(text)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if typing.get_origin(hint) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text


def chosen_autoencoder(
    name: str | None, options: Sequence[tuple[str, str]], config: FitConfig, size: int, channels: int, seed: int
) -> AutoencoderConfig:
    """Return the configuration of a registered autoencoder with these options, for images of this size.

    Raises:
        ConfigError: An option or the size does not suit it.
    """
    from posthoc_inn.fit.preparing import codes_are_maps

    manager = get_plugin_manager()
    kind = name or (BUILT_IN_MAP if codes_are_maps(config, size) else BUILT_IN)
    given: dict[str, Any] = {"kind": kind, "width": config.autoencoder_width, "seed": seed}
    given |= autoencoder_changes(kind, options, manager)
    if manager.autoencoders.get(kind).metadata.get("latent") == "map":
        return AutoencoderConfig.of_map(size, channels, **given)
    return AutoencoderConfig(**{"latent_dim": config.latent_dim, **given}, size=size, channels=channels)
