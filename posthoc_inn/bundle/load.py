"""Loads a bundle: the description first, then the header of the weights, memory only for what both agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from posthoc_inn.bundle.members import (
    BUNDLE_FILE,
    METRICS_FILE,
    MODEL_FILE,
    WEIGHTS_FILE,
    open_member,
    parse_json,
    read_member,
    sha256,
)
from posthoc_inn.bundle.modules import (
    AUTOENCODER,
    CONCEPTS,
    FLOW,
    autoencoder_specs,
    build_autoencoder,
    build_concepts,
    build_flow,
    build_world,
    concept_specs,
    filled,
    flow_specs,
    world_specs,
)
from posthoc_inn.bundle.record import AutoencoderRecord, Bundle, Document, parse_document
from posthoc_inn.bundle.tensors import TensorFile, TensorSpec, read_tensors
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import BundleError, shown
from posthoc_inn.flows.pictures import Encoder
from posthoc_inn.weights import fingerprint

PICKLED = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")


def load_bundle(path: str | Path, autoencoder: nn.Module | None = None) -> Bundle:
    """Load what `save_bundle` wrote, on the CPU and in float32; nothing in a bundle is run.

    The global generator is left as it is. The explained model is not touched: compare it with `Bundle.is_for`.

    Args:
        path: The directory.
        autoencoder: The user's own, when the bundle was fitted with one that is not built in; checked. One that
            is built in may be given too, to be shared.

    Raises:
        BundleError: The bundle is damaged, incomplete, newer, or not what it says; each with its own message.
    """
    directory = Path(path)
    document = _read_document(directory)
    if autoencoder is not None:
        _check_given(document.autoencoder, autoencoder, directory)
    elif not document.autoencoder.is_stored:
        config, named = document.autoencoder.config, document.origin.get("autoencoder")
        raise BundleError(
            f"The bundle {directory} was fitted with an autoencoder of the user's own "
            f"({shown(document.autoencoder.class_name, 80)}, {config.size} px, {config.channels} channels, latent "
            f"{config.latent_dim}{f', {shown(named, 80)}' if isinstance(named, str) else ''}), whose weights are not "
            "stored. Pass it as autoencoder= (--autoencoder PACKAGE.MODULE:FACTORY)."
        )
    metrics = _read_metrics(directory, document)
    if MODEL_FILE in document.members:
        # Read by load_model_state alone; that it is there is checked at once.
        with open_member(directory, MODEL_FILE):
            pass
    with open_member(directory, WEIGHTS_FILE) as (file, size):
        weights = TensorFile(file, size, document.member(WEIGHTS_FILE), directory, WEIGHTS_FILE)
        expected = flow_specs(document.flow, document.conditioner, weights, directory)
        if document.autoencoder.is_stored:
            expected |= autoencoder_specs(document.autoencoder.config, weights, directory)
        if document.concepts is not None:
            expected |= concept_specs(document.concepts, weights, directory)
        sizes = metrics.pop("world", None)
        if sizes is not None:
            expected |= world_specs(sizes, directory)
        weights.expect(expected)
        tensors = weights.read()
    flow = filled(lambda: build_flow(document.flow, document.conditioner), tensors, FLOW, "flow", directory)
    if not flow.is_initialized:
        raise BundleError(
            f"The flow of the bundle {directory} was never fitted: its flags say so. Fit it, and save anew."
        )
    if autoencoder is None:
        config = document.autoencoder.config
        autoencoder = filled(lambda: build_autoencoder(config), tensors, AUTOENCODER, "autoencoder", directory)
    concepts = None
    if document.concepts is not None:
        record = document.concepts
        concepts = filled(lambda: build_concepts(record), tensors, CONCEPTS, "e", directory)
        if not concepts.flow.is_initialized:
            raise BundleError(f"The e of the bundle {directory} was never fitted: its flags say so. Save it anew.")
    if flow.pictures is not None:
        flow.set_encoder(cast(Encoder, autoencoder))
    world = None if sizes is None else build_world(sizes, tensors, document.z_shape, directory)
    if document.is_flow_on_concepts and concepts is not None:
        flow.set_base(concepts.flow)
    return Bundle(
        extractor=document.extractor.to_dict(),
        model_fingerprint=document.model.fingerprint,
        model_class=document.model.class_name,
        adapter=document.adapter.adapter(),
        autoencoder=autoencoder,
        flow=flow,
        z_shape=document.z_shape,
        metrics=metrics,
        origin=document.origin,
        model_tensors=document.model.tensors,
        concepts=concepts,
        world=world,
    )


def load_model_state(path: str | Path) -> dict[str, Tensor]:
    """Return the explained model's state, dotted name -> tensor on the CPU, from a bundle that holds it.

    Raises:
        BundleError: It does not, or the file is not what bundle.json says.
    """
    directory = Path(path)
    document = _read_document(directory)
    if MODEL_FILE not in document.members:
        raise BundleError(
            f"The bundle {directory} does not hold the explained model. Build it yourself, and pass it as model=."
        )
    state = read_tensors(directory, MODEL_FILE, document.member(MODEL_FILE))
    if fingerprint(state) != document.model.fingerprint:
        raise BundleError(f"{MODEL_FILE} of the bundle {directory} is not the model that the bundle was fitted to.")
    return state


def model_specs(path: str | Path) -> dict[str, TensorSpec]:
    """Return type and shape of the tensors of the explained model that a bundle holds; none of them is read.

    Raises:
        BundleError: It does not hold it, or the file's header is not in order.
    """
    directory = Path(path)
    record = _read_document(directory).member(MODEL_FILE)
    with open_member(directory, MODEL_FILE) as (file, size):
        return TensorFile(file, size, record, directory, MODEL_FILE).specs


def _read_document(directory: Path) -> Document:
    try:
        _check_is_bundle(directory)
    except OSError as error:
        raise BundleError(f"The bundle {directory} cannot be read: {error.strerror or error}.") from error
    data = read_member(directory, BUNDLE_FILE)
    return parse_document(parse_json(data, f"{BUNDLE_FILE} of the bundle {directory}"), directory)


def _check_is_bundle(directory: Path) -> None:
    if not directory.is_dir():
        if not directory.exists():
            raise BundleError(f"There is no bundle {directory}. Pass the directory that Interpreter.save wrote.")
        if directory.suffix.lower() in PICKLED:
            raise BundleError(
                f"{directory} looks like a pickled checkpoint. A bundle is a directory of safetensors and JSON; "
                "pickles are never read, as loading one can run code. Pass the directory that Interpreter.save "
                "wrote."
            )
        raise BundleError(f"{directory} is a file; a bundle is a directory. Pass the one that Interpreter.save wrote.")
    if not (directory / BUNDLE_FILE).is_symlink() and not (directory / BUNDLE_FILE).exists():
        inner = sorted(p.parent.name for p in directory.glob(f"*/{BUNDLE_FILE}"))
        hint = f" Did you mean {directory / inner[0]}?" if inner else ""
        raise BundleError(
            f"{directory} is no bundle: it has no {BUNDLE_FILE}.{hint} Pass the directory that Interpreter.save wrote."
        )


def _read_metrics(directory: Path, document: Document) -> dict[str, Any]:
    data = read_member(directory, METRICS_FILE)
    record = document.member(METRICS_FILE)
    if len(data) != record.size or sha256(data) != record.sha256:
        raise BundleError(
            f"{METRICS_FILE} of the bundle {directory} was damaged or changed after it was saved: size or sha256 "
            "differ from what bundle.json says. Copy it again."
        )
    metrics = parse_json(data, f"{METRICS_FILE} of the bundle {directory}")
    if not isinstance(metrics, dict):
        raise BundleError(f"{METRICS_FILE} of the bundle {directory} is no object, got {type(metrics).__name__}.")
    return metrics


def _check_given(record: AutoencoderRecord, autoencoder: nn.Module, directory: Path) -> None:
    kind, config = type(autoencoder).__name__, getattr(autoencoder, "config", None)
    if not isinstance(config, AutoencoderConfig) or config.replace(seed=record.config.seed) != record.config:
        raise BundleError(
            f"The given autoencoder, a {kind}, is not the one that the bundle {directory} was fitted with, a "
            f"{shown(record.class_name, 80)}: its configuration is {shown(config, 180)}, the bundle's "
            f"{shown(record.config, 180)}."
        )
    options, stored = options_of(autoencoder), dict(record.options)
    probe, is_like = stored.pop("probe", None), getattr(autoencoder, "is_like", None)
    if probe is not None and not (callable(is_like) and is_like(str(probe))):
        raise BundleError(
            f"The given generator makes other pictures than the one that the bundle {directory} was fitted with. Pass "
            "the same one, with the same image_range."
        )
    options.pop("probe", None)
    if options != stored:
        raise BundleError(
            f"The given autoencoder has other options than the one that the bundle {directory} was fitted with: "
            f"{shown(options, 150)}, the bundle's {shown(stored, 150)}."
        )
    found = fingerprint(autoencoder)
    if found != record.fingerprint:
        raise BundleError(
            f"The given autoencoder has other weights than the one that the bundle {directory} was fitted with: "
            f"fingerprint {found}, the bundle's {shown(record.fingerprint, 40)}. Pass the same one."
        )


def options_of(autoencoder: nn.Module) -> dict[str, Any]:
    """Return what, besides weights and configuration, decides how a user's own autoencoder behaves."""
    names = ("image_range", "noise", "second", "probe")
    return {n: getattr(autoencoder, n) for n in names if isinstance(getattr(autoencoder, n, None), (str, int, float))}
