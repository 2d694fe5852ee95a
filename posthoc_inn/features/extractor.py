"""Φ and Ψ of somebody else's model (MSC section 3): what a layer gives, and the model resumed from there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from posthoc_inn.errors import ConfigError, LayerNotFoundError, Problems, ShapeError, quoted, suggest
from posthoc_inn.features.capture import batch_size, run
from posthoc_inn.features.cuts import few_rows, float_tensors, measure_cut
from posthoc_inn.features.isolation import unwrap
from posthoc_inn.features.layers import (
    OUTPUT,
    bypass_note,
    named_layers,
    not_reached_note,
    parents_of,
    resolve_layer,
    told_of_layer,
)
from posthoc_inn.features.outputs import KINDS, PredictionKind, Recognised, is_classification, is_one_each, said
from posthoc_inn.features.probe import Probe
from posthoc_inn.features.structure import pick, put, shape_text
from posthoc_inn.features.tracing import Call, Trace, predicted, trace

Tokens = Literal["all", "class", "patches", "mean"]
Inputs = Any


class LayerExtractor:
    """Reaches a layer of any `torch.nn.Module`, without leaving a trace in it.

    A pass runs in eval mode with one forward hook, and afterwards everything is as it was: train flags,
    parameters, buffers, gradients, hooks, cached attributes, generators. Gradients flow only when autograd is
    on and the inputs (or z) require them; they reach pixels and z, never a parameter's `.grad`. One thread at
    a time runs a model.

    Args:
        model: The explained model f. Wrappers (DataParallel, `torch.compile`) are looked through and run
            eagerly.
        layer: Dotted name of a module, as `list_layers` shows it, or ``"output"`` for the model's own output.
        output: Which tensor, when the layer returns several: index, key, attribute or dotted path.
        call: Which call, when the module is called several times in a pass; negative ones count from the end.
        tokens: Of tokens (B, T, N): "all" of them, the "class" token (the first), the "patches" (all but the
            prefix tokens, of which there are `model.num_prefix_tokens`, or 1 without such an attribute), or
            the "mean" over all T.
        prediction: Which tensor of the model's output is the prediction, when it returns several.
        prediction_kind: What the prediction is: scores of "classes", "multilabel" scores, an "embedding", or "none",
            nothing to compare; "auto" goes by its shape until `of_kind` says what was recognised.
        threshold: What a label's value must exceed; None for 0.5 where all lie in [0, 1], else 0.

    Raises:
        LayerNotFoundError: There is no such layer.
        ConfigError: An argument has the wrong type or value.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(inplace=True), torch.nn.Linear(3, 2))
    >>> x = torch.linspace(-1, 1, 8).view(2, 4)
    >>> extractor = LayerExtractor(net, "0")
    >>> z = extractor.features(x)
    >>> z.shape, bool((z < 0).any())
    (torch.Size([2, 3]), True)
    >>> torch.equal(extractor.resume(x, z), extractor.predict(x))
    True
    >>> extractor.probe(x).is_cut
    True
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        *,
        output: int | str | None = None,
        call: int | None = None,
        tokens: Tokens = "all",
        prediction: int | str | None = None,
        prediction_kind: PredictionKind = "auto",
        threshold: float | None = None,
    ) -> None:
        problems = Problems("LayerExtractor")
        problems.check(isinstance(model, nn.Module), f"model must be a torch.nn.Module, got {type(model).__name__}")
        problems.check(isinstance(layer, str), f"layer must be a dotted name (str), got {told_of_layer(model, layer)}")
        problems.check(_is_key(output), f"output must be an index, a key or None, got {quoted(output)}")
        problems.check(call is None or _is_int(call), f"call must be an integer or None, got {quoted(call)}")
        problems.check(
            isinstance(tokens, str) and tokens in get_args(Tokens),
            f"tokens must be one of {', '.join(map(repr, get_args(Tokens)))}, got {quoted(tokens)}",
        )
        problems.check(_is_key(prediction), f"prediction must be an index, a key or None, got {quoted(prediction)}")
        problems.check(
            isinstance(prediction_kind, str) and prediction_kind in KINDS,
            f"prediction_kind must be one of {', '.join(map(repr, KINDS))}, got {quoted(prediction_kind)}",
        )
        problems.raise_if_any()
        self.model = model
        self.layer = layer
        self.output = output
        self.call = call
        self.tokens: Tokens = tokens
        self.prediction = prediction
        self.prediction_kind: PredictionKind = prediction_kind
        self.kind: str = prediction_kind
        self.threshold = threshold
        self._root = unwrap(model)
        self._module = resolve_layer(model, layer)
        self._calls: int | None = None

    def __repr__(self) -> str:
        given = {k: v for k, v in self.options.items() if v not in (None, "all", "auto")}
        arguments = ", ".join(f"{k}={v!r}" for k, v in given.items())
        return f"LayerExtractor({type(self._root).__name__}, {arguments})"

    @property
    def options(self) -> dict[str, Any]:
        """Plain arguments that build the same extractor: ``LayerExtractor(model, **options)``."""
        return {
            "layer": self.layer,
            "output": self.output,
            "call": self.call,
            "tokens": self.tokens,
            "prediction": self.prediction,
            "prediction_kind": self.kind,
            "threshold": self.threshold,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return `options`, for a file."""
        return self.options

    def of_kind(self, found: Recognised) -> LayerExtractor:
        """Return the same extractor, which knows what the prediction is."""
        twin = copy.copy(self)
        twin.kind, twin.threshold = found.kind, found.threshold
        return twin

    def kind_of(self, output: Tensor) -> str:
        """Return what a prediction (B, ...) is; as long as nothing is known, what its shape tells."""
        if self.kind == "auto":
            return "classes" if is_classification(output) else "none"
        return self.kind

    def said(self, output: Tensor) -> Tensor | None:
        """Return what is compared of a prediction (B, ...): classes, sets of labels, embeddings; None for nothing."""
        return said(output, self.kind_of(output), self.threshold)

    def features(self, inputs: Inputs) -> Tensor:
        """Return z = Φ(x).

        Args:
            inputs: What the model takes: images (B, C, H, W), a tuple of positional or a dict of keyword
                arguments.

        Returns:
            z, shape (B, *z_shape): a copy that a later activation in place does not change.

        Raises:
            LayerNotFoundError: The layer is not called in this pass.
            ConfigError: The layer returns several tensors, or is called several times, and none was chosen.
            ShapeError: The output has no floating-point tensor, or not the batch first; or `inputs` are
            unusable.
        """
        return self._run(inputs)[0]

    def predict(self, inputs: Inputs) -> Tensor:
        """Return the model's prediction f(x), batch first.

        Of a structured output that is what is called logits, or the only tensor.

        Raises:
            ConfigError: The model returns several tensors and `prediction` was not given.
        """
        return predicted(run(self._root, inputs), self.prediction).tensor

    def features_and_prediction(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return z, shape (B, *z_shape), and the prediction f(x) of one and the same pass.

        Where there is nothing to compare (kind "none") and no single tensor, it is empty: (B, 0).
        """
        z, result = self._run(inputs)
        if self.kind != "none":
            return z, predicted(result, self.prediction).tensor
        rows = len(z)
        try:
            output = None if is_one_each(result, rows) else predicted(result, self.prediction).tensor
        except (ConfigError, ShapeError):
            output = None
        return z, output if output is not None and output.shape[:1] == (rows,) else z.new_zeros(rows, 0)

    def returns_one_each(self, inputs: Inputs) -> bool:
        """Whether the model returns a list with one structure for each row of `inputs`, as detectors do."""
        return self.prediction is None and is_one_each(run(self._root, inputs), batch_size(inputs))

    def resume(self, inputs: Inputs, z: Tensor) -> Tensor:
        """Return Ψ(z): the prediction of a pass over `inputs` in which `z` replaces the layer's output.

        For a true cut the inputs' values do not matter, only their shapes. Otherwise the image reaches the
        output around the layer as well (`probe` says where). With tokens "class" or "patches" the other
        tokens stay those of `inputs`.

        Args:
            inputs: What the model takes, B rows.
            z: Shape (B, *z_shape); cast to the layer's number type and device. It is not modified.

        Raises:
            ShapeError: `z` has another shape than the layer's output for these inputs, or is no float tensor.
            ConfigError: The tokens are "mean", from which tokens cannot be told; or see `features`.
            LayerNotFoundError: The layer is not called in this pass.
        """
        return predicted(self._run(inputs, z)[1], self.prediction).tensor

    def probe(self, inputs: Inputs) -> Probe:
        """Look at the layer with at most 4 rows of `inputs`: shape of z, calls, and whether it is a true cut.

        The data flow of a pass is followed, and the layer's output is exchanged for that of another image.

        Raises:
            LayerNotFoundError: The layer is not called in this pass.
            ConfigError: As for `features`.
            ShapeError: As for `features`.
        """
        inputs = few_rows(inputs)
        with torch.no_grad():
            z, result = self._run(inputs)
        traced = trace(self._root, inputs)
        calls = len(traced.calls[self._module])
        is_cut, around, note = self._cut(inputs, traced)
        try:
            output_shape: tuple[int, ...] | None = tuple(predicted(result, self.prediction).tensor.shape[1:])
        except (ConfigError, ShapeError) as error:
            output_shape = None
            if self.kind != "none" and not is_one_each(result, len(z)):
                note = "; ".join(part for part in (note, str(error)) if part)
        return Probe(tuple(z.shape[1:]), z.dtype, calls, is_cut, around, output_shape, note, traced.head)

    def _cut(self, inputs: Inputs, traced: Trace) -> tuple[bool | None, tuple[str, ...], str]:
        flow, is_cut = traced.flow, None
        around: tuple[str, ...] = ()
        if flow is not None and self.tokens == "all":
            nodes = set(self._nodes(traced))
            if not nodes:
                return False, (), "this layer does not depend on the image"
            if not flow.reaches(nodes, traced.output_nodes):
                return False, (), "the model's output does not depend on this layer"
            is_cut = traced.is_cut(frozenset(nodes))
            around = tuple(flow.around(nodes, traced.output_nodes))
        if is_cut is False:
            return False, around, bypass_note(around)
        if self.tokens == "mean":
            return None, (), "z is a mean of tokens, from which the model cannot be resumed"
        measured = measure_cut(
            lambda given: self._features_and_floats(given),
            lambda given, z: float_tensors(self._run(given, z)[1]),
            inputs,
        )
        if measured is False:
            around = around or (("the other tokens",) if self.tokens != "all" else ("Python code",))
            return False, around, bypass_note(around)
        if measured is None and is_cut is None:
            return (
                None,
                (),
                "whether this layer is a true cut cannot be told: the model's outputs do not differ",
            )
        return True, (), ""

    def _nodes(self, traced: Trace) -> frozenset[int]:
        call = traced.calls[self._module][self.call or 0]
        floats = call.floats
        if len(floats) > 1:
            key = self.output
            wanted = [s for s in floats if key in (".".join(map(str, s.path)), s.path[0])]
            if isinstance(key, int) and not wanted:
                # An index into a dict, or from the end: tensors stand in the order of the keys.
                keys = list(dict.fromkeys(s.path[0] for s in call.tensors))
                wanted = [s for s in floats if -len(keys) <= key < len(keys) and s.path[0] == keys[key]]
            floats = wanted or floats
        return frozenset().union(*(seen.nodes for seen in floats[:1]))

    def _features_and_floats(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        z, result = self._run(inputs)
        return z, float_tensors(result)

    def _run(self, inputs: Inputs, z: Tensor | None = None) -> tuple[Tensor, Any]:
        """Run the model once, with `z` put in if given; return z of the chosen call and the model's output."""
        if z is not None:
            self._check_z(z)
        if self.call is not None and self.call < 0:
            return self._run_from_the_end(inputs, z)
        kept, result, calls = self._pass(inputs, self.call or 0, z)
        self._check_calls(calls, inputs)
        return kept[0], result

    def _run_from_the_end(self, inputs: Inputs, z: Tensor | None) -> tuple[Tensor, Any]:
        # Which call is the last but one is known only after a pass; models seldom change how often they call.
        call = self.call or 0
        for _ in range(2):
            if self._calls is None or self._calls + call < 0:
                with torch.no_grad():
                    self._calls = self._pass(inputs, -1, None)[2]
                self._check_calls(self._calls, inputs)
            expected = self._calls
            kept, result, self._calls = self._pass(inputs, expected + call, z)
            if self._calls == expected:
                return kept[0], result
        raise ConfigError(
            f"Layer {self.layer!r} is called a different number of times in each pass, so that call={call} cannot be "
            "found; pass call=0 or another count from the start."
        )

    def _pass(self, inputs: Inputs, wanted: int, z: Tensor | None) -> tuple[list[Tensor], Any, int]:
        rows = batch_size(inputs)
        kept: list[Tensor] = []
        calls = 0

        def on_call(index: int, output: Any) -> Any:
            nonlocal calls
            calls = index + 1
            if index != wanted:
                return None
            leaf = pick(output, self.output, f"Layer {self.layer!r}")
            self._check_batch(leaf.tensor, rows)
            kept.append(self._selected(leaf.tensor).clone())
            return None if z is None else put(output, leaf.path, self._inserted(leaf.tensor, z))

        result = run(self._root, inputs, self._module, on_call, *(() if z is None else (z,)))
        return kept, result, calls

    def _check_calls(self, calls: int, inputs: Inputs) -> None:
        if calls == 0:
            raise self._not_reached(inputs)
        if self.call is None and calls == 1:
            return
        if self.call is None or not -calls <= self.call < calls:
            which = f"there is no call={self.call}" if self.call is not None else "one must be chosen"
            shapes = self._describe_calls(inputs)
            raise ConfigError(
                f"Layer {self.layer!r} is called {calls} time{'s' * (calls > 1)} in one pass, and {which}: pass "
                f"call=0 to {calls - 1}, or -1 for the last. {shapes}"
            )

    def _traced(self, inputs: Inputs) -> Trace:
        return trace(self._root, few_rows(inputs), follow=False)

    def _describe_calls(self, inputs: Inputs) -> str:
        calls: list[Call] = self._traced(inputs).calls.get(self._module, [])
        shown = [f"call={n} {' '.join(shape_text(s.shape) for s in c.floats)}" for n, c in enumerate(calls[:8])]
        return f"Shapes: {', '.join(shown)}{', ...' if len(calls) > 8 else ''}."

    def _not_reached(self, inputs: Inputs) -> LayerNotFoundError:
        layers = named_layers(self.model)
        traced = self._traced(inputs)
        reached = [name for name, module in layers.items() if traced.calls.get(module)]
        note = not_reached_note(self.layer, self._module, traced, layers)
        above = [name for name in parents_of(self.layer) if name in reached]
        known = suggest(self.layer, [*above, *(name for name in reached if name not in above), OUTPUT])
        return LayerNotFoundError(
            f"Layer {self.layer!r} ({type(self._module).__name__}) exists but is never reached in eval mode with "
            f"these inputs: {note}. {known}"
        )

    def _check_batch(self, tensor: Tensor, rows: int) -> None:
        subject = f"Layer {self.layer!r} returns shape {tuple(tensor.shape)}"
        if tensor.ndim == 0 or tensor.shape[0] != rows:
            raise ShapeError(
                f"{subject} for {rows} rows of input; the batch must come first. Choose the module around it, or a "
                "later layer (windows and (T, B, N) layouts are put in order there)."
            )
        if self.tokens == "all":
            return
        if tensor.ndim != 3:
            raise ShapeError(
                f"{subject}; tokens={self.tokens!r} needs tokens (B, T, N). Leave tokens out for this layer."
            )
        prefix = self._prefix_tokens
        if self.tokens == "class" and prefix == 0:
            raise ShapeError(
                f"{type(self._root).__name__} says that it has no class token (num_prefix_tokens is 0); "
                f"pass tokens='mean' or 'all'."
            )
        if self.tokens == "patches" and tensor.shape[1] <= prefix:
            raise ShapeError(f"{subject}: no token is left after {prefix} prefix token(s); pass tokens='all'.")

    @property
    def _prefix_tokens(self) -> int:
        count = getattr(self._root, "num_prefix_tokens", 1)
        return count if _is_int(count) and count >= 0 else 1

    def _selected(self, tensor: Tensor) -> Tensor:
        choose: dict[str, Callable[[], Tensor]] = {
            "all": lambda: tensor,
            "class": lambda: tensor[:, 0],
            "patches": lambda: tensor[:, self._prefix_tokens :],
            "mean": lambda: tensor.mean(1),
        }
        return choose[self.tokens]()

    def _inserted(self, tensor: Tensor, z: Tensor) -> Tensor:
        accepted = self._selected(tensor)
        if z.shape != accepted.shape:
            advice = ""
            if z.shape[1:] == accepted.shape[1:] and accepted.shape[0] and z.shape[0] % accepted.shape[0] == 0:
                times = z.shape[0] // accepted.shape[0]
                advice = f" Repeat the inputs to as many rows: inputs.repeat_interleave({times}, 0)."
            raise ShapeError(
                f"z has shape {tuple(z.shape)}; layer {self.layer!r} gives {tuple(accepted.shape)} for these inputs, "
                f"and resuming takes the same.{advice}"
            )
        z = z.to(device=tensor.device, dtype=tensor.dtype)
        if self.tokens == "all":
            return z.clone()
        start, stop = (0, 1) if self.tokens == "class" else (self._prefix_tokens, tensor.shape[1])
        z = z.unsqueeze(1) if self.tokens == "class" else z
        return torch.cat([tensor[:, :start], z, tensor[:, stop:]], 1)

    def _check_z(self, z: Tensor) -> None:
        if self.tokens == "mean":
            raise ConfigError(
                "tokens='mean' cannot be resumed exactly: many tokens share one mean. Use tokens='all', 'class' or "
                "'patches', or a later layer, after the model's own pooling."
            )
        if not isinstance(z, Tensor) or not z.is_floating_point():
            kind = str(z.dtype) if isinstance(z, Tensor) else type(z).__name__
            raise ShapeError(f"z must be a floating-point tensor (B, *z_shape), got {kind}.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_key(value: Any) -> bool:
    return value is None or isinstance(value, str) or _is_int(value)
