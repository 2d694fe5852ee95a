"""Held-out likelihood for time: shapes of t on one set of latents, each for the same number of seconds.

    python benchmarks/presets.py --bundle BUNDLE --model-weights FILE --data color-mnist --data-dir DIR [--seconds 120]

Reads the autoencoder and the layer from a bundle, caches z and z_bar once, and trains each candidate with the steps
that fit into the time (a cosine needs to know its end). Prints nats on held-out and training rows.
"""

from __future__ import annotations

import argparse
import time

import torch

from posthoc_inn import Interpreter
from posthoc_inn.config import ConditionerConfig, FlowConfig, TrainConfig
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.images import BatchSource
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training import train
from posthoc_inn.training.tasks import FlowLoss, FlowTask, flow_likelihood

CANDIDATES: dict[str, tuple[dict[str, object], dict[str, float]]] = {
    "8 × 256, lr 1e-3": ({"blocks": 8, "width": 256}, {"lr": 1e-3, "weight_decay": 1e-4}),
    "8 × 256, lr 3e-3, decay 0.3": ({"blocks": 8, "width": 256}, {"lr": 3e-3, "weight_decay": 0.3}),
    "8 × 192, dropout 0.1": ({"blocks": 8, "width": 192, "dropout": 0.1}, {"lr": 3e-3, "weight_decay": 0.3}),
    "8 × 256, dropout 0.1": ({"blocks": 8, "width": 256, "dropout": 0.1}, {"lr": 3e-3, "weight_decay": 0.3}),
    "8 × 384, dropout 0.1": ({"blocks": 8, "width": 384, "dropout": 0.1}, {"lr": 3e-3, "weight_decay": 0.3}),
    "12 × 256, dropout 0.1": ({"blocks": 12, "width": 256, "dropout": 0.1}, {"lr": 3e-3, "weight_decay": 0.3}),
    "8 × 256 spline": ({"blocks": 8, "width": 256, "kind": "spline"}, {"lr": 1e-3, "weight_decay": 1e-4}),
}


def latents(interpreter: Interpreter, data: object) -> Cache:
    """Return z, and mean and deviation of z_bar, for a whole data set."""
    cache = Cache()
    for batch in BatchSource(data, batch_size=500).batches():
        mean, std = interpreter.pipeline.encode(batch["images"])
        cache.append(z=interpreter.pipeline.features(batch["images"]), mean=mean, std=std)
    return cache


def fresh(shape: dict[str, object], rows: Cache) -> ConditionalFlow:
    """Return an initialised flow."""
    dropout = float(shape.get("dropout", 0.0))  # type: ignore[arg-type]
    flow = ConditionalFlow(
        FlowConfig(dim=rows["mean"].shape[0], context_dim=128, **shape),  # type: ignore[arg-type]
        ConditionerConfig(z_shape=rows["z"].shape, context_dim=128, width=256, dropout=dropout),
    )
    flow.conditioner.fit_standardization(z for (z,) in rows.batches(1000, "z"))
    pick = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:4096]
    flow.initialize(rows["mean"].rows(pick), rows["z"].rows(pick))
    return flow


def seconds_per_step(shape: dict[str, object], rows: Cache) -> float:
    """Return the median time of a training step."""
    flow = fresh(shape, rows)
    task, loss = FlowTask(flow, rows, rows, batch_size=256, seed=0), FlowLoss(flow)
    optimizer = torch.optim.AdamW(loss.parameters(), fused=True)
    times = []
    for step in range(9):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss(*task.batch(step, torch.Generator().manual_seed(step))).backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    return sorted(times)[4]


def main() -> None:
    """Train each candidate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--backbone", default="squeezenet1_1")
    parser.add_argument("--model-weights", required=True)
    parser.add_argument("--data", default="color-mnist")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    manager = get_plugin_manager()
    model = manager.build_backbone(arguments.backbone, weights=arguments.model_weights)
    interpreter = Interpreter.load(arguments.bundle, model=model)
    rows, held_out = (
        latents(interpreter, manager.build_dataset(arguments.data, arguments.data_dir, train=part, seed=0, draws=draws))
        for part, draws in ((True, 1 if arguments.smoke else arguments.draws), (False, 1))
    )
    print(f"{len(rows):,} rows, {arguments.seconds:.0f} s each, {torch.get_num_threads()} threads, batches of 256")
    print(f"{'t':30}{'ms/step':>9}{'steps':>7}{'held-out':>10}{'train':>8}")
    for name, (shape, recipe) in CANDIDATES.items():
        pace = seconds_per_step(shape, rows)
        steps = 5 if arguments.smoke else max(5, int(arguments.seconds / pace))
        flow = fresh(shape, rows)
        config = TrainConfig(
            steps=steps, batch_size=256, eval_every=0, patience=0, checkpoint_every=10**9, seed=0,
            lr=recipe["lr"], weight_decay=recipe["weight_decay"],
        )  # fmt: skip
        train(FlowTask(flow, rows, held_out, batch_size=256, seed=0), config)
        held, trained = flow_likelihood(flow, held_out), flow_likelihood(flow, rows, limit=10_000)
        print(f"{name:30}{1000 * pace:9.1f}{steps:7}{held:10.2f}{trained:8.2f}", flush=True)


if __name__ == "__main__":
    main()
