"""Frozen configuration dataclasses, strictly to and from plain JSON, and the presets of MSC tab. S10."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

from posthoc_inn.errors import ConfigError, Problems, suggest
from posthoc_inn.files import plain

C = TypeVar("C", bound="Config")

MAX_DIM = 1 << 20
"""No width, dimension or count of channels above this is believed, so that a file cannot ask for terabytes."""


def _fits(value: Any, hint: Any) -> bool:
    """Say whether a JSON value already converted to Python fits the annotation `hint`."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, h) for h in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        inner = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(_fits(v, inner[0]) for v in value)
        return len(value) == len(inner) and all(_fits(v, h) for v, h in zip(value, inner, strict=True))
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _from_plain(value: Any, hint: Any) -> Any:
    """Turn JSON lists into tuples and JSON objects into nested configurations where `hint` asks for it."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if isinstance(option, type) and issubclass(option, Config) and isinstance(value, Mapping):
            return option.from_dict(value)
        if typing.get_origin(option) is tuple and isinstance(value, list):
            inner = typing.get_args(option)
            return tuple(_from_plain(v, inner[0]) for v in value)
    return value


@dataclass(frozen=True)
class Config:
    """Base of every configuration: checked types, strict plain-JSON round trip."""

    def __post_init__(self) -> None:
        problems = Problems(type(self).__name__)
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if not _fits(value, hints[f.name]):
                problems.check(False, f"{f.name} must be {_readable(hints[f.name])}, got {value!r}")
        problems.raise_if_any()
        self._check(problems)
        problems.raise_if_any()

    def _check(self, problems: Problems) -> None:
        """Add what is wrong with the values to `problems`; types are already right."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain data (dict, list, str, number, bool, None)."""
        # A limit may be infinite, and is read back as such.
        return {f.name: plain(getattr(self, f.name), finite=False) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls: type[C], data: Mapping[str, Any]) -> C:
        """Build from plain data.

        Raises:
            ConfigError: A key is unknown or missing, or a value has the wrong type or size.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{cls.__name__} is read from an object, got {type(data).__name__}.")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        problems = Problems(cls.__name__)
        for key in data:
            if key not in fields:
                problems.check(False, f"unknown key {key!r}. {suggest(str(key), fields)}")
        for f in fields.values():
            has_default = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
            problems.check(f.name in data or has_default, f"missing key {f.name!r}")
        problems.raise_if_any()
        hints = typing.get_type_hints(cls)
        return cls(**{k: _from_plain(v, hints[k]) for k, v in data.items()})

    def replace(self: C, **changes: Any) -> C:
        """Return a copy with `changes`, checked anew."""
        return dataclasses.replace(self, **changes)


def _readable(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(a) for a in typing.get_args(hint))
    return getattr(hint, "__name__", str(hint)).replace("typing.", "")


@dataclass(frozen=True)
class ImageSpec(Config):
    """How a network wants its images, starting from canonical ones: (B, C, H, W) in [0, 1].

    Attributes:
        size: Height and width in pixels, or None to keep the size they come in.
        mean: Subtracted per channel (in units of [0, 1]); length 1 or 3.
        std: Divided by per channel.
        interpolation: How images are resized.
        channels: Channels the network takes; a grey image is repeated to 3.
        crop: Share of the image kept by a central crop, in (0, 1]; the image is resized so that the crop has `size`.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    interpolation: Literal["bilinear", "bicubic", "nearest", "area"] = "bilinear"
    channels: int = 3
    crop: float = 1.0

    def _check(self, problems: Problems) -> None:
        problems.check(self.channels in (1, 3), f"channels must be 1 or 3, got {self.channels}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            problems.check(
                len(values) in (1, self.channels),
                f"{name} must have 1 or {self.channels} values, got {len(values)}",
            )
        problems.check(all(s > 0 for s in self.std), f"std must be positive, got {self.std}")
        if self.size is not None:
            problems.check(all(0 < s <= 4096 for s in self.size), f"size must be 1 to 4096 pixels, got {self.size}")
        problems.check(0 < self.crop <= 1, f"crop must be in (0, 1], got {self.crop}")


Activation = Literal["leaky_relu", "silu", "relu", "gelu"]
"""Activations of the subnets; the papers use leaky ReLU."""


