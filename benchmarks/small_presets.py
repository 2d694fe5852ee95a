"""A training step of a small preset, conditioner included, beside the same flow written plainly in PyTorch.

    python benchmarks/small_presets.py [--preset default] [--rounds 30] [--threads 2] [--smoke]

The plain version is in `contenders.py`: separate scale and shift networks as in the papers, the context concatenated in
each coupling, torch.nn.Dropout, AdamW and gradient clipping as torch has them, fp32. Two further rows show what merging
the heads, and bf16 autocast on top, bring by themselves. All rows draw their batches from the same cached rows, the way
training does; once with the preset's dropout, once without.
"""

from __future__ import annotations

import contextlib

import torch
from contenders import PlainFlow, plain_conditioner
from harness import (
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

from posthoc_inn.config import ConditionerConfig, FlowConfig, TrainConfig, preset
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training.tasks import FlowTask

Z_WIDTH = 512
"""As the representation of SqueezeNet's last convolution on small images."""


class PlainTraining:
    """Trains the plain flow the plain way, one step a call."""

    def __init__(
        self, flow: FlowConfig, conditioner: ConditionerConfig, config: TrainConfig, task: FlowTask, *, autocast: bool
    ) -> None:
        self.task, self.config, self.autocast, self.count = task, config, autocast, 0
        self.conditioner, self.flow = plain_conditioner(conditioner), PlainFlow(flow)
        self.module = nn.ModuleList([self.conditioner, self.flow])
        z, mean, std, noise = task.batch(0, torch.Generator().manual_seed(0))
        self.z_mean, self.z_std = z.mean(0), z.std(0)
        self.flow.initialize(mean + std * noise, self.conditioner((z - self.z_mean) / self.z_std))
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )

    def loss(self, z: Tensor, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """Return the mean negative log-likelihood in nats."""
        with torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext():
            return self.flow.loss(mean + std * noise, self.conditioner((z - self.z_mean) / self.z_std))

    def step(self) -> None:
        """Take one step."""
        batch = self.task.batch(self.count, torch.Generator().manual_seed(self.count))
        self.optimizer.zero_grad()
        self.loss(*batch).backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip)
        self.optimizer.step()
        self.count += 1


def synthetic_rows(count: int, dim: int) -> Cache:
    """Return cached rows of noise: z (N, 512), and mean and deviation of z_bar (N, D)."""
    generator = torch.Generator().manual_seed(0)
    rows = Cache()
    rows.append(
        z=torch.randn(count, Z_WIDTH, generator=generator),
        mean=torch.randn(count, dim, generator=generator),
        std=torch.full((count, dim), 0.1),
    )
    return rows


def compare(name: str, flow: FlowConfig, rows: Cache, rounds: int) -> None:
    """Time all versions of one shape and print the table."""
    fit = preset(name)
    recipe = endless(fit.flow_training)
    conditioner = ConditionerConfig(
        z_shape=(Z_WIDTH,), context_dim=flow.context_dim, width=min(fit.conditioner_width, 8 * flow.width),
        depth=fit.conditioner_depth, dropout=flow.dropout,
    )  # fmt: skip
    size = recipe.batch_size
    steps: dict[str, Step] = {}
    modules: dict[str, nn.Module] = {}
    for label, separate, autocast in (
        ("plain, separate networks", True, False),
        ("plain, merged heads", False, False),
        ("plain, merged heads, bf16 autocast", False, True),
    ):
        # A flow of the product's own stands in for the task's module, which only the product's loop asks for.
        task = FlowTask(ConditionalFlow(flow, conditioner), rows, rows, batch_size=size, seed=0)
        plain = PlainTraining(flow.replace(separate_nets=separate), conditioner, recipe, task, autocast=autocast)
        steps[label], modules[label] = plain.step, plain.module
    for precision in dict.fromkeys(["32", chosen_precision()]):
        t = ConditionalFlow(flow, conditioner)
        t.conditioner.fit_standardization([rows["z"].tensor()])
        t.initialize(rows["mean"].tensor(), rows["z"].tensor())
        set_precision(t, precision)
        task = FlowTask(t, rows, rows, batch_size=size, seed=0)
        label = f"posthoc_inn, {precision}"
        steps[label], modules[label] = ProductTraining(task, recipe).step, t
    with torch.random.fork_rng(devices=[]):  # the plain versions' dropout draws from the global generator
        timings = interleave(steps, rounds=rounds, warmup=3)
    straightforward = timings["plain, separate networks"].median
    print(
        f"\ntraining step of preset {name!r} (D {flow.dim}, context {flow.context_dim}, {flow.blocks} blocks, width "
        f"{flow.width}, {flow.depth} hidden layers), dropout {flow.dropout}, batch {size}, {rounds} rounds, interleaved"
    )
    print_table(
        ["", "parameters", "ms", "least", "most", "times as fast as plain"],
        [
            [name, millions(modules[name]), *timing.cells(), f"{straightforward / timing.median:.2f}"]
            for name, timing in timings.items()
        ],
    )


def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print the tables."""
    parser = common_arguments(__doc__)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args(argv)
    flow = preset(arguments.preset).flow
    count = 8192
    if arguments.smoke:
        flow, count, arguments.rounds = flow.replace(dim=6, context_dim=5, blocks=2, width=16), 300, 2
    rows = synthetic_rows(count, flow.dim)
    with pinned(arguments.threads) as threads:
        print(statement(threads))
        print(measure_ceilings(smoke=arguments.smoke))
        for dropout in dict.fromkeys([flow.dropout, 0.0]):
            compare(arguments.preset, flow.replace(dropout=dropout), rows, arguments.rounds)


if __name__ == "__main__":
    main()
