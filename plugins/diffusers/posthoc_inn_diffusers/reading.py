"""Finds, downloads where that was asked for, and safely reads the files of an autoencoder of diffusers."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
from torch import nn

from posthoc_inn.errors import ConfigError, DataError, listed, shown
from posthoc_inn.weights import load_into, load_state, seeded_init

KINDS = {"kl": "AutoencoderKL", "tiny": "AutoencoderTiny", "dc": "AutoencoderDC"}
CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""In the order in which they are looked for; the second is read without running code from it."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
_NEW_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LARGEST = 1 << 20
"""Bytes of a configuration that is believed."""


def read_model(
    source: str, *, kind: str | None = None, subfolder: str | None = None, downloads: bool = True
) -> tuple[nn.Module, str]:
    """Build the autoencoder that config.json describes and load its weights, strictly.

    Args:
        source: A directory, or a repository of the hub ("owner/name").
        kind: One of `KINDS`, or None for what config.json says.
        subfolder: Where the files stand in it.
        downloads: Whether a repository may be named.

    Returns:
        The network in eval mode and float32, and its kind.

    Raises:
        ConfigError: `kind` is none of `KINDS`.
        DataError: The files are missing, cannot be had or read, or are of another class.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"kind is {' or '.join(map(repr, KINDS))}, got {kind!r}.")
    where, inner = Path(source), subfolder or ""
    if where.is_dir():
        config_file, weights = _in_directory(where / inner)
    elif downloads and _REPOSITORY.fullmatch(source):
        config_file, weights = _from_hub(source, inner)
    else:
        also = ', or the name of a repository of the hub ("owner/name")' if downloads else ""
        raise DataError(f"There is no directory {source}. Pass one with {CONFIG} and {WEIGHTS[0]}{also}.")
    settings = _settings(config_file)
    found = _kind_of(settings, config_file, kind)
    model = _build(found, settings, config_file)
    state = load_state(weights)
    if found == "kl":
        state = {_OLD_ATTENTION.sub(lambda m: f"{m[1]}.{_NEW_NAMES[m[2]]}.", n): t for n, t in state.items()}
    load_into(model, state, source=str(weights))
    return model.float().eval().requires_grad_(False), found


def _in_directory(where: Path) -> tuple[Path, Path]:
    present = sorted(p.name for p in where.iterdir()) if where.is_dir() else []
    lies_deeper = (where / "vae" / CONFIG).is_file()
    if CONFIG not in present:
        advice = "Pass subfolder='vae'." if lies_deeper else "Pass what save_pretrained of diffusers wrote."
        raise DataError(f"{where} holds no {CONFIG} ({listed(present, 8, 60) or 'nothing'}). {advice}")
    for name in WEIGHTS:
        if name in present:
            return where / CONFIG, where / name
    raise DataError(f"{where} holds no weights {WEIGHTS[0]} (found: {listed(present, 8, 60)}).")


def _from_hub(repository: str, inner: str) -> tuple[Path, Path]:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def get(name: str) -> Path:
        return Path(huggingface_hub.hf_hub_download(repository, name, subfolder=inner or None))

    try:
        with _quiet():
            config_file = get(CONFIG)
            try:
                return config_file, get(WEIGHTS[0])
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                return config_file, get(WEIGHTS[1])
    except Exception as error:
        # The hub's client raises dozens of kinds; whatever it is, there are no files.
        said = shown(" ".join(str(error).split()), 200)
        raise DataError(
            f"There is no directory {repository}, and as a repository of the hub it could not be had "
            f"({type(error).__name__}: {said}). Where there is no network, pass a local directory."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the hub's client from telling of each of its attempts: the error tells of the last."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _settings(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LARGEST:
            raise DataError(f"{file} has {file.stat().st_size} bytes; a configuration has less than {_LARGEST}.")
        settings = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} cannot be read as JSON ({shown(error, 160)}).") from error
    if not isinstance(settings, dict):
        raise DataError(f"{file} holds no configuration, got {type(settings).__name__}.")
    return settings


def _kind_of(settings: dict[str, Any], file: Path, wanted: str | None) -> str:
    name = settings.get("_class_name")
    found = next((kind for kind, known in KINDS.items() if known == name), None)
    if found is None:
        raise DataError(f"{file} is of a {shown(name, 60)}. Accepted are {', '.join(KINDS.values())}.")
    if wanted not in (None, found):
        raise DataError(f"{file} is of a {name}, which is kind {found!r}, got kind={wanted!r}.")
    return found


def _build(kind: str, settings: dict[str, Any], file: Path) -> nn.Module:
    try:
        with seeded_init():
            model: nn.Module = getattr(diffusers, KINDS[kind]).from_config(settings)
    except Exception as error:
        # diffusers does not check what it builds from.
        raise DataError(
            f"diffusers {diffusers.__version__} cannot build the {KINDS[kind]} of {file} ({type(error).__name__}: "
            f"{shown(' '.join(str(error).split()), 200)})."
        ) from error
    return model
