"""t trained further by what a network sees of its samples, where the truth is known: what it gives and what it costs.

    python benchmarks/faithful.py [--weights 0 0.25 1 4] [--noise 0.1] [--steps 500 300] [--smoke]

24 latents are N(0, 1). A known network sees six numbers of them, products and sines of six directions; of the other
eighteen it sees nothing, so that given z they are N(0, 1) still. An encoder knows latents up to some noise. t has had
fewer steps of likelihood than it needs, and goes on for some more at each weight, from the same start. Printed:
held-out nats; the misfit of samples, beside that of images' own latents, below which nothing is gained; the deviation
of samples, for one z, in what is not seen, whose truth is 1.
"""

from __future__ import annotations

import argparse
import copy
import math

import torch
from torch import Tensor

from posthoc_inn.config import ConditionerConfig, FlowConfig, TrainConfig
from posthoc_inn.fit.faithful import FaithfulLoss, FaithfulTask, held_out_misfit
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training import train

DIM, SEEN = 24, 6
ROWS, HELD_OUT = 4000, 1000
MIXED = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(3)))[0]


def seen(latents: Tensor) -> Tensor:
    """Return what the network sees of latents (..., 24): (..., 6)."""
    a, b = (latents @ MIXED[:, :SEEN].to(latents)).chunk(2, dim=-1)
    return torch.cat([a * b, torch.sin(2 * a)], dim=-1)


def world(count: int, noise: float, seed: int) -> Cache:
    """Return rows of z, and the mean and deviation of latents given noisy ones."""
    generator = torch.Generator().manual_seed(seed)
    z_bar, added = torch.randn(2, count, DIM, generator=generator)
    mean = (z_bar + noise * added) / (1 + noise**2)
    cache = Cache()
    cache.append(z=seen(z_bar), mean=mean, std=torch.full_like(mean, noise / math.sqrt(1 + noise**2)))
    return cache


@torch.no_grad()
def of_samples(flow: ConditionalFlow, rows: Cache, images: int = 200, each: int = 100) -> tuple[float, float]:
    """Return the misfit of many samples, and their deviation for one z in the directions that are not seen."""
    z = rows["z"].tensor()[:images]
    v = torch.randn(each, DIM, generator=torch.Generator().manual_seed(9))
    drawn = flow.eval().inverse(v.expand(len(z), -1, -1), flow.context(z).unsqueeze(1))
    apart = (seen(drawn) - z.unsqueeze(1)).square().sum() / each
    return float(apart / (z - z.mean(0)).square().sum()), float((drawn @ MIXED[:, SEEN:]).std(1).mean())


def main(arguments: list[str] | None = None) -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.25, 1.0, 4.0])
    parser.add_argument("--noise", type=float, default=0.1, help="of the encoder")
    parser.add_argument("--steps", type=int, nargs=2, default=[500, 300], help="by likelihood, and further")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args(arguments)
    first, further = (5, 5) if given.smoke else given.steps
    rows, held_out = world(ROWS, given.noise, 0), world(HELD_OUT, given.noise, 1)
    start = ConditionalFlow(
        FlowConfig(dim=DIM, context_dim=16, blocks=4, width=48),
        ConditionerConfig(z_shape=(SEEN,), context_dim=16, width=48),
    )
    start.conditioner.fit_standardization([rows["z"].tensor()])
    start.initialize(rows["mean"].tensor(), rows["z"].tensor())

    def trained(flow: ConditionalFlow, weight: float, steps: int, lr: float) -> FaithfulTask:
        loss = FaithfulLoss(flow, seen, weight)
        loss.floor = max(loss.floor, held_out_misfit(loss, held_out, 256, own=True))
        task = FaithfulTask(loss, rows, held_out, batch_size=128, samples=64, seed=0)
        train(task, TrainConfig(steps=steps, batch_size=128, lr=lr, eval_every=0, patience=0))
        return task

    task = trained(start, 0.0, first, 4e-3)
    print(f"{first} steps by likelihood, then {further}; misfit of images' own latents {task.module.floor:.3f}")
    print(f"{'weight':>8}{'nats':>9}{'misfit':>9}{'deviation':>11}")
    for weight in given.weights:
        flow = copy.deepcopy(start)
        nats = trained(flow, weight, further, 1e-3).held_out()["nats"]
        misfit, deviation = of_samples(flow, held_out)
        print(f"{weight:8g}{nats:9.2f}{misfit:9.3f}{deviation:11.3f}", flush=True)


if __name__ == "__main__":
    main()
