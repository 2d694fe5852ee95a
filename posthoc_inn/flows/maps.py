"""Couplings over codes that are maps: their networks see which value lies where (Jet, Kolesnikov et al., TMLR 2025).

A code (C, h, w) comes flattened, (..., D). A fixed mask says what of it moves: the places of a checkerboard, or half of
the channels. The rest is kept, and a network that sees places says how. One pass leads either way, which v needs.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from posthoc_inn.config import FlowConfig
from posthoc_inn.flows.coupling import Context, ProjectedContext, check_context, check_width
from posthoc_inn.flows.subnet import Conv2d, Dropout, Linear, make_activation
from posthoc_inn.seeds import derived

HEAD = 32
"""Width of an attention head."""
GAIN = math.sqrt(2)


def moved_by(config: FlowConfig, index: int) -> Tensor:
    """Return what the coupling `index` moves, (C, h, w), True or False.

    Couplings come in pairs that move what the other keeps: a pair on the two colours of a checkerboard, then one on two
    halves of the channels, drawn at random for each pair. A code of one channel knows the former alone, a code of one
    place the latter.

    >>> moved_by(FlowConfig(dim=8, latent_shape=(2, 2, 2)), 1)[0].tolist()
    [[True, False], [False, True]]
    """
    channels, height, width = config.places
    pair, second = divmod(index, 2)
    if height * width > 1 and (pair % 2 == 0 or channels == 1):
        chosen = (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 1
        chosen = chosen.expand(channels, -1, -1)
    else:
        generator = torch.Generator().manual_seed(derived(config.seed, "channels", pair))
        order = torch.randperm(channels, generator=generator)
        chosen = (order < channels // 2)[:, None, None].expand(-1, height, width)
    return (chosen ^ bool(second)).clone()


class MapCoupling(nn.Module):
    """Base of the couplings over maps: y = x where it is kept, x · s + t where it moves, log |s| < `scale_bound`.

    A subclass makes the network in `_network`.

    Args:
        config: Shape of the flow; without a `latent_shape` the code is one place with D channels. The last
            `context_channels` · h · w values of a context are a map on the same places, the others a vector.
        index: Position in the flow, which decides what moves (`moved_by`).
        generator: Draws the initial weights; by default one seeded with `config.seed`.
    """

    keeps_places: ClassVar[bool] = True
    """A block shuffles nothing between its couplings: what lies at a place stays there."""
    moved: Tensor

    def __init__(self, config: FlowConfig, index: int = 0, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        generator = generator or torch.Generator().manual_seed(config.seed)
        self.register_buffer("moved", moved_by(config, index))
        channels, width = config.places[0], config.width
        self.vector_dim = config.context_dim - config.context_channels * math.prod(config.places[1:])
        fan_in = 9 * channels + self.vector_dim + config.context_channels
        self.input = Conv2d(channels, width, generator=generator, fan_in=fan_in, is_exact=True)
        self.vector = self._into(self.vector_dim, fan_in, generator)
        self.map = self._into(config.context_channels, fan_in, generator)
        self.network = self._network(generator)
        self.output = Linear(width, 2 * channels, generator=generator, gain=0.0, is_exact=True)

    def _into(self, inputs: int, fan_in: int, generator: torch.Generator) -> Linear | None:
        if not inputs:
            return None
        return Linear(inputs, self.config.width, generator=generator, fan_in=fan_in, bias=False)

    def _network(self, generator: torch.Generator) -> nn.Module:
        """Return the network (R, h, w, width) to the same shape."""
        raise NotImplementedError

    def project(self, context: Tensor) -> ProjectedContext:
        """Return what may be passed instead of `context` (..., C), so that its share is computed once.

        Raises:
            ShapeError: The context is not (..., C).
        """
        check_context(context, self.config.context_dim)
        lead = context.shape[:-1]
        vector, places = context.split([self.vector_dim, self.config.context_dim - self.vector_dim], dim=-1)
        term: Tensor | None = None if self.vector is None else self.vector(vector)[..., None, None, :]
        if self.map is not None:
            lying = places.unflatten(-1, (self.config.context_channels, *self.config.places[1:]))
            seen: Tensor = self.map(lying.movedim(-3, -1))
            term = seen if term is None else term + seen
        return ProjectedContext((term,), lead)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Map `x` (..., D) to y (..., D) and log_det (...), in nats; `context` (..., C) broadcasts over rows.

        Raises:
            ShapeError: A width is wrong, or the context is missing or superfluous.
        """
        log_scale, shift = self._heads(x, context)
        log_det = log_scale.sum(dim=-1, dtype=torch.promote_types(log_scale.dtype, torch.float32))
        return x * log_scale.exp() + shift, log_det

    def inverse(self, y: Tensor, context: Context = None) -> Tensor:
        """Map `y` (..., D) back to x (..., D).

        Raises:
            ShapeError: A width is wrong, or the context is missing or superfluous.
        """
        log_scale, shift = self._heads(y, context)
        return (y - shift) * (-log_scale).exp()

    def _heads(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return log s and t, each (..., D); 0 where x is kept."""
        config = self.config
        check_width(x, config.dim)
        check_context(context, config.context_dim)
        lead, places = x.shape[:-1], config.places
        kept = x.reshape(-1, *places) * ~self.moved
        h = self.input(kept.contiguous(memory_format=torch.channels_last)).movedim(1, -1)
        if isinstance(context, Tensor):
            context = self.project(context)
        if context is not None:
            h = (h.reshape(*lead, *h.shape[1:]) + context.terms[0]).reshape(h.shape)
        raw = self.output(self.network(h)).movedim(-1, 1) * self.moved.repeat(2, 1, 1)
        log_scale, shift = raw.reshape(*lead, 2, config.dim).unbind(-2)
        return config.scale_bound * torch.tanh(log_scale / config.scale_bound), shift


class _Residual(nn.Module):
    """h + W a(conv a(h)): what a place and its neighbours hold, (R, h, w, width) to the same shape."""

    def __init__(self, config: FlowConfig, generator: torch.Generator, gain: float) -> None:
        super().__init__()
        self.spread = Conv2d(config.width, config.width, generator=generator, gain=GAIN)
        self.mix = Linear(config.width, config.width, generator=generator, gain=gain)
        self.activation = make_activation(config.activation)
        self.dropout = Dropout(config.dropout)

    def forward(self, h: Tensor) -> Tensor:
        near = self.spread(self.activation(h).movedim(-1, 1)).movedim(1, -1)
        out: Tensor = h + self.mix(self.dropout(self.activation(near)))
        return out


class ConvCoupling(MapCoupling):
    """A coupling over maps whose network is convolutional: `depth` residual blocks of a 3 × 3 and a 1 × 1 convolution.

    >>> coupling = ConvCoupling(FlowConfig(dim=64, latent_shape=(4, 4, 4), width=16, context_dim=3))
    >>> x, context = torch.randn(5, 64), torch.randn(5, 3)
    >>> y, log_det = coupling(x, context)
    >>> bool(torch.equal(y, x)), log_det.shape  # starts as the identity
    (True, torch.Size([5]))
    """

    def _network(self, generator: torch.Generator) -> nn.Module:
        depth = self.config.depth
        blocks = [_Residual(self.config, generator, 1 / math.sqrt(depth)) for _ in range(depth)]
        return nn.Sequential(*blocks, make_activation(self.config.activation))


class _Attention(nn.Module):
    """A transformer block, layer norm first, over the places, (R, T, width) to the same shape."""

    def __init__(self, config: FlowConfig, generator: torch.Generator, gain: float) -> None:
        super().__init__()
        width = config.width
        self.heads = 1 if width % HEAD else width // HEAD
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.query_key_value = Linear(width, 3 * width, generator=generator)
        self.join = Linear(width, width, generator=generator, gain=gain)
        self.widen = Linear(width, 2 * width, generator=generator, gain=GAIN)
        self.narrow = Linear(2 * width, width, generator=generator, gain=gain)
        self.activation = make_activation(config.activation)
        self.dropout = Dropout(config.dropout)

    def forward(self, h: Tensor) -> Tensor:
        parts = self.query_key_value(self.norms[0](h)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0)
        q, k, v = (part.transpose(1, 2) for part in parts)
        seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        h = h + self.join(seen)
        out: Tensor = h + self.narrow(self.dropout(self.activation(self.widen(self.norms[1](h)))))
        return out


class _Transformer(nn.Module):
    """Attention over all places, each of which knows where it is."""

    def __init__(self, config: FlowConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(*config.places[1:], config.width))
        if not self.place.is_meta:
            with torch.no_grad():
                self.place.copy_(0.1 * torch.randn(self.place.shape, generator=generator))
        gain = 1 / math.sqrt(config.depth)
        self.blocks = nn.ModuleList(_Attention(config, generator, gain) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, h: Tensor) -> Tensor:
        out = (h + self.place).flatten(1, 2)
        for block in self.blocks:
            out = block(out)
        normed: Tensor = self.norm(out)
        return normed.reshape(h.shape)


class TransformerCoupling(MapCoupling):
    """A coupling over maps whose network is a transformer over the places, as in Jet (TMLR 2025): `depth` blocks.

    Heads are 32 wide; a width that 32 does not divide has a single one.

    >>> coupling = TransformerCoupling(FlowConfig(dim=64, latent_shape=(4, 4, 4), width=32))
    >>> x = torch.randn(5, 64)
    >>> bool(torch.equal(coupling(x)[0], x))
    True
    """

    def _network(self, generator: torch.Generator) -> nn.Module:
        return _Transformer(self.config, generator)
