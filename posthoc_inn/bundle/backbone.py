"""Builds again the registered network that a bundle's origin names, once its shapes are known to be the right ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from posthoc_inn.bundle.allocation import TooLargeError, allowance, bounded
from posthoc_inn.bundle.load import load_model_state, model_specs
from posthoc_inn.bundle.modules import skeleton
from posthoc_inn.bundle.record import Bundle
from posthoc_inn.bundle.tensors import TensorSpec
from posthoc_inn.errors import BundleError, DataError, PosthocInnError, shown
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.weights import is_weights_file, load_into, load_state, plain_state

RANDOM, TRAINED = "none", "train"
"""What an origin says of weights that have no name: random ones, and those that were trained in the fit."""
MAX_CLASSES = 1_000_000
UNASKED = 256 << 20
"""Bytes of a network with random weights that is built without a word of the user's."""


def rebuild_backbone(stored: Bundle, directory: Path, weights: str | None = None) -> nn.Module:
    """Build the registered network of a bundle's origin, in eval mode, with its weights.

    The origin is a stranger's text: the network is built without memory first, and for real only if its tensors are
    those that the bundle describes and no larger than what the file of weights holds. Nothing is downloaded unless
    `weights` names it.

    Args:
        stored: The bundle.
        directory: Where it is.
        weights: The user's word: a local file, the name of published weights, or "none" for random ones. None for
            those that the bundle holds, or for random ones that the bundle is about.

    Raises:
        BundleError: The network is not the one that the bundle describes, or far larger than the file of its weights.
        DataError: The bundle does not hold the weights, and the user names none.
    """
    origin = stored.origin
    name, classes = str(origin.get("backbone")), _classes(origin)
    # Looked up before anything else, so that a name that nobody registers is told for what it is.
    manager = get_plugin_manager()
    manager.backbones.get(name)
    holds_weights = weights is None and origin.get("weights_file") is not None
    if weights is None and not holds_weights:
        _check_is_random(origin, name, directory)
    named = None if weights in (None, RANDOM, TRAINED) else weights
    held = model_specs(directory) if holds_weights else None
    size = _bytes(held)
    if named is not None and is_weights_file(named):
        size = sum(tensor.nbytes for tensor in load_state(named).values())

    def build(weights: str | None = None, num_classes: int | None = classes) -> nn.Module:
        return manager.build_backbone(name, weights=weights, num_classes=num_classes)

    try:
        limit = None if size is None else allowance(size)
        if size is None and weights is None:
            limit = UNASKED
        elif size is None and classes is not None:
            # The user asked for a network, as large as it is, and not for the classes of a stranger.
            limit = allowance(_bytes(_specs(lambda: build(num_classes=None), None)) or 0)
        found = _specs(build, limit)
        if named is None:
            # Weights of the user's own may go with other parts of the network, and are compared when they are loaded.
            _check_described(stored, found, held, name, directory)
        if limit is not None and (_bytes(found) or 0) > limit:
            raise TooLargeError(f"{_bytes(found):,} bytes, of at most {limit:,}")
        with bounded(limit if named is None else None):
            built = build(named)
    except TooLargeError as error:
        raise _too_large(error, name, directory, size, named) from None
    if holds_weights:
        load_into(built, load_model_state(directory), source=str(directory))
    return built.eval()


def _specs(build: Callable[[], nn.Module], limit: int | None) -> dict[str, TensorSpec]:
    """Return type and shape of the tensors of the network that `build` makes, by plain name."""
    return {n: _spec(t) for n, t in plain_state(skeleton(build, is_core=False, limit=limit)).items()}


def _bytes(specs: Mapping[str, TensorSpec] | None) -> int | None:
    return None if specs is None else sum(spec.size for spec in specs.values())


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.dtype, tuple(tensor.shape))


def _classes(origin: Mapping[str, Any]) -> int | None:
    found = origin.get("num_classes")
    return found if type(found) is int and 1 <= found <= MAX_CLASSES else None


def _check_is_random(origin: Mapping[str, Any], name: str, directory: Path) -> None:
    """Refuse to fetch weights that only the bundle names."""
    named = origin.get("weights")
    if named in (None, RANDOM):
        return
    what, how = shown(named, 60), "--weights FILE"
    if named != TRAINED and "." not in str(named):
        how = f"--weights {what}, which may download them, or --weights FILE"
    raise DataError(
        f"The bundle {directory} was fitted to {shown(name, 60)} with the weights {what}, which it does not hold. Pass "
        f"them: {how}."
    )


def _check_described(
    stored: Bundle, found: Mapping[str, TensorSpec], held: Mapping[str, TensorSpec] | None, name: str, directory: Path
) -> None:
    """Compare a network without memory with the tensors that the bundle tells of, and with those that it holds."""
    told = {n: str(text).rpartition(" ")[0] for n, text in stored.model_tensors.items()}
    sources = [(told, "bundle.json says")] if told else []
    if held is not None:
        sources.append(({n: str(spec) for n, spec in held.items()}, "the file of its weights holds"))
    own = {n: str(spec) for n, spec in found.items()}
    for other, who in sources:
        wrong = next((n for n in (*own, *other) if own.get(n) != other.get(n)), None)
        if wrong is not None:
            raise BundleError(
                f"The bundle {directory} names the network {shown(name, 60)}, which is not the one it was fitted to: "
                f"its {shown(wrong, 80)} is {own.get(wrong, 'missing')}, {who} {shown(other.get(wrong, 'none'), 60)}."
            )


def _too_large(
    error: TooLargeError, name: str, directory: Path, size: int | None, weights: str | None
) -> PosthocInnError:
    asked = f"The bundle {directory} asks for {shown(name, 60)}"
    if size is None and weights is None:
        return DataError(
            f"{asked} with random weights, which takes more memory than a bundle is given unasked ({error}). If you "
            f"want that, pass --weights {RANDOM}."
        )
    if size is None:
        return BundleError(f"{asked} with far more classes than the weights {weights} can be for ({error}).")
    return BundleError(
        f"{asked}, which is far larger than its weights, of {size:,} bytes (to be allocated: {error}): they do not "
        "belong together."
    )