@dataclass(frozen=True)
class FlowConfig(Config):
    """Shape of a coupling flow (MSC A.2, A.3, tab. S10).

    Attributes:
        dim: D, width of the data and of the base variable.
        context_dim: Width of the context; 0 for an unconditional flow (e).
        kind: Registered coupling: "affine", "spline", or one of a plugin's.
        blocks: Blocks of actnorm, two couplings and a permutation.
        width: Hidden width of the subnets.
        depth: Hidden layers of the subnets; h_d of tab. S10 counts the layers between them, so it is one less.
        separate_nets: Separate scale and shift networks (the papers'), instead of one with two heads.
        scale_bound: Bound of |log s| of one coupling.
        bins: Bins of the spline coupling.
        tail: The spline acts on [-tail, tail], and is the identity outside.
        dropout: Dropout rate in the subnets, training only.
        activation: Activation of the subnets.
        seed: Seed of the permutations and of the initial weights.
    """

    dim: int
    context_dim: int = 0
    kind: str = "affine"
    blocks: int = 8
    width: int = 256
    depth: int = 2
    separate_nets: bool = False
    scale_bound: float = 1.0
    bins: int = 8
    tail: float = 5.0
    dropout: float = 0.0
    activation: Activation = "silu"
    seed: int = 0

    def _check(self, problems: Problems) -> None:
        problems.check(2 <= self.dim <= MAX_DIM, f"dim must be 2 to {MAX_DIM}, got {self.dim}")
        problems.check(0 <= self.context_dim <= MAX_DIM, f"context_dim must be 0 to {MAX_DIM}, got {self.context_dim}")
        problems.check(1 <= self.blocks <= 1000, f"blocks must be 1 to 1000, got {self.blocks}")
        problems.check(1 <= self.width <= 65536, f"width must be 1 to 65536, got {self.width}")
        problems.check(1 <= self.depth <= 100, f"depth must be 1 to 100, got {self.depth}")
        problems.check(0 < self.scale_bound <= 20, f"scale_bound must be in (0, 20], got {self.scale_bound}")
        problems.check(2 <= self.bins <= 256, f"bins must be 2 to 256, got {self.bins}")
        problems.check(0 < self.tail <= 1000, f"tail must be in (0, 1000], got {self.tail}")
        problems.check(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True)
class ConditionerConfig(Config):
    """Shape of H, the embedding of z that conditions every coupling of t (MSC A.3, eq. 16).

    Attributes:
        z_shape: Shape of z without the batch: (N,), (C, H, W) or (T, N).
        context_dim: Width of the context.
        width: Hidden width, or channels of the first convolution.
        depth: Hidden layers; for maps, at least as many halvings as bring the map to 4 pixels or less.
        dropout: Dropout rate, training only.
        activation: Activation of the hidden layers.
        seed: Seed of the initial weights.
    """

    z_shape: tuple[int, ...]
    context_dim: int = 128
    width: int = 256
    depth: int = 1
    dropout: float = 0.0
    activation: Activation = "silu"
    seed: int = 0

    def _check(self, problems: Problems) -> None:
        problems.check(
            1 <= len(self.z_shape) <= 3 and all(1 <= n <= MAX_DIM for n in self.z_shape),
            f"z_shape must be (N,), (T, N) or (C, H, W) with sizes of 1 to {MAX_DIM}, got {self.z_shape}",
        )
        problems.check(1 <= self.context_dim <= MAX_DIM, f"context_dim must be 1 to {MAX_DIM}, got {self.context_dim}")
        problems.check(1 <= self.width <= 65536, f"width must be 1 to 65536, got {self.width}")
        problems.check(0 <= self.depth <= 20, f"depth must be 0 to 20, got {self.depth}")
        problems.check(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True)
class AutoencoderConfig(Config):
    """Shape of the built-in convolutional Gaussian autoencoder (MSC tab. S1 and the same family).

    Attributes:
        kind: Registered autoencoder.
        size: Image size in pixels: 28, 32, 64 or 128.
        channels: Image channels, 1 or 3.
        latent_dim: D, width of z_bar.
        width: Channels after the first halving (64 in tab. S1), doubled at each further one.
        min_gamma: Lower bound of the output variance γ, images in [-1, 1]: errors below it are not worth bits of the
            latent. Finer latents are denser, and harder for t to learn.
        seed: Seed of the initial weights.
    """

    kind: str = "conv"
    size: int = 28
    channels: int = 3
    latent_dim: int = 64
    width: int = 64
    min_gamma: float = 0.004
    seed: int = 0

    def _check(self, problems: Problems) -> None:
        problems.check(0 <= self.min_gamma <= 4, f"min_gamma must be in [0, 4], got {self.min_gamma}")
        problems.check(8 <= self.size <= 1024, f"size must be 8 to 1024 pixels, got {self.size}")
        problems.check(self.channels in (1, 3), f"channels must be 1 or 3, got {self.channels}")
        problems.check(2 <= self.latent_dim <= 65536, f"latent_dim must be 2 to 65536, got {self.latent_dim}")
        problems.check(1 <= self.width <= 4096, f"width must be 1 to 4096, got {self.width}")


