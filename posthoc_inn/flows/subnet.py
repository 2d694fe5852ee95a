"""The networks inside couplings and conditioner: layers with their own generator and precision, the subnet.

Every matrix product of flows and conditioner goes through `_product`: precision is decided there alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posthoc_inn.errors import ConfigError, suggest

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "relu": nn.ReLU,
    "gelu": nn.GELU,
}


def _product(
    function: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """Run `function` in `dtype` (None: as given); return its result in `x`'s dtype, also under autocast."""
    if dtype is None or dtype == x.dtype:
        return function(x, weight, bias).to(x.dtype)
    return function(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)).to(x.dtype)


def _draw(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    """Fill `parameter` uniformly in [-bound, bound] from `generator`, unless it is on the meta device."""
    if not parameter.is_meta:
        values = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
        with torch.no_grad():
            parameter.copy_(values.uniform_(-bound, bound, generator=generator))


class Linear(nn.Linear):
    """A linear layer drawn from a given generator, whose product can run in a lower precision.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        generator: Draws the initial weights.
        gain: Output deviation over input deviation, at the start; 0 gives a layer that returns zeros.
        fan_in: Inputs that the weights are scaled for, where this layer is a part of a wider one.
        bias: Whether there is an offset; it starts at zero.
        is_exact: Never run in a lower precision.

    >>> layer = Linear(4, 2, generator=torch.Generator().manual_seed(0))
    >>> set_compute_dtype(layer, torch.bfloat16)
    >>> layer(torch.ones(3, 4)).dtype
    torch.float32
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        generator: torch.Generator,
        gain: float = 1.0,
        fan_in: int | None = None,
        bias: bool = True,
        is_exact: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.is_exact = is_exact
        if gain:
            _draw(self.weight, gain * math.sqrt(3 / (fan_in or in_features)), generator)

    def reset_parameters(self) -> None:
        """Zero everything; the constructor draws from its own generator, never from the global one."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return _product(F.linear, input, self.weight, self.bias, self.compute_dtype)


class Conv2d(nn.Conv2d):
    """A convolution, 3 × 3 with padding 1 or of another odd size, drawn and computed like `Linear`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Vertical and horizontal stride.
        size: Side of the kernel.
        generator: Draws the initial weights.
        gain: As in `Linear`.
        fan_in: As in `Linear`.
        is_exact: As in `Linear`.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: tuple[int, int] = (1, 1),
        *,
        generator: torch.Generator,
        size: int = 3,
        gain: float = 1.0,
        fan_in: int | None = None,
        is_exact: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, size, stride=stride, padding=size // 2)
        self.is_exact = is_exact
        _draw(self.weight, gain * math.sqrt(3 / (fan_in or size * size * in_channels)), generator)

    def reset_parameters(self) -> None:
        """Zero everything; the constructor draws from its own generator, never from the global one."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        return _product(self._convolve, input, self.weight, self.bias, self.compute_dtype)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, stride=self.stride, padding=self.padding)


def set_compute_dtype(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Let the matrix products of every subnet and conditioner in `module` run in `dtype`.

    None goes back to the parameters' own. Parameters, scale exponents, log-determinants and sums keep their
    precision, and so do the first and the last layer of each subnet: an encoder's noise can be as small as a hundredth,
    which bf16's rounding of z_bar and of shifts (1 in 256) would drown, at a cost of nats.

    Raises:
        ConfigError: `dtype` is no floating-point type.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigError(f"compute dtype must be a floating-point type such as torch.bfloat16, or None; got {dtype}.")
    for layer in module.modules():
        if isinstance(layer, Conv2d | Linear) and not layer.is_exact:
            layer.compute_dtype = dtype


@contextmanager
def computing_in(module: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Run `set_compute_dtype` for the time of a block, and put back what each layer had."""
    layers = [layer for layer in module.modules() if isinstance(layer, Linear | Conv2d)]
    before = [layer.compute_dtype for layer in layers]
    set_compute_dtype(module, dtype)
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.compute_dtype = own


def make_activation(name: str) -> nn.Module:
    """Return the activation called `name`.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"There is no activation {name!r}. {suggest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def draw_keep(keep: Tensor, dropped: int) -> Tensor:
    """Fill `keep`, contiguous, with zeros for `dropped` in 256 elements and ones; from torch's global generator."""
    count = keep.numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64, device=keep.device).random_(-(2**63), None)
    return torch.ge(words.view(torch.uint8)[:count].view(keep.shape), dropped, out=keep)


class Dropout(nn.Module):
    """Dropout from random bytes: torch's own draws one number an element, which is slow on a CPU.

    Args:
        rate: Share of elements set to zero in training, rounded to 256ths; the others are scaled up to keep the mean.

    >>> torch.equal(Dropout(0.5).eval()(torch.ones(3)), torch.ones(3))
    True
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.dropped = round(rate * 256)

    def forward(self, h: Tensor) -> Tensor:
        """Return `h`, any shape, thinned out in training."""
        if not self.training or not self.dropped:
            return h
        keep = draw_keep(torch.empty_like(h, memory_format=torch.contiguous_format), self.dropped)
        return h * keep * (256 / (256 - self.dropped))

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"rate={self.dropped / 256:.4g}"


class Subnet(nn.Module):
    """A fully connected network on [x, context] whose last layer starts at zero.

    The first layer is split into a part for x and a part for the context, so that the latter is computed once
    an image and reused for every sample: W [x, h] = W_x x + W_h h.

    Args:
        inputs: Width of x.
        context_dim: C, width of the context; 0 for none.
        outputs: Width of the output.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        activation: Name of the activation.
        dropout: Dropout rate after each hidden layer, training only.
        generator: Draws the initial weights.

    >>> net = Subnet(2, 3, 4, width=8, depth=2, activation="silu", dropout=0.0, generator=torch.Generator())
    >>> net(torch.ones(5, 2), net.project(torch.ones(1, 3))).abs().sum().item()
    0.0
    """

    def __init__(
        self,
        inputs: int,
        context_dim: int,
        outputs: int,
        *,
        width: int,
        depth: int,
        activation: str,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        fan_in = inputs + context_dim
        self.input = Linear(inputs, width, generator=generator, fan_in=fan_in, is_exact=True)
        self.context = (
            Linear(context_dim, width, generator=generator, fan_in=fan_in, bias=False) if context_dim else None
        )
        gain = math.sqrt(2)
        self.hidden = nn.ModuleList(Linear(width, width, generator=generator, gain=gain) for _ in range(depth - 1))
        self.output = Linear(width, outputs, generator=generator, gain=0.0, is_exact=True)
        self.activation = make_activation(activation)
        self.dropout = Dropout(dropout) if dropout else None

    def hidden_layers(self) -> list[Linear]:
        """Return the layers between the first and the last."""
        return cast(list[Linear], list(self.hidden))

    def project(self, context: Tensor) -> Tensor:
        """Return the first layer's share of `context`: (..., C) to (..., width)."""
        if self.context is None:
            raise ConfigError("This subnet was built without a context.")
        projected: Tensor = self.context(context)
        return projected

    def forward(self, x: Tensor, projected: Tensor | None = None) -> Tensor:
        """Map `x` (..., inputs) and a projected context that broadcasts to (..., width) to (..., outputs)."""
        h = self.input(x)
        if projected is not None:
            h = h + projected
        h = self._activate(h)
        for layer in self.hidden:
            h = self._activate(layer(h))
        out: Tensor = self.output(h)
        return out

    def _activate(self, h: Tensor) -> Tensor:
        h = self.activation(h)
        return h if self.dropout is None else self.dropout(h)
