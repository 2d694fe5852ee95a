"""Few pairs, many dimensions: held-out nats of the linear t, of t as it is, and of t on what the linear t leaves.

    python benchmarks/linear_baseline.py [--rows 2000] [--dims 64 256 512] [--threads 1] [--smoke]

Two sets with a known truth, z and z_bar both of D dimensions: a function of z that is linear but for a part, and one
that is not linear at all, each with noise that is correlated and depends on z. And scikit-learn's digits: z_bar are
their pixels, z is what a small random network keeps of them. What is tuned is tuned on rows that are not measured on.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from posthoc_inn.config import ConditionerConfig, FitConfig, preset
from posthoc_inn.fit.linear import fit_linear
from posthoc_inn.fit.preparing import of_length
from posthoc_inn.flows import ConditionalFlow, coupling_of
from posthoc_inn.objectives import LOG_2PI, drawn
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training import train
from posthoc_inn.training.tasks import FlowTask, flow_nats

STD = 0.05
"""Deviation of the encoder's noise."""


def contenders() -> dict[str, FitConfig]:
    """Return the fits that are compared, by name."""
    quick = preset("quick")
    return {
        "linear": preset("linear"),
        "t as in quick": quick,
        "linear, then t as in quick": quick.replace(flow=quick.flow.replace(kind="linear+affine")),
        "few": preset("few"),
    }


def synthetic(rows: int, dim: int, share: float, generator: torch.Generator, mixing: Tensor) -> tuple[Cache, float]:
    """Return pairs whose z_bar is a function of z, of which `share` is not linear; and the truth's nats."""
    z = torch.randn(rows, dim, generator=generator)
    straight, first, second, noise = mixing
    bent = math.sqrt(2) * torch.sin(2 * z @ first) @ second
    mean = math.sqrt(1 - share) * z @ straight + math.sqrt(share) * bent
    # Half of the dimensions are noisier where the first value of z is large.
    scale = torch.full((rows, dim), 0.3)
    scale[:, ::2] *= torch.exp(0.5 * torch.tanh(z[:, :1]))
    mean = (mean + scale * torch.randn(rows, dim, generator=generator)) @ noise
    truth = (scale.log() + 0.5 * (1 + LOG_2PI)).sum(1).mean() + torch.linalg.slogdet(noise)[1]
    cache = Cache()
    cache.append(z=z, mean=mean, std=torch.full_like(mean, 1e-3))
    return cache, float(truth)


def known(rows: int, dim: int, share: float) -> tuple[list[Cache], float]:
    """Return rows of training, of early stopping and of measuring, and what the truth costs."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, dim, dim, generator=generator) / math.sqrt(dim)
    mixing[3] = torch.linalg.qr(mixing[3])[0] * torch.linspace(0.5, 1.5, dim)
    sets = [synthetic(count, dim, share, generator, mixing) for count in (rows, max(200, rows // 5), 2000)]
    return [cache for cache, _ in sets], sets[2][1]


def digits() -> tuple[list[Cache], float]:
    """Return scikit-learn's digits as pairs; the truth is not known."""
    from sklearn.datasets import load_digits

    pixels = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
    generator = torch.Generator().manual_seed(0)
    pixels = pixels[torch.randperm(len(pixels), generator=generator)]
    z = torch.relu(pixels @ torch.randn(64, 128, generator=generator) / 8) @ torch.randn(128, 32, generator=generator)
    caches = []
    for part in (slice(0, 1200), slice(1200, 1400), slice(1400, None)):
        cache = Cache()
        cache.append(z=z[part], mean=pixels[part], std=torch.full_like(pixels[part], STD))
        caches.append(cache)
    return caches, math.nan


def fitted(config: FitConfig, rows: Cache, held_out: Cache, steps: int | None) -> ConditionalFlow:
    """Return a t fitted to cached rows as a fit does it."""
    training = config.flow_training if steps is None else of_length(config.flow_training, steps)
    flow = ConditionalFlow(
        config.flow.replace(dim=rows["mean"].shape[0]),
        ConditionerConfig(
            rows["z"].shape, config.context_dim, config.conditioner_width, config.conditioner_depth, config.flow.dropout
        ),
        coupling=coupling_of(config.flow),
    )
    flow.conditioner.fit_standardization(z for (z,) in rows.batches(512, "z"))
    expected = None if flow.linear is None else fit_linear(flow, rows, seed=0)
    if not flow.is_trained:
        return flow.eval()
    flow.initialize(drawn(rows["mean"].tensor(), rows["std"].tensor(), 0), rows["z"].tensor())
    train(FlowTask(flow, rows, held_out, batch_size=training.batch_size, seed=0, expected=expected), training)
    return flow


def main(argv: Sequence[str] | None = None) -> None:
    """Fit each contender to each set of rows, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and two steps, for tests")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    steps = None
    if arguments.smoke:
        arguments.rows, arguments.dims, steps = 60, [6], 2
    print(f"{arguments.rows:,} pairs, {arguments.threads} threads; nats on held-out rows, lower is better")
    print(f"{'rows':34}{'t':30}{'nats':>10}{'± of gain':>12}{'seconds':>9}")
    sets = {"digits, 1,200 pairs, D 64": digits}
    for dim in arguments.dims:
        for name, share in (("nearly linear", 0.1), ("half linear", 0.5)):
            sets[f"{name}, D {dim}"] = lambda dim=dim, share=share: known(arguments.rows, dim, share)  # type: ignore[misc]
    for name, make in sets.items():
        (rows, held_out, measured), truth = make()
        first = None
        for contender, config in contenders().items():
            started = time.perf_counter()
            flow = fitted(config, rows, held_out, steps)
            seconds = time.perf_counter() - started
            nats = flow_nats(flow, measured)
            first = nats if first is None else first
            error = float((nats - first).std()) / math.sqrt(len(nats))
            print(f"{name:34}{contender:30}{float(nats.mean()):10.2f}{error:12.2f}{seconds:9.1f}", flush=True)
        if math.isfinite(truth):
            print(f"{name:34}{'the truth':30}{truth:10.2f}", flush=True)


if __name__ == "__main__":
    main()