Precision = Literal["auto", "32", "bf16"]


@dataclass(frozen=True)
class TrainConfig(Config):
    """One training run of one network (autoencoder, t or e).

    Attributes:
        steps: Optimizer steps.
        batch_size: Rows per step.
        optimizer: "adamw" or "adam".
        lr: Peak learning rate.
        betas: Adam's moments.
        weight_decay: AdamW's decay.
        warmup: Share of the steps with a rising learning rate, in [0, 1).
        final_lr: Last learning rate as a share of `lr` (cosine in between).
        clip: Bound of the gradient's norm; 0 switches it off.
        max_nonfinite: Consecutive steps with a non-finite loss or gradient that are skipped; one more is an error.
        eval_every: Steps between two looks at held-out data; 0 for only at the end.
        patience: Looks without a better held-out loss before training stops early; 0 switches it off.
        checkpoint_every: Steps between two checkpoints.
        ema: Decay of the moving average of the weights that is kept in the end; 0 switches it off.
        seed: Seed of batches and noise.
    """

    steps: int = 5000
    batch_size: int = 256
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    warmup: float = 0.05
    final_lr: float = 0.01
    clip: float = 5.0
    max_nonfinite: int = 20
    eval_every: int = 500
    patience: int = 5
    checkpoint_every: int = 500
    ema: float = 0.0
    seed: int = 0

    def _check(self, problems: Problems) -> None:
        problems.check(self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        problems.check(self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}")
        problems.check(self.lr > 0, f"lr must be positive, got {self.lr}")
        problems.check(all(0 <= b < 1 for b in self.betas), f"betas must be in [0, 1), got {self.betas}")
        problems.check(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        problems.check(0 <= self.warmup < 1, f"warmup must be in [0, 1), got {self.warmup}")
        problems.check(0 <= self.final_lr <= 1, f"final_lr must be in [0, 1], got {self.final_lr}")
        problems.check(self.clip >= 0, f"clip must not be negative, got {self.clip}")
        for name in ("max_nonfinite", "eval_every", "patience"):
            problems.check(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        problems.check(self.checkpoint_every >= 1, f"checkpoint_every must be at least 1, got {self.checkpoint_every}")
        problems.check(0 <= self.ema < 1, f"ema must be in [0, 1), got {self.ema}")


@dataclass(frozen=True)
class ConceptConfig(Config):
    """Shape and training of e (MSC A.2, tab. S10).

    Attributes:
        blocks: Blocks of e.
        width: Hidden width of its subnets.
        depth: Their hidden layers.
        dropout: Dropout rate in them, training only.
        activation: Their activation.
        separate_nets: Separate scale and shift networks.
        rho: Correlation of a shared factor between the two images of a pair; 0.9 in MSC, 0.975 in its code.
        aligned: Start e where its factors are told apart linearly, by second moments of the pairs, where there are
            four rows a dimension and at most 1024 dimensions
            (`posthoc_inn.concepts.shared_directions`); otherwise as in the papers, anywhere.
        sizes: Widths of the factors of an e over latents, residual first and the random concept last; estimated (IIN
            eq. 11) when None.
        random: Learn one more factor, from pairs that share nothing: the null that relevances are compared with.
        training: How e is trained; a step sees `batch_size` pairs.
    """

    blocks: int = 8
    width: int = 256
    depth: int = 2
    dropout: float = 0.05
    activation: Activation = "silu"
    separate_nets: bool = False
    rho: float = 0.9
    aligned: bool = True
    sizes: tuple[int, ...] | None = None
    random: bool = True
    training: TrainConfig = TrainConfig(steps=4000, lr=3e-3, weight_decay=0.3, eval_every=500, patience=3)

    def _check(self, problems: Problems) -> None:
        problems.check(0 <= self.rho < 1, f"rho must be in [0, 1), got {self.rho}")
        for name in ("blocks", "width", "depth"):
            problems.check(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        problems.check(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")
        problems.check(
            self.sizes is None or (len(self.sizes) > 0 and min(self.sizes) >= 1),
            f"sizes must be positive widths, residual first, got {self.sizes}",
        )


@dataclass(frozen=True)
class FitConfig(Config):
    """Everything `Interpreter.fit` needs besides model and data; `preset` makes one by name.

    Attributes:
        preset: The name it came from.
        latent_dim: D, width of z_bar and v.
        autoencoder_width: Channels after the first halving.
        context_dim: Width of the context H(z).
        conditioner_width: Hidden width of H.
        conditioner_depth: Hidden layers of H.
        flow: t; its dim and context_dim are set from `latent_dim` and `context_dim`.
        autoencoder_training: How E and D are trained.
        flow_training: How t is trained.
        concepts: e and its training, where there are concepts.
        flow_on_concepts: Let t work on the factors of e, where there is one (see `ConditionalFlow.set_base`); without,
            t is fitted as if there were no concepts, as in the papers.
        interaction_weight: Weight of the interaction of z and v in t's loss (see
            `posthoc_inn.objectives.interaction_variance`), in nats a unit of variance, where t works on e's factors.
    """

    preset: str
    latent_dim: int
    autoencoder_width: int
    context_dim: int
    conditioner_width: int
    conditioner_depth: int
    flow: FlowConfig
    autoencoder_training: TrainConfig
    flow_training: TrainConfig
    concepts: ConceptConfig = ConceptConfig()
    flow_on_concepts: bool = True
    interaction_weight: float = 3.0

    def _check(self, problems: Problems) -> None:
        problems.check(
            self.interaction_weight >= 0, f"interaction_weight must not be negative: {self.interaction_weight}"
        )

    def with_seed(self, seed: int) -> FitConfig:
        """Return a copy in which everything random starts from `seed`."""
        # Here, because it imports NumPy, which a configuration alone does without.
        from posthoc_inn.seeds import derived

        return self.replace(
            flow=self.flow.replace(seed=seed),
            autoencoder_training=self.autoencoder_training.replace(seed=derived(seed, "autoencoder")),
            flow_training=self.flow_training.replace(seed=derived(seed, "t")),
        )


_AUTOENCODER_TRAINING = TrainConfig(
    steps=12000, batch_size=64, lr=3e-3, weight_decay=0.0, warmup=0.02, clip=1.0, eval_every=1000, patience=0
)
_FLOW_TRAINING = TrainConfig(steps=14_000, lr=3e-3, weight_decay=0.3, eval_every=1000, patience=4)


def _preset(
    name: str,
    *,
    dim: int = 64,
    blocks: int,
    width: int,
    depth: int = 2,
    separate_nets: bool = False,
    context_dim: int = 128,
    autoencoder: TrainConfig = _AUTOENCODER_TRAINING,
    training: TrainConfig = _FLOW_TRAINING,
    dropout: float = 0.0,
    autoencoder_width: int = 32,
    activation: Activation = "silu",
) -> FitConfig:
    flow = FlowConfig(
        dim=dim,
        context_dim=context_dim,
        blocks=blocks,
        width=width,
        depth=depth,
        separate_nets=separate_nets,
        dropout=dropout,
        activation=activation,
    )
    return FitConfig(
        preset=name,
        latent_dim=dim,
        autoencoder_width=autoencoder_width,
        context_dim=context_dim,
        conditioner_width=max(256, context_dim),
        conditioner_depth=1,
        flow=flow,
        autoencoder_training=autoencoder,
        flow_training=training,
    )


# The papers train for very long on GPUs; their presets keep the shapes of MSC tab. S10 and a usual recipe.
_PAPER_TRAINING = TrainConfig(steps=100_000, batch_size=16, lr=1e-4, optimizer="adam", weight_decay=0.0, patience=10)
_PAPER: dict[str, Any] = {"separate_nets": True, "training": _PAPER_TRAINING, "activation": "leaky_relu"}
_PRESETS: dict[str, FitConfig] = {
    p.preset: p
    for p in (
        _preset("default", blocks=8, width=256, dropout=0.1),
        _preset(
            "quick",
            blocks=8,
            width=192,
            dropout=0.2,
            autoencoder=_AUTOENCODER_TRAINING.replace(steps=3000, eval_every=500),
            training=_FLOW_TRAINING.replace(steps=1800, eval_every=200),
        ),
        # The papers' h_d counts what lies between first and last hidden layer: 2 there is a depth of 3 here.
        _preset("paper-comparison", dim=128, blocks=20, width=1024, depth=3, **_PAPER),
        _preset("paper-facenet", dim=128, blocks=20, width=512, depth=3, autoencoder_width=64, **_PAPER),
        _preset("paper-texture", dim=268, blocks=20, width=1024, depth=3, autoencoder_width=64, **_PAPER),
    )
}


def preset(name: str) -> FitConfig:
    """Return the preset called `name`.

    Raises:
        ConfigError: There is none; the message lists the nearest names.
    """
    if name not in _PRESETS:
        raise ConfigError(f"There is no preset {name!r}. {suggest(name, _PRESETS)}")
    return _PRESETS[name]


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return list(_PRESETS)
