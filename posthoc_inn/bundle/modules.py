"""Builds the parts from their configurations: first without memory, to learn what a file must hold, then for real."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from posthoc_inn.bundle.allocation import TooLargeError, allowance, bounded
from posthoc_inn.bundle.record import ConceptRecord
from posthoc_inn.bundle.tensors import TensorFile, TensorSpec, specs_of
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.config import AutoencoderConfig, ConditionerConfig, FlowConfig
from posthoc_inn.errors import BundleError, PosthocInnError, is_count, shown
from posthoc_inn.flows import COUPLINGS, ConditionalFlow, FactorFlow, coupling_of
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.rows.world import COMPONENTS, COORDINATES, ROWS, World
from posthoc_inn.weights import seeded_init

M = TypeVar("M", bound=nn.Module)

FLOW, AUTOENCODER, CONCEPTS, WORLD = "flow.", "autoencoder.", "concepts.", "world."
"""What the names of their tensors start with in the weights file."""


def build_flow(flow: FlowConfig, conditioner: ConditionerConfig) -> ConditionalFlow:
    """Build t, without the e it may work on, with a coupling of the core's or a registered one."""
    return ConditionalFlow(flow, conditioner, coupling=coupling_of(flow))


def build_concepts(record: ConceptRecord) -> ConceptModel:
    """Build e, with a coupling of the core's or a registered one."""
    flow = FactorFlow(record.flow, record.sizes, coupling=coupling_of(record.flow), aligned=record.aligned)
    return ConceptModel(flow, record.names, space=record.space, shape=record.shape, is_measured=record.is_measured)


def build_autoencoder(config: AutoencoderConfig) -> nn.Module:
    """Build a registered autoencoder."""
    manager = get_plugin_manager()
    built: nn.Module = manager.build(manager.autoencoders, config.kind, config)
    return built


def _attempt(build: Callable[[], M], what: str, directory: Path) -> M:
    try:
        return build()
    except TooLargeError as error:
        raise _too_large(error, what, directory) from None
    except PosthocInnError as error:
        raise BundleError(f"The {what} of the bundle {directory} cannot be built: {shown(error)}") from error
    except Exception as error:
        # Registered factories are strangers' code, fed with a stranger's numbers.
        raise BundleError(
            f"The {what} of the bundle {directory} cannot be built from what bundle.json says: "
            f"{type(error).__name__}: {shown(error, 300)}."
        ) from error


def _too_large(error: TooLargeError, what: str, directory: Path) -> BundleError:
    return BundleError(
        f"The {what} that bundle.json of the bundle {directory} describes is far larger than the file of its weights "
        f"(to be allocated: {error}): they do not belong together."
    )


def skeleton(build: Callable[[], M], *, is_core: bool, limit: int | None = None) -> M:
    """Build a module for its shapes: without memory, unless a plugin's code cannot do that.

    Args:
        build: Builds it.
        is_core: Whether none of a plugin's code is in it.
        limit: Bytes that may be allocated where it cannot be built without memory; None for any number.

    Raises:
        TooLargeError: More than `limit` would be allocated.
    """
    try:
        with torch.device("meta"), seeded_init():
            return build()
    except Exception:
        if is_core:
            raise
    # Some constructors compute with the values they allocate. The user installed this code, but a stranger chose its
    # numbers.
    with torch.device("cpu"), seeded_init(), bounded(limit):
        return build()


def flow_specs(
    flow: FlowConfig, conditioner: ConditionerConfig, file: TensorFile, directory: Path
) -> dict[str, TensorSpec]:
    """Return what the weights file must hold of t.

    A skeleton has no memory, but each of its modules costs time: one block is built first, and all of them
    only if the file is large enough for that many.

    Raises:
        BundleError: The file is too small for the configuration, or the configuration makes no flow.
    """
    limit = allowance(file.data_size)

    def shaped(config: FlowConfig) -> ConditionalFlow:
        is_core = _is_core(config)

        def build() -> ConditionalFlow:
            return build_flow(config, conditioner)

        return _attempt(lambda: skeleton(build, is_core=is_core, limit=limit), "flow", directory)

    for block in shaped(flow.replace(blocks=1)).flow.parts():  # the linear t has none
        _check_room(specs_of(block), flow.blocks, file, directory)
    return specs_of(shaped(flow), FLOW)


def _is_core(config: FlowConfig) -> bool:
    """Whether none of a plugin's code is in a flow."""
    return config.coupling is None or config.coupling in COUPLINGS


def _check_room(block: Mapping[str, TensorSpec], blocks: int, file: TensorFile, directory: Path) -> None:
    count, size = blocks * len(block), blocks * sum(s.size for s in block.values())
    if count > len(file.specs) or size > file.data_size:
        raise BundleError(
            f"bundle.json of the bundle {directory} describes a flow of {count:,} tensors and {size:,} bytes at "
            f"least; {file.name} holds {len(file.specs):,} and {file.data_size:,}: they do not belong together."
        )


