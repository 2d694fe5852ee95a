"""What training t in bf16 costs: held-out nats after equal steps in fp32 and in bf16, both evaluated in fp32.

    python benchmarks/precision.py --latents FILE [--steps 2000] [--seeds 2] [--threads 2]
    python benchmarks/precision.py --synthetic [--steps 500]

Same seeds, same batches, same noise. --latents names a file that `time_to_likelihood.py --latents` wrote. Prints nats,
their difference (the project's bound is 0.1), the round trip t⁻¹(t(z_bar)) in both precisions, and what bf16 changes
in samples.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from harness import common_arguments, pinned, print_table, statement
from time_to_likelihood import conditioner_config, kept, synthetic

from posthoc_inn.config import FitConfig, preset
from posthoc_inn.flows import ConditionalFlow, computing_in, set_compute_dtype
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training import train
from posthoc_inn.training.tasks import FlowTask, flow_likelihood

PRECISIONS = {"32": None, "bf16": torch.bfloat16}


def trained(config: FitConfig, rows: Cache, steps: int, precision: str, seed: int) -> ConditionalFlow:
    """Return t after `steps` steps of the preset's recipe."""
    flow = ConditionalFlow(
        config.flow.replace(seed=seed), conditioner_config(config, rows, config.flow.dropout).replace(seed=seed)
    )
    flow.conditioner.fit_standardization(z for (z,) in rows.batches(1000, "z"))
    pick = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:4096]
    flow.initialize(rows["mean"].rows(pick), rows["z"].rows(pick).float())
    set_compute_dtype(flow, PRECISIONS[precision])
    training = config.flow_training.replace(steps=steps, eval_every=0, patience=0, checkpoint_every=10**9, seed=seed)
    train(FlowTask(flow, rows, rows, batch_size=training.batch_size, seed=seed, looks=1), training)
    set_compute_dtype(flow, None)
    return flow


@torch.no_grad()
def numerics(flow: ConditionalFlow, held_out: Cache) -> list[float]:
    """Return the largest error of the round trip in fp32 and in bf16, and the mean change of samples by bf16."""
    index = torch.arange(min(2000, len(held_out)))
    z_bar, context = held_out["mean"].rows(index), flow.context(held_out["z"].rows(index).float())
    noise = torch.randn(z_bar.shape, generator=torch.Generator().manual_seed(0))
    found, samples = [], []
    for dtype in PRECISIONS.values():
        with computing_in(flow, dtype):
            v, _ = flow(z_bar, context)
            found.append(float((flow.inverse_many(v[:, None], context)[:, 0] - z_bar).abs().max()))
            samples.append(flow.inverse_many(noise[:, None], context))
    return [*found, float((samples[1] - samples[0]).square().mean().sqrt())]


def main(argv: list[str] | None = None) -> None:
    """Train in both precisions for every seed and print the table."""
    parser = common_arguments(__doc__)
    parser.add_argument("--latents", type=Path, default=None)
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args(argv)
    config = preset(arguments.preset)
    if arguments.smoke:
        flow = config.flow.replace(dim=6, context_dim=5, blocks=2, width=16)
        config = config.replace(context_dim=5, conditioner_width=8, flow=flow)
        arguments.steps, arguments.seeds = 3, 1
        rows, held_out = synthetic(600, 6, 7, 1), synthetic(100, 6, 7, 2)
    elif arguments.latents is not None:
        rows, held_out = kept(arguments.latents)
    elif arguments.synthetic:
        rows, held_out = (synthetic(n, config.flow.dim, 512, seed) for n, seed in ((100_000, 1), (10_000, 2)))
    else:
        parser.error("pass --latents with a file that time_to_likelihood.py wrote, or --synthetic")
    table, gaps = [], []
    with pinned(arguments.threads) as threads:
        print(statement(threads))
        for seed in range(arguments.seeds):
            flows = {p: trained(config, rows, arguments.steps, p, seed) for p in PRECISIONS}
            nats = {p: flow_likelihood(flow, held_out) for p, flow in flows.items()}
            gaps.append(nats["bf16"] - nats["32"])
            exact, low, change = numerics(flows["bf16"], held_out)
            figures = [f"{n:.3f}" for n in (nats["32"], nats["bf16"], gaps[-1])]
            table.append([str(seed), *figures, f"{exact:.1e}", f"{low:.1e}", f"{change:.4f}"])
    print(f"\nheld-out nats of preset {config.preset!r} after {arguments.steps} steps in each precision")
    print_table(["seed", "32", "bf16", "bf16 - 32", "round trip 32", "bf16", "change of samples, rms"], table)
    print(f"mean difference {statistics.mean(gaps):+.3f} nats over {len(gaps)} seeds; bound 0.1")


if __name__ == "__main__":
    main()
