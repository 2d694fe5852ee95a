"""Saves a bundle: everything is checked and written aside first; what was there stays until the new one is complete."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from posthoc_inn import __version__
from posthoc_inn.bundle.card import write_card
from posthoc_inn.bundle.load import options_of
from posthoc_inn.bundle.members import (
    BUNDLE_FILE,
    CARD_FILE,
    LIMITS,
    MEMBERS,
    METRICS_FILE,
    MODEL_FILE,
    WEIGHTS_FILE,
    dump_json,
    parse_json,
    read_member,
    sha256,
)
from posthoc_inn.bundle.modules import AUTOENCODER, CONCEPTS, FLOW, WORLD, is_rebuildable
from posthoc_inn.bundle.record import (
    FORMAT,
    FORMAT_VERSION,
    AdapterRecord,
    AutoencoderRecord,
    Bundle,
    ConceptRecord,
    Document,
    ExtractorRecord,
    MemberRecord,
    ModelRecord,
)
from posthoc_inn.bundle.tensors import MAX_HEADER
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import BundleError, ConfigError, listed, shown
from posthoc_inn.files import plain
from posthoc_inn.weights import fingerprint, plain_state


def save_bundle(
    bundle: Bundle,
    path: str | Path,
    *,
    overwrite: bool = False,
    model_state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `bundle` as a directory.

    A new directory appears whole, by a rename. In one that exists, only a bundle's own members are replaced,
    after all of the new ones have been written beside them; whatever else it holds is left alone.

    Args:
        bundle: The fitted parts.
        path: The directory.
        overwrite: Replace the bundle that is there.
        model_state: State of the explained model, to be stored too; `origin` then names the file.

    Returns:
        The directory.

    Raises:
        BundleError: Something that is no bundle is in the way, or one and `overwrite` is false; the parts do not fit
            together, are not finite or not fitted; or the disk refuses.
    """
    target = Path(path)
    _check_target(target, overwrite)
    contents = _contents(bundle, model_state)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _install(target, contents)
    except OSError as error:
        raise BundleError(
            f"The bundle {target} cannot be written: {error.strerror or error}. It needs "
            f"{sum(map(len, contents.values())):,} bytes; what was there before was kept."
        ) from error
    return target


def _check_target(target: Path, overwrite: bool) -> None:
    if target.is_symlink() and not target.exists():
        raise BundleError(f"{target} is a symbolic link that leads nowhere; choose another directory.")
    if target.exists() and not target.is_dir():
        raise BundleError(f"{target} is a file; a bundle is a directory. Choose another name.")
    present = [name for name in MEMBERS if os.path.lexists(target / name)]
    if not present:
        return
    try:
        stated = parse_json(read_member(target, BUNDLE_FILE), BUNDLE_FILE)
        is_ours = isinstance(stated, dict) and stated.get("format") == FORMAT
    except BundleError:
        is_ours = False
    if not is_ours or any((target / name).is_dir() for name in present):
        raise BundleError(
            f"{target} holds {', '.join(present)}, but no readable bundle; they are not replaced. Remove them, or "
            "choose another directory."
        )
    if not overwrite:
        raise BundleError(f"There is a bundle in {target} already. Pass overwrite=True to replace it.")


def _contents(bundle: Bundle, model_state: Mapping[str, Tensor] | None) -> dict[str, bytes]:
    """Return the bytes of every member."""
    bundle = dataclasses.replace(bundle, autoencoder=_uncompiled(bundle.autoencoder), flow=_uncompiled(bundle.flow))
    if not bundle.flow.is_initialized:
        raise BundleError("The flow was never fitted, so there is nothing to save. Call fit first.")
    base = bundle.flow.base
    if base is not None and (bundle.concepts is None or bundle.concepts.flow is not base):
        raise BundleError("t works on the factors of an e that is not the bundle's: give that one as concepts.")
    is_stored = is_rebuildable(bundle.autoencoder)
    tensors = {n: t for n, t in _tensors(bundle.flow, FLOW).items() if not n.startswith(f"{FLOW}base.")}
    if is_stored:
        tensors |= _tensors(bundle.autoencoder, AUTOENCODER)
    if bundle.concepts is not None:
        tensors |= _tensors(bundle.concepts, CONCEPTS)
    metrics = {k: v for k, v in plain(bundle.metrics).items() if k != "world"}
    if bundle.world is not None:
        tensors |= _tensors(bundle.world, WORLD)
        metrics["world"] = bundle.world.sizes
    contents = {WEIGHTS_FILE: _serialized(tensors, WEIGHTS_FILE), METRICS_FILE: dump_json(metrics, METRICS_FILE)}
    origin = {k: v for k, v in plain(bundle.origin).items() if k != "weights_file"}
    if model_state is not None:
        if fingerprint(model_state) != bundle.model_fingerprint:
            raise BundleError("model_state is not the state of the model that the bundle was fitted to.")
        contents[MODEL_FILE] = _serialized(plain_state(model_state), MODEL_FILE)
        origin["weights_file"] = MODEL_FILE
    document = _document(bundle, is_stored, origin, contents)
    contents[CARD_FILE] = write_card(document, plain(bundle.metrics)).encode("utf-8", "replace")
    contents[BUNDLE_FILE] = dump_json(document.to_dict(), BUNDLE_FILE)
    return contents


