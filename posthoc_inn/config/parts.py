"""What can be configured: images, flows, H, training, e, and a whole fit (MSC tab. S10)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from posthoc_inn.config.base import Config
from posthoc_inn.errors import Problems

LINEAR = "linear"
"""The kind of flow without couplings."""
PICTURES = "pictures"
"""What the kind of a t starts with that first looks for the picture in z."""
MAX_DIM = 1 << 20
"""No width, dimension or count of channels above this is believed, so that a file cannot ask for terabytes."""


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
        kind: Registered kind: the coupling "affine" or "spline", "conv" or "transformer", which see places, or one of a
            plugin's; "linear", for t alone, the linear Gaussian in closed form, without any couplings; "linear+" and
            a coupling: couplings on what it leaves; "pictures+" and a coupling: likewise, the Gaussian being linear in
            what the encoder says of the picture that a network finds in z.
        blocks: Blocks of actnorm, two couplings and a permutation.
        width: Hidden width of the subnets.
        depth: Hidden layers of the subnets; h_d of tab. S10 counts the layers between them, so it is one less.
        separate_nets: Separate scale and shift networks (the papers'), instead of one with two heads.
        scale_bound: Bound of |log s| of one coupling.
        bins: Bins of the spline coupling.
        tail: The spline acts on [-tail, tail], and is the identity outside.
        dropout: Dropout rate in the subnets, training only.
        activation: Activation of the subnets.
        latent_shape: C, h, w of data that are maps, flattened; empty for data without places.
        context_channels: Channels of the context that lie on the same places: the last `context_channels` · h · w of
            its values. Only couplings that see places take such.
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
    latent_shape: tuple[int, ...] = ()
    context_channels: int = 0
    seed: int = 0

    def _check(self, problems: Problems) -> None:
        shape = self.latent_shape
        problems.check(
            not shape or (len(shape) == 3 and min(shape) >= 1 and math.prod(shape) == self.dim),
            f"latent_shape must be (C, h, w) of {self.dim} values, got {shape}",
        )
        lying = self.context_channels * (math.prod(shape[1:]) if shape else 1)
        problems.check(
            0 <= lying <= self.context_dim,
            f"{self.context_channels} context_channels are {lying} values, of a context of width {self.context_dim}",
        )
        problems.check(2 <= self.dim <= MAX_DIM, f"dim must be 2 to {MAX_DIM}, got {self.dim}")
        problems.check(0 <= self.context_dim <= MAX_DIM, f"context_dim must be 0 to {MAX_DIM}, got {self.context_dim}")
        problems.check(1 <= self.blocks <= 1000, f"blocks must be 1 to 1000, got {self.blocks}")
        problems.check(1 <= self.width <= 65536, f"width must be 1 to 65536, got {self.width}")
        problems.check(1 <= self.depth <= 100, f"depth must be 1 to 100, got {self.depth}")
        problems.check(0 < self.scale_bound <= 20, f"scale_bound must be in (0, 20], got {self.scale_bound}")
        problems.check(2 <= self.bins <= 256, f"bins must be 2 to 256, got {self.bins}")
        problems.check(0 < self.tail <= 1000, f"tail must be in (0, 1000], got {self.tail}")
        problems.check(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def places(self) -> tuple[int, int, int]:
        """C, h, w of the data; one place with D channels where they have none.

        >>> FlowConfig(dim=8, latent_shape=(2, 2, 2)).places, FlowConfig(dim=8).places
        ((2, 2, 2), (8, 1, 1))
        """
        channels, height, width = self.latent_shape or (self.dim, 1, 1)
        return channels, height, width

    @property
    def is_linear_first(self) -> bool:
        """Whether t starts with the linear Gaussian in closed form.

        >>> FlowConfig(dim=4).is_linear_first, FlowConfig(dim=4, kind="linear+spline").is_linear_first
        (False, True)
        """
        return self.kind == LINEAR or self.kind.startswith(f"{LINEAR}+")

    @property
    def is_pictures_first(self) -> bool:
        """Whether t starts with what the encoder says of the picture that z shows.

        >>> FlowConfig(dim=4).is_pictures_first, FlowConfig(dim=4, kind="pictures+affine").is_pictures_first
        (False, True)
        """
        return self.kind.startswith(f"{PICTURES}+")

    @property
    def told(self) -> str:
        """Its shape in words.

        >>> FlowConfig(dim=4, kind="linear+affine", blocks=2, width=16).told
        'linear Gaussian, then 2 blocks of width 16'
        """
        if self.coupling is None:
            return "linear Gaussian, in closed form"
        first = "linear Gaussian, then " * self.is_linear_first + "the picture in z, then " * self.is_pictures_first
        return f"{first}{self.blocks} blocks of width {self.width}"

    @property
    def coupling(self) -> str | None:
        """Registered name of the coupling; None for the linear t, which has none.

        >>> FlowConfig(dim=4, kind="linear+spline").coupling, FlowConfig(dim=4, kind="linear").coupling
        ('spline', None)
        """
        if self.kind == LINEAR:
            return None
        first, plus, rest = self.kind.partition("+")
        return rest if plus and first in (LINEAR, PICTURES) else self.kind


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
        reduced: Channels that a map with more of them is brought to first, one place at a time; 0 for none. What is
            saved is the cost of maps with a thousand channels.
        map_channels: Channels of the context that keep places, where z has places (`grid`): the last of its values.
        map_size: h and w of these places, which are the code's.
        picture_shape: C, S, S of the pictures that are looked for in z, which has places; empty where none are.
        picture_width: Channels of the network that looks for them.
        seed: Seed of the initial weights.
    """

    z_shape: tuple[int, ...]
    context_dim: int = 128
    width: int = 256
    depth: int = 1
    dropout: float = 0.0
    activation: Activation = "silu"
    reduced: int = 0
    map_channels: int = 0
    map_size: tuple[int, ...] = ()
    picture_shape: tuple[int, ...] = ()
    picture_width: int = 32
    seed: int = 0

    def _check(self, problems: Problems) -> None:
        shape = self.picture_shape
        problems.check(
            not shape or (self.grid is not None and len(shape) == 3 and min(shape) >= 1 and max(shape) <= 4096),
            f"a picture_shape (C, S, S), of up to 4096 pixels a side, needs a z with places; got {shape} and z "
            f"{self.z_shape}",
        )
        problems.check(1 <= self.picture_width <= 4096, f"picture_width must be 1 to 4096, got {self.picture_width}")
        problems.check(
            self.map_channels == 0 or (self.grid is not None and len(self.map_size) == 2 and min(self.map_size) >= 1),
            f"{self.map_channels} map_channels need a z with places and a map_size (h, w), got {self.z_shape} and "
            f"{self.map_size}",
        )
        problems.check(
            0 <= self.map_channels * math.prod(self.map_size) < max(self.context_dim, 1),
            f"{self.map_channels} map_channels leave no vector in a context of width {self.context_dim}",
        )
        problems.check(
            1 <= len(self.z_shape) <= 3 and all(1 <= n <= MAX_DIM for n in self.z_shape),
            f"z_shape must be (N,), (T, N) or (C, H, W) with sizes of 1 to {MAX_DIM}, got {self.z_shape}",
        )
        problems.check(1 <= self.context_dim <= MAX_DIM, f"context_dim must be 1 to {MAX_DIM}, got {self.context_dim}")
        problems.check(1 <= self.width <= 65536, f"width must be 1 to 65536, got {self.width}")
        problems.check(0 <= self.depth <= 20, f"depth must be 0 to 20, got {self.depth}")
        problems.check(0 <= self.reduced <= 65536, f"reduced must be 0 to 65536, got {self.reduced}")
        problems.check(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the places that z has; None where it has none, or one.

        Tokens have places where they are as many as a square has, or one more, the first: a class token.

        >>> [ConditionerConfig(shape).grid for shape in ((64, 7, 5), (197, 192), (64,), (10, 64))]
        [(7, 5), (14, 14), None, (3, 3)]
        """
        if len(self.z_shape) == 3:
            height, width = self.z_shape[1:]
        elif len(self.z_shape) == 2:
            height = width = math.isqrt(self.z_shape[0])
            if self.z_shape[0] - height * width > 1:
                return None
        else:
            return None
        return (height, width) if height * width > 1 else None


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
        dropout: Dropout rate in them, training only. e meets few images in ever new pairs, and learns them by heart: on
            the digits 0.2 gave -15.3 nats held out in 400 steps, 0.4 gave -13.8; 0.05 gave -11.5 at its best.
        activation: Their activation.
        separate_nets: Separate scale and shift networks.
        rho: Correlation of a shared factor between the two images of a pair; 0.9 in MSC, 0.975 in its code.
        learn_rho: Learn it for each dimension, below 0.99, from there or, where e starts aligned, from what the pairs'
            second moments say; without, it is fixed, as in the papers.
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
    dropout: float = 0.2
    activation: Activation = "silu"
    separate_nets: bool = False
    rho: float = 0.9
    learn_rho: bool = True
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
        latent: What the built-in autoencoder's code is: a "vector" of `latent_dim`, a "map"
            (`AutoencoderConfig.of_map`), or "auto": a map from 32 px on, a vector below.
        map_flow: t over codes that are maps; `flow` when None.
        map_autoencoder_training: How an autoencoder whose codes are maps is trained; `autoencoder_training` when None.
        map_flow_training: How t over maps is trained; `flow_training` when None.
        concepts: e and its training, where there are concepts.
        context_channels: Channels of the context that keep z's places, where z, the code and the couplings have places.
        flow_on_concepts: Let t work on the factors of e, where there is one (see `ConditionalFlow.set_base`). Without,
            which is the default, t is fitted as if there were no concepts, as in the papers. e knows its training
            images by heart, and t cannot undo what that does to held-out ones: on the digits t on e's factors was at
            -33.4 nats in training and -15.5 held out after 450 steps, -13.9 in the end; t alone reached -23.3.
        interaction_weight: Weight of the interaction of z and v in t's loss (see
            `posthoc_inn.objectives.interaction_variance`), in nats a unit of variance, where t works on e's factors.
            Anything above 0 draws t away from the true conditional, whose variance may differ from z to z: total
            effects (MSC eq. 20) come out too small then.
        code_noise: Noise that codes get besides the encoder's own before t (and e) see them, as a share of each
            channel's standard deviation over the training images; 0 for none. Samples then are decoded with it, and
            held-out nats are those of codes with it: they are not to be compared with those of another share.
        pictures: Whether t may start from the picture that z shows (of a kind such as "pictures+affine"): "auto", where
            z has places and as many values as a picture, and a network that is trained to find the picture in z
            explains most of the code of held-out images; or "never".
        picture_training: How that network is trained.
        faithful: Steps in which t is trained further by what the model sees of its samples, as a share of t's own
            steps; 0 for none. Samples then look to the model as their images do far more often, to other models too;
            held-out nats rise a little, since likelihood is no longer all that counts.
        map_faithful: The same for a t over maps; `faithful` when None.
        faithful_weight: How much that counts beside the likelihood (`posthoc_inn.fit.faithful.FaithfulLoss`).
        linear_fallback: Use the linear t, which is fitted in seconds beside every t, where t is worse than it on
            held-out images by more than the standard error.
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
    latent: Literal["auto", "vector", "map"] = "vector"
    map_flow: FlowConfig | None = None
    map_autoencoder_training: TrainConfig | None = None
    map_flow_training: TrainConfig | None = None
    context_channels: int = 32
    flow_on_concepts: bool = False
    interaction_weight: float = 0.0
    code_noise: float = 0.0
    pictures: Literal["auto", "never"] = "auto"
    picture_training: TrainConfig = TrainConfig(steps=400, batch_size=64, lr=2e-3, clip=1.0, eval_every=100, patience=0)
    faithful: float = 0.0
    map_faithful: float | None = None
    faithful_weight: float = 0.25
    linear_fallback: bool = True

    def _check(self, problems: Problems) -> None:
        problems.check(
            self.interaction_weight >= 0, f"interaction_weight must not be negative: {self.interaction_weight}"
        )

        for name in ("faithful", "map_faithful"):
            share = getattr(self, name)
            problems.check(share is None or 0 <= share <= 100, f"{name} must be in [0, 100], got {share}")
        problems.check(
            0 <= self.faithful_weight <= 1000, f"faithful_weight must be in [0, 1000], got {self.faithful_weight}"
        )
        problems.check(0 <= self.code_noise <= 1, f"code_noise must be in [0, 1], got {self.code_noise}")
        problems.check(
            0 <= self.context_channels <= 4096, f"context_channels must be 0 to 4096, got {self.context_channels}"
        )

    def of_maps(self) -> FitConfig:
        """Return the same with what is said of maps in the place of what is said of vectors."""
        return self.replace(
            flow=self.map_flow or self.flow,
            autoencoder_training=self.map_autoencoder_training or self.autoencoder_training,
            flow_training=self.map_flow_training or self.flow_training,
            faithful=self.faithful if self.map_faithful is None else self.map_faithful,
            map_flow=None,
            map_autoencoder_training=None,
            map_flow_training=None,
            map_faithful=None,
        )

    def with_seed(self, seed: int) -> FitConfig:
        """Return a copy in which everything random starts from `seed`."""
        # Here, because it imports NumPy, which a configuration alone does without.
        from posthoc_inn.seeds import derived

        return self.replace(
            flow=self.flow.replace(seed=seed),
            autoencoder_training=self.autoencoder_training.replace(seed=derived(seed, "autoencoder")),
            picture_training=self.picture_training.replace(seed=derived(seed, "pictures")),
            flow_training=self.flow_training.replace(seed=derived(seed, "t")),
        )
