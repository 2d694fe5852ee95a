"""Samples of t at the papers' size for many images, beside FrEIA, nflows and zuko.

    python benchmarks/sampling.py [--images 100] [--samples 250] [--rounds 3] [--threads 2] [--smoke]

All sides get the contexts of the images and draw the base variable themselves. Ours is what `Interpreter.sample` calls;
it keeps to chunks. Each library samples the way its users do, all at once, and in
chunks of as many rows as ours has. Memory is the growth of the process at its peak.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from contenders import LIBRARIES, Contender, build
from harness import (
    chosen_precision,
    common_arguments,
    interleave,
    peak_growth,
    pinned,
    print_table,
    statement,
)
from torch import Tensor

from posthoc_inn.config import ConditionerConfig, FlowConfig, preset
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.flows.fast.inverse import CHUNK
from posthoc_inn.pipeline import Pipeline

Draw = Callable[[Tensor, int], Tensor]
"""Maps contexts (B, C) and N to samples (B, N, D)."""


def our_flow(config: FlowConfig, context: Tensor) -> ConditionalFlow:
    """Return t, initialised; its conditioner is not asked anything here, as contexts are given."""
    t = ConditionalFlow(config, ConditionerConfig(z_shape=(1,), context_dim=config.context_dim, width=1))
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(512, config.dim, generator=generator)
    t.flow.initialize(rows, torch.randn(512, config.context_dim, generator=generator))
    return t.eval()


def our_draw(flow: ConditionalFlow, precision: str) -> Draw:
    """Return the product's way to sample, with products in `precision`."""
    # Sampling latents needs neither a model nor an autoencoder.
    pipeline = Pipeline(None, None, None, flow, torch.device("cpu"))  # type: ignore[arg-type]

    def draw(context: Tensor, n: int) -> Tensor:
        v = torch.randn(len(context), n, flow.flow.config.dim)
        return pipeline.sample_latents(context, v, precision=precision)  # type: ignore[arg-type]

    return draw


def in_chunks(library: Contender) -> Draw:
    """Return the library's way to sample, asked for as many images at a time as fit into our chunks."""
    return lambda context, n: torch.cat([library.sample(part, n) for part in context.split(max(1, CHUNK // n))])


@torch.no_grad()
def compare(config: FlowConfig, images: int, n: int, rounds: int) -> None:
    """Time all sides and print the table."""
    context = torch.randn(images, config.context_dim, generator=torch.Generator().manual_seed(0))
    flow = our_flow(config, context)
    draws: dict[str, Draw] = {f"posthoc_inn, {p}": our_draw(flow, p) for p in {"32": 0, chosen_precision(): 0}}
    ours = list(draws)
    for name, library in build(LIBRARIES, config).items():
        library.eval()
        draws |= {f"{name}, all at once": library.sample, f"{name}, in chunks": in_chunks(library)}
    growth: dict[str, list[float]] = {name: [] for name in draws}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for draw in draws.values():  # warm up on little, as a round takes long
            draw(context[:1], n)
        timings = interleave(
            {name: lambda draw=draw: draw(context, n) for name, draw in draws.items()},  # type: ignore[misc]
            rounds=rounds,
            warmup=0,
            around=lambda name: peak_growth(growth[name]),
        )
    fastest = min(timing.median for name, timing in timings.items() if name not in ours)
    print(f"\n{n} samples for each of {images} images, chunks of {CHUNK} in ours, {rounds} rounds, interleaved")
    print_table(
        ["", "s", "least", "most", "samples/s", "peak, MB", "fastest library / this"],
        [
            [
                name,
                *timing.cells(unit=1, digits=2),
                f"{images * n / timing.median:,.0f}",
                f"{max(growth[name]):.0f}" if growth[name] else "?",
                f"{fastest / timing.median:.2f}",
            ]
            for name, timing in timings.items()
        ],
    )


def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print the table."""
    parser = common_arguments(__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--samples", type=int, default=250, help="for each image")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    config = preset("paper-comparison").flow.replace(separate_nets=False)
    if arguments.smoke:
        config = config.replace(dim=6, context_dim=5, blocks=2, width=16)
        arguments.images, arguments.samples, arguments.rounds = 3, 7, 2
    with pinned(arguments.threads) as threads:
        print(statement(threads))
        compare(config, arguments.images, arguments.samples, arguments.rounds)


if __name__ == "__main__":
    main()