def _document(bundle: Bundle, is_stored: bool, origin: dict[str, Any], contents: Mapping[str, bytes]) -> Document:
    autoencoder = bundle.autoencoder
    config = getattr(autoencoder, "config", None)
    if not isinstance(config, AutoencoderConfig):
        raise BundleError(f"The autoencoder's config must be an AutoencoderConfig, got {type(config).__name__}.")
    try:
        return Document(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            project_version=__version__,
            model=ModelRecord(bundle.model_class, bundle.model_fingerprint, dict(bundle.model_tensors)),
            extractor=ExtractorRecord.from_dict(bundle.extractor),
            z_shape=tuple(bundle.z_shape),
            adapter=AdapterRecord.of(bundle.adapter),
            autoencoder=AutoencoderRecord(
                is_stored, type(autoencoder).__name__, fingerprint(autoencoder), config, options_of(autoencoder)
            ),
            flow=bundle.flow.flow.config,
            conditioner=bundle.flow.conditioner.config,
            concepts=None if bundle.concepts is None else ConceptRecord.of(bundle.concepts),
            is_flow_on_concepts=bundle.flow.base is not None,
            origin=origin,
            members={n: MemberRecord(len(c), sha256(c)).to_dict() for n, c in contents.items()},
        )
    except ConfigError as error:
        raise BundleError(f"The parts make no bundle: {error}") from error


def _uncompiled(module: nn.Module) -> Any:
    """Return what torch.compile wrapped: the wrapper renames every tensor."""
    return getattr(module, "_orig_mod", module)


def _tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    state = module.state_dict()
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise BundleError(
            f"{type(module).__name__} keeps state that is no tensor and cannot be stored: {listed(strange)}."
        )
    return {prefix + n: t.to(torch.float32) if t.is_floating_point() else t for n, t in state.items()}


def _serialized(tensors: Mapping[str, Tensor], name: str) -> bytes:
    broken = [n for n, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        raise BundleError(
            f"{len(broken)} tensors hold NaN or infinity and are not saved, first {shown(broken[0], 100)}."
        )
    # copy=True: tensors that share memory (tied weights, views) cannot be written by safetensors.
    data = to_safetensors({n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()})
    header = int.from_bytes(data[:8], "little")
    for what, size, limit in ((name, len(data), LIMITS[name]), (f"The header of {name}", header, MAX_HEADER)):
        if size > limit:
            raise BundleError(f"{what} would have {size:,} bytes; at most {limit:,} are allowed.")
    return data


def _install(target: Path, contents: Mapping[str, bytes]) -> None:
    """Write `contents` aside, then move them to their places; on any failure, put back what was there."""
    is_new = not target.is_dir()
    # Inside a directory that exists: it may be a mount point, or the only place where its user may write.
    home = target.parent if is_new else target
    name = target.resolve().name
    aside, previous = home / f".{name}.partial", home / f".{name}.previous"
    try:
        _write_all(aside, contents)
        if is_new:
            os.rename(aside, target)
        else:
            _exchange(target, aside, previous, contents)
    finally:
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
    _sync(home)


def _write_all(aside: Path, contents: Mapping[str, bytes]) -> None:
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)  # of a run that was killed
    aside.mkdir()
    for name, data in contents.items():
        with open(aside / name, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    _sync(aside)


def _exchange(target: Path, aside: Path, previous: Path, names: Mapping[str, bytes]) -> None:
    """Move the members of `aside` into `target`, and the old ones to `previous` until all are in place.

    bundle.json goes first and is replaced in one step: if this is killed midway, its digests refuse the mixture.
    """
    if previous.is_dir() and not previous.is_symlink():
        shutil.rmtree(previous)
    previous.mkdir()
    old = {name for name in MEMBERS if os.path.lexists(target / name)}
    try:
        for name in MEMBERS:
            if name in old and name == BUNDLE_FILE:
                shutil.copy2(target / name, previous / ".copy")
                os.rename(previous / ".copy", previous / name)
            elif name in old:
                os.rename(target / name, previous / name)
            if name in names:
                os.replace(aside / name, target / name)
    except BaseException:
        for name in MEMBERS:
            if os.path.lexists(previous / name):
                os.replace(previous / name, target / name)
            elif name not in old and os.path.lexists(target / name):
                os.unlink(target / name)
        shutil.rmtree(previous, ignore_errors=True)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _sync(directory: Path) -> None:
    """Make renames last through a power cut, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        with contextlib.suppress(OSError):  # some file systems cannot sync a directory
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
