"""The layers of a model: their dotted names, what they return, and which of them are true cuts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from posthoc_inn.errors import LayerNotFoundError, quoted, suggest
from posthoc_inn.features.capture import batch_size, run
from posthoc_inn.features.cuts import few_rows, float_tensors, measure_cut
from posthoc_inn.features.isolation import is_scripted, takes_hooks, unwrap
from posthoc_inn.features.structure import leaves, put, shape_text
from posthoc_inn.features.tracing import Call, Seen, Trace, canonical, trace

OUTPUT = "output"
"""Name of the model's own output as a layer, unless a module of the model has that name."""


@dataclass(frozen=True)
class LayerInfo:
    """What `list_layers` tells about one layer.

    Attributes:
        name: Dotted name, as `layer=` takes it.
        type: Class of the module.
        shape: Shape of the output without the batch, where it is one tensor with the batch first; else None.
        calls: How often the module is called in one pass.
        is_cut: Whether the model's output depends on the inputs only through this layer's; None where
            unknown.
        output: Kind of output: "tensor", "tuple[2]", "dict[a, b]", or "-" for a layer that is not called.
        note: What to know or to pass, in words; empty for a plain layer.

    >>> LayerInfo("fc", "Linear", (10,), 1, True, "tensor", "").shape
    (10,)
    """

    name: str
    type: str
    shape: tuple[int, ...] | None
    calls: int
    is_cut: bool | None
    output: str
    note: str


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module of the unwrapped model by dotted name, the model itself left out.

    A module that is reused under several names is there under each; wrappers of `torch.compile` leave no
    trace.
    """
    modules = unwrap(model).named_modules(remove_duplicate=False)
    return {canonical(name): module for name, module in modules if canonical(name)}


def resolve_layer(model: nn.Module, layer: str) -> nn.Module:
    """Return the module with the dotted name `layer`; ``"output"`` stands for the model itself.

    Raises:
        LayerNotFoundError: There is none, or it lies inside TorchScript; the message lists the nearest names.
    """
    root = unwrap(model)
    layers = named_layers(model)
    name = canonical(layer)
    for prefix in ("", "module."):
        if name.removeprefix(prefix) in layers:
            found = layers[name.removeprefix(prefix)]
            _check_hookable(root, layers, name.removeprefix(prefix), found)
            return found
    if name == OUTPUT:
        return root
    advice = f"The model's own output is layer={OUTPUT!r}. " if not name else ""
    known = suggest(layer, [*layers, OUTPUT])
    if "Did you mean" not in known:
        advice += (
            "Only modules have names: an operation such as torch.flatten, F.relu or + has none, "
            "take the module before or after it. "
        )
    raise LayerNotFoundError(
        f"{type(root).__name__} has no layer {quoted(layer)}. {advice}{known} "
        "list_layers(model, inputs) shows all of them."
    )


def told_of_layer(model: Any, layer: object) -> str:
    """Say what was given as a layer that is no name; of a module of the model, also its name.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> told_of_layer(net, net[1])
    "the module itself, a ReLU: pass layer='1'"
    """
    if not isinstance(layer, nn.Module) or not isinstance(model, nn.Module):
        return f"{quoted(layer)}, of the type {type(layer).__name__}"
    found, kind = unwrap(layer), type(unwrap(layer)).__name__
    if found is unwrap(model):
        return f"the model itself: pass layer={OUTPUT!r}"
    name = next((name for name, module in named_layers(model).items() if module is layer or module is found), None)
    if name is None:
        return f"a {kind} that is no module of this {type(unwrap(model)).__name__}; list_layers shows the names"
    return f"the module itself, a {kind}: pass layer={quoted(name)}"


def _check_hookable(root: nn.Module, layers: Mapping[str, nn.Module], name: str, module: nn.Module) -> None:
    parts = name.split(".")
    above = [root, *(layers[".".join(parts[:n])] for n in range(1, len(parts)))]
    if any(map(is_scripted, above)) or not takes_hooks(module):
        raise LayerNotFoundError(
            f"Layer {name!r} is inside TorchScript, which runs without forward hooks. Pass the eager model that was "
            f"scripted or traced; of this one, only what lies outside TorchScript and layer={OUTPUT!r} can be used."
        )


def parents_of(name: str) -> Iterator[str]:
    """Yield the names above a dotted name, nearest first."""
    parts = name.split(".")
    for n in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:n])


def bypass_note(around: tuple[str, ...]) -> str:
    """Say in words where the inputs reach the output around a layer."""
    if not around:
        return ""
    places = ", ".join(around[:3]) + (f" and {len(around) - 3} more" if len(around) > 3 else "")
    route = f"the image also reaches the output around this layer (joins in {places})"
    return f"{route}; Ψ(z) is given the image too"


def list_layers(
    model: nn.Module, inputs: Tensor | tuple[Any, ...] | dict[str, Any], *, check_cuts: bool = True
) -> list[LayerInfo]:
    """List every layer of `model` with what it returns; the model is left as it was.

    One pass over at most 4 rows of `inputs` answers for all layers: the data flow of the pass is followed,
    and a layer is a true cut (f = Ψ ∘ Φ, MSC section 3) when no route leads around it. Where values of the
    image are read into Python, which cannot be followed, a layer's output is exchanged for another image's
    and the model's output compared. A layer called several times counts as a cut if one of its calls is one,
    and likewise for a layer that returns several tensors; the note says which.

    Args:
        model: Any module; DataParallel and `torch.compile` wrappers are looked through.
        inputs: What the model takes: images (B, C, H, W), a tuple of positional or a dict of keyword
            arguments.
        check_cuts: Find out which layers are true cuts; otherwise `is_cut` is None.

    Returns:
        One entry a name, in the order of `named_modules`, and the model's own output last, as ``"output"``.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> [(info.name, info.shape, info.is_cut) for info in list_layers(net, torch.ones(2, 1, 2, 2))]
    [('0', (4,), True), ('1', (3,), True), ('output', (3,), True)]
    """
    root = unwrap(model)
    inputs = few_rows(inputs)
    traced = trace(root, inputs, follow=check_cuts)
    layers = named_layers(model)
    listed = list(layers.items())
    if OUTPUT not in layers:
        listed.append((OUTPUT, root))
    first_name: dict[nn.Module, str] = {}
    found = []
    for name, module in listed:
        info = _info(name, module, traced, root, layers, batch_size(inputs))
        if check_cuts and info.calls:
            info = _with_cut(info, module, traced, root, inputs)
        if first_name.setdefault(module, name) != name:
            info = _noted(info, f"the same module as {first_name[module]!r}")
        found.append(info)
    return found


def _noted(info: LayerInfo, note: str, **changes: Any) -> LayerInfo:
    notes = "; ".join(part for part in (info.note, note) if part)
    return LayerInfo(**{**vars(info), "note": notes, **changes})


def _info(
    name: str, module: nn.Module, traced: Trace, root: nn.Module, layers: Mapping[str, nn.Module], size: int
) -> LayerInfo:
    calls = traced.calls.get(module, [])
    info = LayerInfo(name, type(module).__name__, None, len(calls), None, "-", "")
    if not calls:
        return _noted(info, not_reached_note(name, module, traced, layers))
    kinds = list(dict.fromkeys(call.kind for call in calls))
    info = LayerInfo(name, info.type, None, len(calls), None, " or ".join(kinds), "")
    shapes = {seen.shape for call in calls for seen in call.floats}
    if len(calls) > 1:
        info = _noted(info, f"called {len(calls)} times: pass call=0 to {len(calls) - 1}")
    if not shapes:
        return _noted(info, "returns no floating-point tensor")
    if any(len(call.floats) > 1 for call in calls):
        return _noted(info, f"returns several tensors: pass {seen_text(calls[0])}")
    if len(shapes) > 1:
        return _noted(info, "shapes of the calls: " + ", ".join(shape_text(s) for s in sorted(shapes)))
    (shape,) = shapes
    if not shape or shape[0] != size:
        return _noted(info, f"output {shape} does not have the batch of {size} first")
    return _noted(info, "", shape=shape[1:])


def seen_text(call: Call) -> str:
    """List the tensors of a call as what could be passed: ``output=0 (B, 8), output='mask' (B, 4)``."""
    labels = [
        seen.path[0] if len(seen.path) == 1 and isinstance(seen.path[0], int) else ".".join(map(str, seen.path))
        for seen in call.floats
    ]
    return ", ".join(
        f"output={label!r} {shape_text(seen.shape)}" for label, seen in zip(labels, call.floats, strict=True)
    )


def not_reached_note(name: str, module: nn.Module, traced: Trace, layers: Mapping[str, nn.Module]) -> str:
    """Say why a layer was not called, and what to take in its place."""
    reached = [n for n, m in layers.items() if traced.calls.get(m)]
    if any(is_scripted(layers[above]) for above in parents_of(name) if above in layers) or not takes_hooks(module):
        return "inside TorchScript, out of reach"
    inside = [n for n in reached if n.startswith(f"{name}.")]
    if inside:
        return f"a container that is not called itself; take for instance {inside[-1]!r}"
    above = next((n for n in parents_of(name) if n in reached), None)
    if above is not None:
        return f"not called in this pass, though {above!r} around it is (it may use the weights directly)"
    return "not called in this pass"


def _with_cut(info: LayerInfo, module: nn.Module, traced: Trace, root: nn.Module, inputs: Any) -> LayerInfo:
    answers: list[tuple[str, bool | None]] = []
    calls = traced.calls[module]
    for number, call in enumerate(calls):
        for seen in call.floats:
            is_cut = traced.is_cut(seen.nodes)
            if is_cut is None:
                is_cut = _measured(root, module, inputs, number, seen)
            where = [f"call={number}"] * (len(calls) > 1)
            where += [f"output={'.'.join(map(str, seen.path))}"] * (len(call.floats) > 1)
            answers.append((" ".join(where), is_cut))
    cuts = [where for where, is_cut in answers if is_cut]
    if cuts:
        partial = f"a cut at {', '.join(cuts)}" if len(answers) > 1 and len(cuts) < len(answers) else ""
        return _noted(info, partial, is_cut=True)
    if not answers or any(is_cut is None for _, is_cut in answers):
        return info
    return _noted(info, _why_not(traced, calls[-1].floats[-1]), is_cut=False)


def _why_not(traced: Trace, seen: Seen) -> str:
    flow, nodes = traced.flow, set(seen.nodes)
    if flow is None:
        return bypass_note(("the forward pass",))
    if not nodes:
        return "does not depend on the image"
    if not flow.reaches(nodes, traced.output_nodes):
        return "the model's output does not depend on it"
    return bypass_note(tuple(flow.around(nodes, traced.output_nodes)) or ("Python code",))


def _measured(root: nn.Module, module: nn.Module, inputs: Any, number: int, seen: Seen) -> bool | None:
    def tensor_at(output: Any) -> Tensor:
        return next(leaf.tensor for leaf in leaves(output) if leaf.path == seen.path)

    def features(given: Any) -> tuple[Tensor, list[Tensor]]:
        kept: list[Tensor] = []

        def keep(index: int, output: Any) -> None:
            if index == number:
                kept.append(tensor_at(output).clone())

        result = run(root, given, module, keep)
        return kept[0], float_tensors(result)

    def resume(given: Any, z: Tensor) -> list[Tensor]:
        def replace(index: int, output: Any) -> Any:
            return put(output, seen.path, z.clone()) if index == number else None

        return float_tensors(run(root, given, module, replace))

    try:
        return measure_cut(features, resume, inputs)
    except (IndexError, StopIteration):  # Other images, other calls: nothing to compare.
        return None