def concept_specs(record: ConceptRecord, file: TensorFile, directory: Path) -> dict[str, TensorSpec]:
    """Return what the weights file must hold of e; as careful as `flow_specs`.

    Raises:
        BundleError: The file is too small for the configuration, or the configuration makes no flow.
    """
    limit = allowance(file.data_size)

    def shaped(found: ConceptRecord) -> ConceptModel:
        is_core = _is_core(found.flow)
        return _attempt(lambda: skeleton(lambda: build_concepts(found), is_core=is_core, limit=limit), "e", directory)

    one = shaped(record.with_blocks(1)).flow.blocks[0]
    _check_room(specs_of(one), record.flow.blocks, file, directory)
    return specs_of(shaped(record), CONCEPTS)


def autoencoder_specs(config: AutoencoderConfig, file: TensorFile, directory: Path) -> dict[str, TensorSpec]:
    """Return what the weights file must hold of a registered autoencoder.

    Raises:
        BundleError: Nobody registers its kind, or it cannot be built.
    """
    limit = allowance(file.data_size)
    return specs_of(_attempt(lambda: _autoencoder_skeleton(config, limit), "autoencoder", directory), AUTOENCODER)


def _autoencoder_skeleton(config: AutoencoderConfig, limit: int | None = None) -> nn.Module:
    return skeleton(lambda: build_autoencoder(config), is_core=config.kind in ("conv", "msc", "residual"), limit=limit)


def world_specs(sizes: Any, directory: Path) -> dict[str, TensorSpec]:
    """Return what the weights file must hold of a generator's world, of the sizes that metrics.json says.

    Raises:
        BundleError: They are no sizes of one.
    """
    most = {"coordinates": COORDINATES, "components": COMPONENTS, "draws": ROWS}
    fits = isinstance(sizes, dict) and sizes.keys() == most.keys()
    if not fits or not all(is_count(sizes[n], 1) and sizes[n] <= most[n] for n in most):
        raise BundleError(f"metrics.json of the bundle {directory} has no sizes of a world, got {shown(sizes, 120)}.")
    return specs_of(World(**sizes), WORLD)


def build_world(
    sizes: Mapping[str, int], tensors: Mapping[str, Tensor], z_shape: tuple[int, ...], directory: Path
) -> World:
    """Build a generator's world, and load it.

    Raises:
        BundleError: Its tensors are refused.
    """
    world = filled(lambda: World(**sizes), tensors, WORLD, "world", directory)
    inside = bool((world.index >= 0).all()) and bool((world.index < math.prod(z_shape)).all())
    if not inside or not bool((world.variance > 0).all()) or not bool(world.rest > 0):
        raise BundleError(f"The world of the bundle {directory} is damaged: it looks at values that z does not have.")
    return world


def is_rebuildable(autoencoder: nn.Module) -> bool:
    """Whether a registered factory makes the same module from the autoencoder's configuration alone."""
    config = getattr(autoencoder, "config", None)
    if not isinstance(config, AutoencoderConfig):
        return False
    try:
        get_plugin_manager().autoencoders.get(config.kind)
        built = _autoencoder_skeleton(config)
    except PosthocInnError:
        return False
    return type(built) is type(autoencoder) and specs_of(built) == specs_of(autoencoder)


def filled(build: Callable[[], M], tensors: Mapping[str, Tensor], prefix: str, what: str, directory: Path) -> M:
    """Build a module in float32 on the CPU and load the tensors whose names start with `prefix` into it, strictly.

    The global generator is left as it is.

    Raises:
        BundleError: It cannot be built, or the tensors are refused.
    """
    size = sum(t.nbytes for name, t in tensors.items() if name.startswith(prefix))
    with torch.device("cpu"), seeded_init(), bounded(allowance(size)):
        module = _attempt(build, what, directory).float()
    state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    _check_ranges(state, what, directory)
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise BundleError(f"The weights of the {what} of the bundle {directory} are refused: {shown(error)}") from None
    return module.eval()


def _check_ranges(state: Mapping[str, Tensor], what: str, directory: Path) -> None:
    """Refuse what is finite, and yet gives NaN or infinity as soon as it is used."""
    for name, tensor in state.items():
        if (what, name) == ("e", "rho") and not bool((tensor.abs() < 1).all()):
            raise BundleError(
                f"The {what} of the bundle {directory} holds correlations outside (-1, 1): it is damaged."
            )
        if (name.endswith("running_var") and bool((tensor < 0).any())) or (
            (name.endswith("z_std") or (what, name) == ("e", "deviation")) and bool((tensor <= 0).any())
        ):
            raise BundleError(
                f"{shown(name, 100)} of the {what} of the bundle {directory} holds variances or deviations that are "
                "not positive: the file is damaged."
            )
