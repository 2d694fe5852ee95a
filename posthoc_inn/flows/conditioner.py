"""H: the embedding of a representation that conditions every coupling of t (MSC A.3, eq. 16)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from posthoc_inn.config import ConditionerConfig
from posthoc_inn.errors import ConfigError, DataError, NotFittedError, ShapeError
from posthoc_inn.flows.fast.reduced import Reduced
from posthoc_inn.flows.fitted import FittedOnce
from posthoc_inn.flows.subnet import Conv2d, Dropout, Linear, make_activation

CLIP = 10.0
"""Standardised z is clipped here: couplings return nonsense far outside the contexts they were trained on."""
SMALLEST_MAP = 4
"""Maps are halved until no side is longer than this many pixels."""
POOLS = 8
"""Learned poolings over the tokens."""
MOST_PLACE_WIDTH = 64
"""Channels of what keeps places, at the most: there are many places."""
GAIN = math.sqrt(2)
FIRST_GAIN = 0.3
"""Of the layer that reads z. Contexts start small, and what random weights make of noise in z fades sooner."""


def _vector_dim(config: ConditionerConfig) -> int:
    """Return the width of what of a context has no places."""
    return config.context_dim - config.map_channels * math.prod(config.map_size)


def _mlp(
    inputs: int, config: ConditionerConfig, generator: torch.Generator, *, first_gain: float = FIRST_GAIN
) -> list[nn.Module]:
    """Return the hidden layers and a linear one that ends at the context."""
    layers: list[nn.Module] = []
    for i in range(config.depth):
        layers += [Linear(inputs, config.width, generator=generator, gain=GAIN if i else first_gain)]
        layers += [make_activation(config.activation)]
        layers += [Dropout(config.dropout)] if config.dropout else []
        inputs = config.width
    gain = GAIN if config.depth else first_gain
    return [*layers, Linear(inputs, _vector_dim(config), generator=generator, gain=gain)]


def _is_reduced(config: ConditionerConfig) -> bool:
    """Whether z is a map that is brought to fewer channels first."""
    shape = config.z_shape
    return len(shape) == 3 and shape[1:] != (1, 1) and 0 < config.reduced < shape[0]


class _Reduction(nn.Module):
    """Standardised, and fewer channels, one place at a time: (B, C, H, W) to (B, C', H, W)."""

    def __init__(self, config: ConditionerConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.mix = Conv2d(config.z_shape[0], config.reduced, size=1, generator=generator, gain=FIRST_GAIN)
        self.activation = make_activation(config.activation)

    def forward(self, z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        weight, bias = self.mix.weight, self.mix.bias
        mixed = Reduced.apply(z, mean, std, CLIP, weight, bias, self.mix.compute_dtype)
        out: Tensor = self.activation(mixed)
        return out


def _vector_net(config: ConditionerConfig, generator: torch.Generator) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *_mlp(math.prod(config.z_shape), config, generator))


def _map_net(config: ConditionerConfig, generator: torch.Generator) -> nn.Sequential:
    """Return strided convolutions down to 4 pixels or less, then a linear layer on all that is left.

    Flattening, and not averaging, keeps where things are.
    """
    channels, *size = config.z_shape
    channels = config.reduced if _is_reduced(config) else channels
    halvings = max(0, *(math.ceil(math.log2(n / SMALLEST_MAP)) for n in size))
    count = max(halvings, config.depth, 1)
    layers: list[nn.Module] = []
    for i in range(count):
        stride = (1 + (size[0] > SMALLEST_MAP), 1 + (size[1] > SMALLEST_MAP))
        # Large maps are the costly ones: they get fewer channels, doubled at each halving up to the width.
        out = max(min(config.width, 32), config.width >> max(0, halvings - 1 - i))
        gain = GAIN if i or _is_reduced(config) else FIRST_GAIN
        layers += [Conv2d(channels, out, stride, generator=generator, gain=gain)]
        layers += [make_activation(config.activation)]
        layers += [Dropout(config.dropout)] if config.dropout else []
        channels = out
        size = [math.ceil(n / s) for n, s in zip(size, stride, strict=True)]
    head = Linear(channels * size[0] * size[1], _vector_dim(config), generator=generator, gain=GAIN)
    return nn.Sequential(*layers, nn.Flatten(), head)


class _TokenNet(nn.Module):
    """Embeds tokens with their places, pools by learned attention, adds the first (class) token; an MLP."""

    def __init__(self, config: ConditionerConfig, generator: torch.Generator) -> None:
        super().__init__()
        tokens, features = config.z_shape
        self.embed = Linear(features, config.width, generator=generator, gain=FIRST_GAIN)
        self.place = nn.Parameter(torch.zeros(tokens, config.width))
        self.activation = make_activation(config.activation)
        self.score = Linear(config.width, POOLS, generator=generator)
        self.out = nn.Sequential(*_mlp((POOLS + 1) * config.width, config, generator, first_gain=GAIN))

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, T, N) to (B, C)."""
        h = self.activation(self.embed(z) + self.place)
        weights = self.score(h).softmax(dim=-2)
        pooled = (weights.unsqueeze(-1) * h.unsqueeze(-2)).sum(dim=-3)
        out: Tensor = self.out(torch.cat([pooled.flatten(-2), h[..., 0, :]], dim=-1))
        return out


class _PlaceNet(nn.Module):
    """What lies at the places of z, brought to the places of the code: (B, *z_shape) to (B, map_channels, h, w).

    Halved by strided convolutions while that leaves as many places as the code has, resized for the rest.
    """

    def __init__(self, config: ConditionerConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        size = list(config.grid or (1, 1))
        channels = config.z_shape[0] if len(config.z_shape) == 3 else config.z_shape[1]
        channels, gain = (config.reduced, GAIN) if _is_reduced(config) else (channels, FIRST_GAIN)
        width = min(MOST_PLACE_WIDTH, config.width)
        self.mix = Conv2d(channels, width, size=1, generator=generator, gain=gain)
        self.activation = make_activation(config.activation)
        layers: list[nn.Module] = []
        while any(n >= 2 * m for n, m in zip(size, config.map_size, strict=True)):
            stride = [1 + (n >= 2 * m) for n, m in zip(size, config.map_size, strict=True)]
            layers += [Conv2d(width, width, (stride[0], stride[1]), generator=generator, gain=GAIN)]
            layers += [make_activation(config.activation)]
            size = [math.ceil(n / s) for n, s in zip(size, stride, strict=True)]
        self.shrink = nn.Sequential(*layers)
        self.near = Conv2d(width, width, generator=generator, gain=GAIN)
        self.dropout = Dropout(config.dropout)
        self.out = Conv2d(width, config.map_channels, generator=generator, gain=GAIN)

    def forward(self, z: Tensor) -> Tensor:
        if z.ndim == 3:
            height, width = self.config.grid or (1, 1)
            z = z[:, z.shape[1] - height * width :].transpose(1, 2).unflatten(2, (height, width))
        h = self.shrink(self.activation(self.mix(z)))
        if tuple(h.shape[2:]) != self.config.map_size:
            h = nn.functional.interpolate(h, self.config.map_size, mode="bilinear", align_corners=False)
        out: Tensor = self.out(self.dropout(self.activation(self.near(h))))
        return out


class Standardization(FittedOnce):
    """z minus its mean over its deviation: frozen statistics, per channel for maps, per feature otherwise.

    Args:
        config: The shape of z.
    """

    z_mean: Tensor
    z_std: Tensor

    def __init__(self, config: ConditionerConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.z_shape
        statistics = (shape[0], 1, 1) if len(shape) == 3 else (shape[-1],)
        self.register_buffer("z_mean", torch.zeros(statistics))
        self.register_buffer("z_std", torch.ones(statistics))

    @torch.no_grad()
    def fit_standardization(self, batches: Iterable[Tensor], *, force: bool = False) -> None:
        """Set mean and deviation of z from `batches` of (B, *z_shape), in one streaming pass in float64.

        A channel or feature that never varies is only centred.

        Raises:
            ConfigError: It was fitted before, and `force` is false.
            ShapeError: A batch has another shape.
            DataError: There are fewer than 2 rows, or values that are not finite.
        """
        if self.is_initialized and not force:
            raise ConfigError("The standardisation of z is already fitted; pass force=True to fit it anew.")
        rows = 0
        count, mean, spread = 0, torch.zeros(()), torch.zeros(())
        for z in batches:
            self._check_shape(z)
            if not bool(torch.isfinite(z).all()):
                raise DataError("z holds NaN or infinity; look for the images, or the layer, that make them.")
            if len(z) == 0:
                continue
            values = z.detach().flatten(0, -len(self.config.z_shape) - 1).double()
            values = values.movedim(1, -1).flatten(0, -2) if values.ndim == 4 else values.flatten(0, -2)
            rows += len(z)
            n, m = len(values), values.mean(dim=0)
            s = (values - m).square().sum(dim=0)
            if count:  # Chan, Golub and LeVeque: merging two counts, means and sums of squares
                delta = m - mean
                mean = mean + delta * (n / (count + n))
                spread = spread + s + delta.square() * (count * n / (count + n))
            else:
                mean, spread = m, s
            count += n
        if rows < 2:
            raise DataError(f"The standardisation of z got {rows} rows; at least 2 are needed, hundreds are advisable.")
        std = (spread / count).sqrt()
        varies = (std > 1e-6 * mean.abs()) & (std > 1e-30)  # below, what varies is float32's rounding
        std = torch.where(varies, std, torch.ones_like(std))
        self.z_mean.copy_(mean.reshape(self.z_mean.shape))
        self.z_std.copy_(std.reshape(self.z_std.shape))
        self._mark_initialized()

    def _check_shape(self, z: Tensor) -> None:
        shape = self.config.z_shape
        if z.ndim <= len(shape) or tuple(z.shape[-len(shape) :]) != shape:
            letters = ", ".join(str(n) for n in shape)
            raise ShapeError(f"z has shape {tuple(z.shape)}; this conditioner was built for (B, {letters}).")

    def check(self, z: Tensor) -> None:
        """Check that z (..., *z_shape) can be standardised.

        Raises:
            ShapeError: z has another shape.
            NotFittedError: The standardisation was not fitted.
        """
        self._check_shape(z)
        if not self.is_initialized:
            raise NotFittedError(
                "The standardisation of z was not fitted. Call fit_standardization(batches) on training "
                "data, or load trained weights."
            )

    def standardize(self, z: Tensor) -> Tensor:
        """Return z (B, *z_shape) minus the mean over the deviation, clipped at ±10.

        Raises:
            ShapeError: z has another shape.
            NotFittedError: The standardisation was not fitted.
        """
        self.check(z)
        return self._clipped(z)

    def _clipped(self, z: Tensor) -> Tensor:
        # In place after the first operation: maps of a large backbone take hundreds of megabytes a batch.
        return self._scaled(z).clamp_(-CLIP, CLIP)

    def _scaled(self, z: Tensor) -> Tensor:
        return (z.to(self.z_mean.dtype) - self.z_mean).div_(self.z_std)

    @torch.no_grad()
    def clipped(self, z: Tensor) -> Tensor:
        """Return how many values of each z (B, *z_shape) lie beyond ±10 deviations, where t sees no difference: (B,).

        Raises:
            ShapeError: z has another shape.
        """
        self._check_shape(z)
        return (self._scaled(z).abs_() > CLIP).flatten(1).sum(1)


class Conditioner(Standardization):
    """h = H(z) for vectors (N,), maps (C, H, W) and tokens (T, N), on standardised z.

    Vectors, and maps of one pixel, pass an MLP; maps strided convolutions; tokens a learned attention
    pooling. z is standardised by frozen statistics, per channel for maps, per feature otherwise, and clipped
    at ±10 deviations. With `map_channels`, the context ends with a map, flattened, on the code's places: what z holds
    at a place conditions that place of the code.

    Args:
        config: The shape of z and of the network.

    >>> h = Conditioner(ConditionerConfig(z_shape=(16, 6, 6), context_dim=8, width=32))
    >>> z = torch.randn(10, 16, 6, 6) * 5 + 2
    >>> h.fit_standardization([z[:4], z[4:]])
    >>> h(z).shape
    torch.Size([10, 8])
    """

    def __init__(self, config: ConditionerConfig) -> None:
        super().__init__(config)
        generator = torch.Generator().manual_seed(config.seed)
        shape = config.z_shape
        self.net: nn.Module
        if len(shape) == 1 or (len(shape) == 3 and shape[1:] == (1, 1)):
            self.net = _vector_net(config, generator)
        elif len(shape) == 3:
            self.net = _map_net(config, generator)
        else:
            self.net = _TokenNet(config, generator)
        self.reduction = _Reduction(config, generator) if _is_reduced(config) else None
        self.places = _PlaceNet(config, generator) if config.map_channels else None

    def forward(self, z: Tensor) -> Tensor:
        """Map z (..., *z_shape) to the context (..., C).

        Raises:
            ShapeError: z has another shape.
            NotFittedError: The standardisation was not fitted.
        """
        lead = z.shape[: z.ndim - len(self.config.z_shape)]
        self.check(z)
        return self.embed(z.reshape(-1, *self.config.z_shape)).reshape(*lead, self.config.context_dim)

    def embed(self, z: Tensor) -> Tensor:
        """Return the context (B, C) of z (B, *z_shape), whether the standardisation was fitted or not."""
        rows = self._clipped(z) if self.reduction is None else self.reduction(z, self.z_mean, self.z_std)
        context: Tensor = self.net(rows)
        return context if self.places is None else torch.cat([context, self.places(rows).flatten(1)], dim=1)
