"""Conditional coupling flows of other libraries, and plain PyTorch ones, of the same shape, behind one interface.

Width, depth and number of couplings are those of the `FlowConfig`; all else is what the library's own readme or example
for conditional densities does: FrEIA's GLOW coupling blocks with random permutations and its default clamp, nflows'
affine couplings on alternating masks with random permutations, zuko's NICE. The libraries are imported when asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posthoc_inn.config import ConditionerConfig, FlowConfig

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Recipe:
    """How a library's own conditional example trains: Adam without a schedule."""

    lr: float
    weight_decay: float = 0.0
    clip: float = 0.0


class Contender(nn.Module):
    """A conditional flow of one library.

    Attributes:
        name: What tables call it.
        recipe: How the library's own example for conditional densities trains.
    """

    name = ""
    recipe = Recipe(1e-3)

    def to_base(self, z_bar: Tensor, context: Tensor) -> Tensor:
        """Return v (B, D) for z_bar (B, D) and context (B, C)."""
        raise NotImplementedError

    def loss(self, z_bar: Tensor, context: Tensor) -> Tensor:
        """Return the mean negative log-likelihood, a scalar in nats with all constants."""
        raise NotImplementedError

    def sample(self, context: Tensor, n: int) -> Tensor:
        """Return n samples for each row of context (B, C), shape (B, n, D)."""
        raise NotImplementedError

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the library's readme: Adam as torch has it (at a rate that stays finite on noise)."""
        return torch.optim.Adam(self.parameters(), lr=1e-4)


