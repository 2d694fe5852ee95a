"""Names and tensors of the known public checkpoints, brought to those of `BigGAN`.

Spectral normalisation divides each weight by what its layer computes in use, once; of stored statistics for several
truncations, the ones for the truncation that is asked for remain.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_inn.errors import DataError, listed
from posthoc_inn_biggan.network import Architecture

State = dict[str, Tensor]
LAYOUTS = ("original", "deep")


@dataclass(frozen=True)
class _Layout:
    """One family of checkpoints: rules of names, and how tensors differ.

    Attributes:
        what: For messages.
        is_deep: Which of the two architectures it has.
        mark: A name that only this layout has.
        rules: Pattern of a name, and what it becomes.
        folded: Tensor names of one layer to its normalised weight.
        eps: By which variances are kept from 0.
        channels_last: Whether the first map is laid out (H, W, C).
    """

    what: str
    is_deep: bool
    mark: str
    rules: tuple[tuple[str, str], ...]
    folded: Callable[[Mapping[str, Tensor]], Tensor | None]
    eps: float
    channels_last: bool


def _matrix(weight: Tensor) -> Tensor:
    return weight.double().flatten(1)


def _divided(weight: Tensor, sigma: Tensor) -> Tensor:
    return (weight.double() / sigma).to(weight.dtype)


def _fold_stored(layer: Mapping[str, Tensor]) -> Tensor | None:
    """Both singular vectors are stored (torch.nn.utils.spectral_norm)."""
    if not {"weight_orig", "weight_u", "weight_v"} <= layer.keys():
        return None
    weight = layer["weight_orig"]
    return _divided(weight, layer["weight_u"].double() @ _matrix(weight) @ layer["weight_v"].double())


def _fold_by_one_step(layer: Mapping[str, Tensor]) -> Tensor | None:
    """The left vector is stored, and one step of the power method is made in use."""
    if not {"weight", "u0"} <= layer.keys():
        return None
    weight = layer["weight"]
    matrix, u = _matrix(weight), layer["u0"].double().flatten()
    v = torch.nn.functional.normalize(u @ matrix, dim=0)
    u = torch.nn.functional.normalize(matrix @ v, dim=0)
    return _divided(weight, u @ matrix @ v)


def _fold_converted(layer: Mapping[str, Tensor]) -> Tensor | None:
    """The same, with a small number added to each length."""
    if not {"weight_bar", "weight_u"} <= layer.keys():
        return None
    weight = layer["weight_bar"]
    matrix = _matrix(weight)
    v = layer["weight_u"].double().flatten() @ matrix
    v = v / (v.norm() + 1e-4)
    u = matrix @ v
    u = u / (u.norm() + 1e-4)
    return _divided(weight, u @ matrix @ v)


_ORIGINAL = _Layout(
    "original",
    False,
    "blocks.0.0.conv1.weight",
    (
        (r"shared\.weight", "embedding"),
        (r"linear\.(weight|bias)", r"first.\1"),
        (r"blocks\.(\d+)\.0\.bn([12])\.(gain|bias)\.weight", r"blocks.\1.norms.\2.\3.weight"),
        (r"blocks\.(\d+)\.0\.bn([12])\.(?:bn\.)?(?:stored|running)_(mean|var)", r"blocks.\1.norms.\2.\3"),
        (r"blocks\.(\d+)\.0\.conv([12])\.(weight|bias)", r"blocks.\1.convs.\2.\3"),
        (r"blocks\.(\d+)\.0\.conv_sc\.(weight|bias)", r"blocks.\1.shortcut.\2"),
        (r"blocks\.(\d+)\.1\.(theta|phi|g)\.weight", r"attentions.\1.\2.weight"),
        (r"blocks\.(\d+)\.1\.o\.weight", r"attentions.\1.out.weight"),
        (r"blocks\.(\d+)\.1\.gamma", r"attentions.\1.gamma"),
        (r"output_layer\.0\.(gain|bias)", r"norm.\1"),
        (r"output_layer\.0\.(?:bn\.)?(?:stored|running)_(mean|var)", r"norm.\1"),
        (r"output_layer\.2\.(weight|bias)", r"to_rgb.\1"),
    ),
    _fold_by_one_step,
    1e-5,
    False,
)
_CONVERTED = _Layout(
    "original, converted from TensorFlow",
    False,
    "GBlock.0.conv0.weight",
    (
        (r"linear\.weight", "embedding"),
        (r"G_linear\.(weight|bias)", r"first.\1"),
        (r"GBlock\.(\d+)\.HyperBN\.gamma_embed\.weight", r"blocks.\1.norms.0.gain.weight"),
        (r"GBlock\.(\d+)\.HyperBN\.beta_embed\.weight", r"blocks.\1.norms.0.bias.weight"),
        (r"GBlock\.(\d+)\.HyperBN_1\.gamma_embed\.weight", r"blocks.\1.norms.1.gain.weight"),
        (r"GBlock\.(\d+)\.HyperBN_1\.beta_embed\.weight", r"blocks.\1.norms.1.bias.weight"),
        (r"GBlock\.(\d+)\.HyperBN\.bn\.running_(mean|var)", r"blocks.\1.norms.0.\2"),
        (r"GBlock\.(\d+)\.HyperBN_1\.bn\.running_(mean|var)", r"blocks.\1.norms.1.\2"),
        (r"GBlock\.(\d+)\.conv([01])\.(weight|bias)", r"blocks.\1.convs.\2.\3"),
        (r"GBlock\.(\d+)\.conv_sc\.(weight|bias)", r"blocks.\1.shortcut.\2"),
        (r"attention\.(theta|phi|g)\.weight", r"attentions.?.\1.weight"),
        (r"attention\.o_conv\.weight", "attentions.?.out.weight"),
        (r"attention\.gamma", "attentions.?.gamma"),
        (r"ScaledCrossReplicaBN\.weight", "norm.gain"),
        (r"ScaledCrossReplicaBN\.bias", "norm.bias"),
        (r"ScaledCrossReplicaBN\.running_(mean|var)", r"norm.\1"),
        (r"colorize\.(weight|bias)", r"to_rgb.\1"),
    ),
    _fold_converted,
    1e-4,
    True,
)
_DEEP = _Layout(
    "deep",
    True,
    "generator.layers.0.conv_0.weight",
    (
        (r"embeddings\.weight", "embedding"),
        (r"generator\.gen_z\.(weight|bias)", r"first.\1"),
        (r"generator\.layers\.(\d+)\.bn_([0-3])\.scale\.weight", r"blocks.\1.norms.\2.gain.weight"),
        (r"generator\.layers\.(\d+)\.bn_([0-3])\.offset\.weight", r"blocks.\1.norms.\2.bias.weight"),
        (r"generator\.layers\.(\d+)\.bn_([0-3])\.running_(mean|var)s", r"blocks.\1.norms.\2.\3"),
        (r"generator\.layers\.(\d+)\.conv_([0-3])\.(weight|bias)", r"blocks.\1.convs.\2.\3"),
        (r"generator\.layers\.(\d+)\.snconv1x1_(theta|phi|g)\.weight", r"attentions.\1.\2.weight"),
        (r"generator\.layers\.(\d+)\.snconv1x1_o_conv\.weight", r"attentions.\1.out.weight"),
        (r"generator\.layers\.(\d+)\.gamma", r"attentions.\1.gamma"),
        (r"generator\.bn\.weight", "norm.gain"),
        (r"generator\.bn\.bias", "norm.bias"),
        (r"generator\.bn\.running_(mean|var)s", r"norm.\1"),
        (r"generator\.conv_to_rgb\.(weight|bias)", r"to_rgb.\1"),
    ),
    _fold_stored,
    1e-4,
    True,
)
_ALL = (_ORIGINAL, _CONVERTED, _DEEP)
_UNUSED = re.compile(r"(.*\.)?(u\d+|sv\d+|num_batches_tracked|accumulation_counter)")
_NORMALISING = re.compile(r"(.*\.)?(weight_orig|weight_bar|weight_u|weight_v|u0)")


def convert(state: Mapping[str, Tensor], *, layout: str, truncation: float, source: str) -> tuple[Architecture, State]:
    """Return the shape of a generator, and its tensors under the names of `BigGAN`.

    Args:
        state: A checkpoint's tensors.
        layout: "original", "deep", or "auto" for what the names tell.
        truncation: In (0, 1]; chooses among stored statistics.
        source: Where they are from, for messages.

    Raises:
        DataError: The names are of no known layout, or of another than `layout`; names or shapes make no generator.
    """
    # Converted checkpoints wrap each normalised layer.
    plain = _folded({name.replace(".module.", "."): tensor for name, tensor in state.items()}, source)
    found = next((known for known in _ALL if known.mark in plain), None)
    if found is None:
        raise DataError(
            f"{source} is no generator of BigGAN in a known layout (its tensors: {listed(sorted(state), 6, 60)}). "
            "Known are the original one (blocks.0.0.conv1.weight, or GBlock.0.conv0.* converted from TensorFlow) and "
            "the deep one (generator.layers.0.conv_0.*)."
        )
    if layout not in ("auto", LAYOUTS[found.is_deep]):
        raise DataError(f"{source} has the layout {LAYOUTS[found.is_deep]!r}, got layout={layout!r}.")
    named = _renamed(plain, found, source)
    try:
        named = _numbered(named, found)
        architecture = _architecture(named, found)
        return architecture, _arranged(named, architecture, found, truncation)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{source} has names of the {found.what} layout but makes no generator: {said}.") from error


def _folded(state: State, source: str) -> State:
    """Return the tensors with normalised weights, without what normalisation needs."""
    layers: dict[str, State] = {}
    for name, tensor in state.items():
        base, _, last = name.rpartition(".")
        layers.setdefault(base, {})[last] = tensor
    plain: State = {}
    for base, layer in layers.items():
        for fold in (_fold_stored, _fold_by_one_step, _fold_converted):
            try:
                weight = fold(layer)
            except RuntimeError as error:
                raise DataError(f"The singular vectors of {base} in {source} do not fit its weight.") from error
            if weight is not None:
                layer = {**layer, "weight": weight}
                break
        for last, tensor in layer.items():
            name = f"{base}.{last}" if base else last
            if not _NORMALISING.fullmatch(name) and not _UNUSED.fullmatch(name):
                plain[name] = tensor
    broken = [name for name, tensor in plain.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise DataError(f"{source} holds weights that are not finite: {listed(broken, 4, 60)}.")
    return plain


def _renamed(plain: State, layout: _Layout, source: str) -> State:
    named: State = {}
    unknown: list[str] = []
    for name, tensor in plain.items():
        for pattern, becomes in layout.rules:
            match = re.fullmatch(pattern, name)
            if match:
                named[match.expand(becomes)] = tensor
                break
        else:
            unknown.append(name)
    if unknown:
        raise DataError(
            f"{source} has names of the {layout.what} layout, and others that it does not have: "
            f"{listed(sorted(unknown), 6, 60)}. Generators with other blocks are not known."
        )
    if "embedding" not in named:
        raise DataError(f"{source} has no embedding that all blocks share, and is not supported without one.")
    return named


def _index(name: str) -> int:
    return int(name.split(".")[1])


def _numbered(named: State, layout: _Layout) -> State:
    """Number blocks and their parts from 0, and attentions by the block that they stand before."""
    blocks = sorted({_index(name) for name in named if name.startswith("blocks.")})
    attentions = [name for name in named if name.startswith("attentions.")]
    new: State = {}
    for name, tensor in named.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts[1] = str(blocks.index(int(parts[1])))
            if layout is _ORIGINAL and parts[2] in ("norms", "convs"):
                parts[3] = str(int(parts[3]) - 1)
        elif name in attentions:
            if layout is _CONVERTED:
                # Its place is not stored: it is where its channels are.
                channels = named["attentions.?.theta.weight"].shape[1]
                fitting = [i for i in blocks if named[f"blocks.{i}.convs.1.weight"].shape[0] == channels]
                if not fitting:
                    raise ValueError(f"no block has the {channels} channels of the attention")
                parts[1] = str(blocks.index(fitting[-1]) + 1)
            elif layout is _ORIGINAL:
                parts[1] = str(int(parts[1]) + 1)
            else:
                parts[1] = str(sum(block < int(parts[1]) for block in blocks))
        new[".".join(parts)] = tensor
    return new


def _architecture(named: State, layout: _Layout) -> Architecture:
    """Read the shape of the generator off its tensors."""
    count = 1 + max(_index(name) for name in named if name.startswith("blocks."))
    last = 3 if layout.is_deep else 1
    widths = [named["blocks.0.convs.0.weight"].shape[1]]
    widths += [named[f"blocks.{i}.convs.{last}.weight"].shape[0] for i in range(count)]
    embedding = named["embedding"]
    classes, class_dim = embedding.shape if layout is _ORIGINAL else embedding.shape[::-1]
    rows, entering = named["first.weight"].shape
    bottom = math.isqrt(rows // widths[0])
    if widths[0] * bottom**2 != rows:
        raise ValueError(f"the first layer makes {rows} values, which is no square map of {widths[0]} channels")
    condition = named["blocks.0.norms.0.gain.weight"].shape[1]
    chunk = 0
    if layout.is_deep:
        if count % 2:
            raise ValueError(f"it has {count} blocks; a deep one has two for each side")
        z_dim = entering - class_dim
    else:
        chunk = condition - class_dim
        if chunk not in (0, entering):
            raise ValueError(f"blocks get {condition} values, not {class_dim} of the class and {entering} of z")
        z_dim = entering * (count + 1) if chunk else entering
    attentions = {_index(n): t.shape[1] for n, t in named.items() if re.fullmatch(r"attentions\.\d+\.theta\.weight", n)}
    return Architecture(
        deep=layout.is_deep,
        widths=tuple(widths),
        bottom=bottom,
        z_dim=z_dim,
        class_dim=class_dim,
        classes=classes,
        chunk=chunk,
        attentions=tuple(sorted(attentions.items())),
        eps=layout.eps,
    )


def _arranged(named: State, shape: Architecture, layout: _Layout, truncation: float) -> State:
    """Bring tensors to the order and the number that `BigGAN` has them in."""
    new = dict(named)
    if layout is not _ORIGINAL:
        new["embedding"] = new["embedding"].T.contiguous()
    if layout.channels_last:
        for name in ("first.weight", "first.bias"):
            cells = new[name].unflatten(0, (shape.bottom, shape.bottom, shape.widths[0]))
            new[name] = cells.movedim(2, 0).flatten(0, 2).contiguous()
    for name, tensor in new.items():
        if name.endswith((".mean", ".var")) and tensor.ndim == 2:
            new[name] = _for_truncation(tensor, truncation)
        elif layout is _CONVERTED and shape.chunk and re.fullmatch(r"blocks\..*\.(gain|bias)\.weight", name):
            # z comes before the class there.
            new[name] = tensor.roll(-shape.chunk, 1)
        elif name.endswith(".gamma"):
            new[name] = tensor.reshape(())
    # A deep one makes more channels of pictures than are used.
    return new | {name: new[name][:3] for name in ("to_rgb.weight", "to_rgb.bias")}


def _for_truncation(statistics: Tensor, truncation: float) -> Tensor:
    """Return the row of statistics (S, C), stored for S truncations from 0 to 1, interpolated where it lies between."""
    place = min(max(truncation, 0.0), 1.0) * (len(statistics) - 1)
    # Rounded, so that 0.3 is the row of 0.3 although 0.3 · 50 is less than 15.
    low = min(math.floor(round(place, 6)), len(statistics) - 1)
    high = min(low + 1, len(statistics) - 1)
    return torch.lerp(statistics[low], statistics[high], max(0.0, place - low))
