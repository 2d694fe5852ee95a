"""A training step of t at the papers' size beside FrEIA, nflows and zuko, and its share of what the machine can do.

    python benchmarks/training_step.py [--batch-sizes 256 16] [--rounds 7] [--separate] [--threads 2] [--smoke]

All sides are given the context and do one step on the same batch: loss, backward pass, optimizer. The libraries use
torch.optim.Adam as their readmes do; ours is the product's own loop, with its clipping, schedule and checks. With
--separate, also the papers' separate scale and shift networks (twice the parameters, so about 15 GB of memory).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from contenders import LIBRARIES, build
from harness import (
    Ceilings,
    ContextTask,
    ProductTraining,
    Step,
    chosen_precision,
    common_arguments,
    endless,
    interleave,
    measure_ceilings,
    millions,
    pinned,
    print_table,
    set_precision,
    statement,
)
from torch import Tensor, nn

from posthoc_inn.config import FlowConfig, preset
from posthoc_inn.flows import CouplingFlow

OPTIMIZER_BYTES = 28
"""Of a parameter: Adam reads the parameter, its gradient and two moments, and writes three of them, in fp32."""

KINDS: dict[str, tuple[str, ...]] = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn", "onednn"),
    "optimizer": ("_fused_adam", "_foreach_add", "_foreach_lerp", "_foreach_addc"),
    "norm and clipping of the gradient": ("_foreach_norm", "_foreach_mul", "linalg_vector_norm", "norm", "dot"),
    "casts, copies, joins": ("copy_", "_to_copy", "to", "clone", "cat", "stack", "index", "fill_", "zero_"),
    "views and allocation": ("t", "transpose", "as_strided", "slice", "select", "split", "narrow", "unbind", "chunk",
                             "detach", "expand", "view", "reshape", "unsqueeze", "empty", "new_empty", "contiguous"),
    "elementwise and sums": ("silu", "leaky_relu", "tanh", "exp", "mul", "add", "sub", "div", "neg", "threshold",
                             "sum", "pow", "ge", "where", "square", "sigmoid", "random_"),
}  # fmt: skip
"""Kinds of operation in the profile, by how their names begin; of several that fit, the longest beginning counts."""


@dataclass(frozen=True)
class Part:
    """One line of what a step has to do.

    Attributes:
        name: What it is.
        operations: Floating-point operations in matrix products.
        moved: Bytes that have to pass between memory and the cores at least once.
        precision: Whose ceiling holds.
    """

    name: str
    operations: float
    moved: float
    precision: str

    def seconds(self, ceilings: Ceilings) -> float:
        """Return the time at the ceilings; products hide the memory traffic of their operands, or the reverse."""
        return max(self.operations / ceilings.products[self.precision], self.moved / ceilings.memory)


def count_parts(flow: CouplingFlow, batch_size: int, precision: str) -> list[Part]:
    """Count what a step with `batch_size` rows has to do at least, layer by layer.

    Layers that stay exact run forward in fp32 and backward in `precision`; activations are taken to stay in cache.
    """
    layers: dict[str, list[nn.Linear]] = {}
    for name, layer in flow.named_modules():
        if isinstance(layer, nn.Linear):
            kind = next(k for k in ("input", "context", "hidden", "output") if k in name.split("."))
            layers.setdefault(kind, []).append(layer)
    width = {"32": 4, "bf16": 2}
    parts = []
    for kind, members in layers.items():
        weights = sum(layer.weight.numel() for layer in members)
        operations = 2.0 * batch_size * weights
        exact = getattr(members[0], "is_exact", False)
        forward = "32" if exact else precision
        parts.append(Part(f"{kind} layers, forward", operations, width[forward] * weights, forward))
        parts.append(Part(f"{kind} layers, weight gradients", operations, 4.0 * weights, precision))
        if kind != "context":  # the context is given: nothing flows back into it
            parts.append(Part(f"{kind} layers, input gradients", operations, width[precision] * weights, precision))
    count = sum(p.numel() for p in flow.parameters())
    return [*parts, Part("optimizer", 0.0, OPTIMIZER_BYTES * count, "32")]


def print_share(flow: CouplingFlow, batch_size: int, precision: str, ceilings: Ceilings, measured: float) -> None:
    """Print the time needed at the ceilings, part by part, and the share of it in the measured step."""
    parts = count_parts(flow, batch_size, precision)
    rows = [
        [p.name, f"{p.operations / 1e9:.2f}", f"{p.moved / 1e9:.2f}", p.precision, f"{1e3 * p.seconds(ceilings):.1f}"]
        for p in parts
    ]
    needed = sum(part.seconds(ceilings) for part in parts)
    total = [f"{sum(p.operations for p in parts) / 1e9:.2f}", f"{sum(p.moved for p in parts) / 1e9:.2f}"]
    print(f"\nshare of the ceiling, batch {batch_size}: what a step needs at least")
    print_table(
        ["part", "GFLOP", "GB", "precision", "ms at the ceiling"], [*rows, ["all", *total, "", f"{1e3 * needed:.1f}"]]
    )
    print(f"measured step {1e3 * measured:.1f} ms; needed {1e3 * needed:.1f} ms; share {needed / measured:.2f}")


def kind_of(operation: str) -> str:
    """Return the kind of a profiled operation."""
    name = operation.removeprefix("aten::")
    fitting = [(len(start), kind) for kind, starts in KINDS.items() for start in starts if name.startswith(start)]
    return max(fitting)[1] if operation.startswith(("aten::", "mkldnn")) and fitting else "autograd and others"


def print_profile(step: Step, steps: int) -> None:
    """Print where the time of our step goes, by kind of operation; the profiler itself costs time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        total = (time.perf_counter() - started) / steps
    kinds: dict[str, tuple[float, int]] = {}
    for event in profile.key_averages():
        seconds, calls = kinds.get(kind_of(event.key), (0.0, 0))
        kinds[kind_of(event.key)] = (seconds + event.self_cpu_time_total / 1e6 / steps, calls + event.count // steps)
    rows = sorted(kinds.items(), key=lambda item: -item[1][0])
    outside = total - sum(seconds for seconds, _ in kinds.values())
    print(f"\nwhere the time of our step goes ({steps} steps under torch.profiler)")
    print_table(
        ["operations", "ms", "calls", "share"],
        [[name, f"{1e3 * s:.1f}", str(calls), f"{s / total:.2f}"] for name, (s, calls) in rows]
        + [["Python between operations", f"{1e3 * outside:.1f}", "", f"{outside / total:.2f}"]]
        + [["all", f"{1e3 * total:.1f}", "", "1.00"]],
    )


def our_flow(config: FlowConfig, z_bar: Tensor, context: Tensor, precision: str) -> CouplingFlow:
    """Return an initialised flow that computes in `precision`."""
    flow = CouplingFlow(config)
    flow.initialize(z_bar, context)
    set_precision(flow, precision)
    return flow


def compare(config: FlowConfig, batch_sizes: list[int], rounds: int, *, smoke: bool, share: bool) -> None:
    """Time one shape of t on all sides and print the tables."""
    generator = torch.Generator().manual_seed(0)
    most = max(*batch_sizes, 256)
    z_bar, context = (torch.randn(most, n, generator=generator) for n in (config.dim, config.context_dim))
    precision = chosen_precision()
    flow = our_flow(config, z_bar, context, precision)
    libraries = build(LIBRARIES, config)
    optimizers = {name: library.optimizer() for name, library in libraries.items()}
    print(
        f"\nD {config.dim}, context {config.context_dim}, {config.blocks} blocks of 2 couplings, width {config.width}, "
        f"{config.depth} hidden layers, {'separate networks' if config.separate_nets else 'one network a coupling'}"
    )
    for size in batch_sizes:

        def library_step(name: str, rows: int = size) -> None:
            optimizers[name].zero_grad()
            libraries[name].loss(z_bar[:rows], context[:rows]).backward()
            optimizers[name].step()

        recipe = endless(preset("paper-comparison").flow_training, batch_size=size)
        training = ProductTraining(ContextTask(flow, z_bar[:size], context[:size]), recipe)
        ours = f"posthoc_inn, {precision}"
        steps: dict[str, Step] = {ours: training.step}
        steps |= {name: (lambda name=name: library_step(name)) for name in libraries}  # type: ignore[misc]
        timings = interleave(steps, rounds=rounds)
        fastest = min(timings[name].median for name in libraries)
        modules: dict[str, nn.Module] = {ours: flow, **libraries}
        print(f"\ntraining step, batch {size}, {rounds} rounds, interleaved")
        print_table(
            ["", "parameters", "ms", "least", "most", "times ours"],
            [
                [name, millions(modules[name]), *timings[name].cells(), f"{t.median / timings[ours].median:.2f}"]
                for name, t in timings.items()
            ],
        )
        print(f"{fastest / timings[ours].median:.2f} times as fast as the fastest of the libraries")
        if share and size == batch_sizes[0]:
            ceilings = measure_ceilings(smoke=smoke)
            print(ceilings)
            print_share(flow, size, precision, ceilings, timings[ours].median)
            print_profile(training.step, 1 if smoke else 3)


def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print the tables."""
    parser = common_arguments(__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 16], help="the first is taken apart")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--separate", action="store_true", help="also the papers' separate networks")
    parser.add_argument("--only-separate", action="store_true", help="the papers' separate networks alone")
    arguments = parser.parse_args(argv)
    config = preset("paper-comparison").flow.replace(separate_nets=False)
    if arguments.smoke:
        config = config.replace(dim=6, context_dim=5, blocks=2, width=16)
        arguments.batch_sizes, arguments.rounds = [8, 4], 2
    with pinned(arguments.threads) as threads:
        print(statement(threads))
        for separate in [True] if arguments.only_separate else [False, True] if arguments.separate else [False]:
            compare(
                config.replace(separate_nets=separate),
                arguments.batch_sizes,
                arguments.rounds,
                smoke=arguments.smoke,
                share=not separate or arguments.only_separate,
            )


if __name__ == "__main__":
    main()