def _mlp(inputs: int, outputs: int, config: FlowConfig) -> nn.Sequential:
    """Return the subnet that the libraries' readmes write: linear layers with ReLU between them."""
    layers: list[nn.Module] = [nn.Linear(inputs, config.width), nn.ReLU()]
    for _ in range(config.depth - 1):
        layers += [nn.Linear(config.width, config.width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(config.width, outputs))


class FreiaFlow(Contender):
    """FrEIA: GLOW coupling blocks (one network, two heads), or RNVP ones (separate networks), and permutations."""

    name = "FrEIA"
    recipe = Recipe(5e-4, weight_decay=1e-5, clip=10.0)  # its cINN for MNIST

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        import FrEIA.framework as Ff
        import FrEIA.modules as Fm

        self.dim = config.dim
        self.inn = Ff.SequenceINN(config.dim)
        block = Fm.RNVPCouplingBlock if config.separate_nets else Fm.GLOWCouplingBlock
        for k in range(config.blocks):
            self.inn.append(
                block,
                cond=0,
                cond_shape=(config.context_dim,),
                subnet_constructor=lambda inputs, outputs: _mlp(inputs, outputs, config),
            )
            self.inn.append(Fm.PermuteRandom, seed=config.seed + k)

    def to_base(self, z_bar: Tensor, context: Tensor) -> Tensor:
        """Return v (B, D)."""
        v: Tensor = self.inn(z_bar, [context])[0]
        return v

    def loss(self, z_bar: Tensor, context: Tensor) -> Tensor:
        """Return the mean negative log-likelihood."""
        v, log_det = self.inn(z_bar, [context])
        return (0.5 * (v**2).sum(1) - log_det).mean() + 0.5 * self.dim * LOG_2PI

    def sample(self, context: Tensor, n: int) -> Tensor:
        """Repeat each context and run the network backwards."""
        v = torch.randn(len(context) * n, self.dim)
        samples: Tensor = self.inn(v, [context.repeat_interleave(n, dim=0)], rev=True)[0]
        return samples.view(len(context), n, self.dim)


class _ContextMlp(nn.Module):
    """nflows hands the context to the transform net; one MLP, or one for each of scale and shift."""

    def __init__(self, inputs: int, outputs: int, config: FlowConfig) -> None:
        super().__init__()
        count = 2 if config.separate_nets else 1
        inputs += config.context_dim
        self.nets = nn.ModuleList(_mlp(inputs, outputs // count, config) for _ in range(count))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = torch.cat([x, context], dim=-1)
        outputs = [net(x) for net in self.nets]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


class NflowsFlow(Contender):
    """nflows: affine couplings on alternating masks, with random permutations.

    Its scales are sigmoids, at most 1.001, so that the flow can hardly stretch: likelihoods of narrow densities suffer.
    """

    name = "nflows"

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        from nflows.distributions import StandardNormal
        from nflows.flows import Flow
        from nflows.transforms import AffineCouplingTransform, CompositeTransform, RandomPermutation

        transforms = []
        for _ in range(config.blocks):
            for parity in (0, 1):
                mask = torch.zeros(config.dim)
                mask[parity::2] = 1
                transforms.append(AffineCouplingTransform(mask, lambda i, o: _ContextMlp(i, o, config)))
            transforms.append(RandomPermutation(config.dim))
        self.flow = Flow(CompositeTransform(transforms), StandardNormal([config.dim]))

    def to_base(self, z_bar: Tensor, context: Tensor) -> Tensor:
        """Return v (B, D)."""
        v: Tensor = self.flow.transform_to_noise(z_bar, context)
        return v

    def loss(self, z_bar: Tensor, context: Tensor) -> Tensor:
        """Return the mean negative log-likelihood."""
        return -self.flow.log_prob(z_bar, context=context).mean()

    def sample(self, context: Tensor, n: int) -> Tensor:
        """Ask the flow; it repeats the contexts."""
        samples: Tensor = self.flow.sample(n, context=context)
        return samples


class ZukoFlow(Contender):
    """zuko: NICE, whose couplings are affine, on alternating masks."""

    name = "zuko"

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        import zuko

        if config.separate_nets:
            raise ValueError("zuko's NICE has one network for scale and shift; separate_nets has to be false.")
        self.flow = zuko.flows.NICE(
            config.dim,
            config.context_dim,
            transforms=2 * config.blocks,
            hidden_features=[config.width] * config.depth,
        )

    def to_base(self, z_bar: Tensor, context: Tensor) -> Tensor:
        """Return v (B, D)."""
        v: Tensor = self.flow(context).transform(z_bar)
        return v

    def loss(self, z_bar: Tensor, context: Tensor) -> Tensor:
        """Return the mean negative log-likelihood."""
        return -self.flow(context).log_prob(z_bar).mean()

    def sample(self, context: Tensor, n: int) -> Tensor:
        """Ask the distribution given the contexts."""
        samples: Tensor = self.flow(context).sample((n,))
        return samples.transpose(0, 1)


# ---- plain PyTorch


def _plain_net(inputs: int, outputs: int, config: FlowConfig) -> nn.Sequential:
    """Return a subnet with SiLU and dropout, ending at zero."""
    layers: list[nn.Module] = []
    for _ in range(config.depth):
        layers += [nn.Linear(inputs, config.width), nn.SiLU()]
        layers += [nn.Dropout(config.dropout)] if config.dropout else []
        inputs = config.width
    last = nn.Linear(inputs, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


class PlainCoupling(nn.Module):
    """An affine coupling as the papers write it: the context is concatenated to the half that is kept."""

    def __init__(self, config: FlowConfig, *, moves_first: bool) -> None:
        super().__init__()
        self.config, self.moves_first = config, moves_first
        first = config.dim // 2
        moved, kept = (first, config.dim - first) if moves_first else (config.dim - first, first)
        inputs = kept + config.context_dim
        if config.separate_nets:
            self.scale_net, self.shift_net = _plain_net(inputs, moved, config), _plain_net(inputs, moved, config)
        else:
            self.net = _plain_net(inputs, 2 * moved, config)

    def _parameters_of(self, kept: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.cat([kept, context], dim=1)
        raw, shift = (
            (self.scale_net(h), self.shift_net(h)) if self.config.separate_nets else self.net(h).chunk(2, dim=1)
        )
        bound = self.config.scale_bound
        return bound * torch.tanh(raw / bound), shift

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.config.dim // 2
        return (x[:, :first], x[:, first:]) if self.moves_first else (x[:, first:], x[:, :first])

    def _join(self, moved: Tensor, kept: Tensor) -> Tensor:
        return torch.cat([moved, kept] if self.moves_first else [kept, moved], dim=1)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (B, D) and log_det (B,)."""
        moved, kept = self._split(x)
        log_scale, shift = self._parameters_of(kept, context)
        return self._join(moved * log_scale.exp() + shift, kept), log_scale.sum(dim=1)

    def inverse(self, y: Tensor, context: Tensor) -> Tensor:
        """Return x (B, D)."""
        moved, kept = self._split(y)
        log_scale, shift = self._parameters_of(kept, context)
        return self._join((moved - shift) * (-log_scale).exp(), kept)


class PlainBlock(nn.Module):
    """Actnorm, two couplings, a permutation."""

    def __init__(self, config: FlowConfig, index: int) -> None:
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(config.dim)), nn.Parameter(torch.zeros(config.dim))
        self.first, self.second = PlainCoupling(config, moves_first=True), PlainCoupling(config, moves_first=False)
        generator = torch.Generator().manual_seed(config.seed + index)
        self.register_buffer("permutation", torch.randperm(config.dim, generator=generator))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Standardise x (B, D)."""
        self.shift.copy_(-x.mean(0))
        self.log_scale.copy_(-x.std(0).log())

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (B, D) and log_det (B,)."""
        x = (x + self.shift) * self.log_scale.exp()
        x, first = self.first(x, context)
        x, second = self.second(x, context)
        return x[:, self.permutation], self.log_scale.sum() + first + second

    def inverse(self, y: Tensor, context: Tensor) -> Tensor:
        """Return x (B, D)."""
        y = y[:, self.permutation.argsort()]
        y = self.first.inverse(self.second.inverse(y, context), context)
        return y * (-self.log_scale).exp() - self.shift


class PlainFlow(Contender):
    """What one writes down after reading the papers: nothing merged, nothing cast, nothing kept between uses."""

    name = "plain PyTorch"

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.dim = config.dim
        self.blocks = nn.ModuleList(PlainBlock(config, k) for k in range(config.blocks))

    @torch.no_grad()
    def initialize(self, z_bar: Tensor, context: Tensor) -> None:
        """Set every actnorm from z_bar (B, D) and context (B, C)."""
        for block in self.blocks:
            block.initialize(z_bar)
            z_bar, _ = block(z_bar, context)

    def forward(self, z_bar: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return v (B, D) and log_det (B,)."""
        log_det = z_bar.new_zeros(len(z_bar))
        for block in self.blocks:
            z_bar, term = block(z_bar, context)
            log_det = log_det + term
        return z_bar, log_det

    def to_base(self, z_bar: Tensor, context: Tensor) -> Tensor:
        """Return v (B, D)."""
        v: Tensor = self(z_bar, context)[0]
        return v

    def loss(self, z_bar: Tensor, context: Tensor) -> Tensor:
        """Return the mean negative log-likelihood."""
        v, log_det = self(z_bar, context)
        return (0.5 * (v**2).sum(1) - log_det).mean() + 0.5 * self.dim * LOG_2PI

    def sample(self, context: Tensor, n: int) -> Tensor:
        """Repeat each context and go back block by block."""
        x = torch.randn(len(context) * n, self.dim)
        repeated = context.repeat_interleave(n, dim=0)
        for block in reversed(self.blocks):
            x = block.inverse(x, repeated)
        return x.view(len(context), n, self.dim)


def plain_conditioner(config: ConditionerConfig) -> nn.Sequential:
    """Return H for a vector z as plain layers; z is standardised already."""
    inputs, layers = math.prod(config.z_shape), [nn.Flatten()]
    for _ in range(config.depth):
        layers += [nn.Linear(inputs, config.width), nn.SiLU()]
        layers += [nn.Dropout(config.dropout)] if config.dropout else []
        inputs = config.width
    return nn.Sequential(*layers, nn.Linear(inputs, config.context_dim))


CONTENDERS: dict[str, Callable[[FlowConfig], Contender]] = {
    kind.name: kind for kind in (FreiaFlow, NflowsFlow, ZukoFlow, PlainFlow)
}
LIBRARIES = ("FrEIA", "nflows", "zuko")


def build(names: Sequence[str], config: FlowConfig) -> dict[str, Contender]:
    """Return the named contenders of the shape `config`, drawn from its seed; zuko has none with separate networks."""
    if config.separate_nets:
        names = [name for name in names if name != ZukoFlow.name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return {name: CONTENDERS[name](config) for name in names}
