"""The built-in autoencoder beside MSC tab. S1 as printed: held-out error after equal steps, and seconds for them.

    python benchmarks/autoencoders.py [--data color-mnist --data-dir DIR] [--steps 1000 2000] [--smoke]

Both kinds see the same batches. Errors are mean squares of images in [-1, 1], at draws of the encoder.
"""

from __future__ import annotations

import argparse
import time

import torch
from lightning_fabric import Fabric

from posthoc_inn.autoencoders import ConvAutoencoder
from posthoc_inn.config import AutoencoderConfig, TrainConfig
from posthoc_inn.images import BatchSource
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.rows.cache import Cache, pixels
from posthoc_inn.training import train
from posthoc_inn.training.precision import choose_precision
from posthoc_inn.training.tasks import AutoencoderTask

KINDS = {
    "conv, width 32 (ours)": AutoencoderConfig(kind="conv", width=32),
    "conv, width 64": AutoencoderConfig(kind="conv", width=64),
    "msc, width 64 (tab. S1)": AutoencoderConfig(kind="msc", width=64, min_gamma=0.0),
    "msc, width 32": AutoencoderConfig(kind="msc", width=32, min_gamma=0.0),
}


def cached(data: object) -> Cache:
    """Return all pictures of a data set as uint8."""
    cache = Cache()
    for batch in BatchSource(data, batch_size=500).batches():
        cache.append(images=pixels(batch["images"]))
    return cache


def main() -> None:
    """Train each kind and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="color-digits")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 2000])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    manager = get_plugin_manager()
    parts = [
        cached(manager.build_dataset(arguments.data, arguments.data_dir, train=part, seed=0, draws=draws))
        for part, draws in ((True, 1 if arguments.smoke else arguments.draws), (False, 1))
    ]
    precision = "bf16-mixed" if choose_precision("auto", torch.device("cpu")) == "bf16" else "32-true"
    print(f"{arguments.data}, batches of {arguments.batch_size}, {torch.get_num_threads()} threads, {precision}")
    print(f"{'autoencoder':26}{'steps':>7}{'error':>9}{'seconds':>9}")
    for name, config in KINDS.items():
        for steps in [10] if arguments.smoke else arguments.steps:
            autoencoder = ConvAutoencoder(config)
            training = TrainConfig(
                steps=steps, batch_size=arguments.batch_size, lr=3e-3, weight_decay=0.0, warmup=0.02, clip=1.0,
                eval_every=0, patience=0, checkpoint_every=10**9,
            )  # fmt: skip
            started = time.perf_counter()
            task = AutoencoderTask(autoencoder, *parts, batch_size=arguments.batch_size, seed=0)
            history = train(task, training, fabric=Fabric(accelerator="cpu", devices=1, precision=precision))
            error = history.rows[-1]["error"]
            print(f"{name:26}{steps:7}{error:9.4f}{time.perf_counter() - started:9.0f}", flush=True)


if __name__ == "__main__":
    main()
