"""The autoencoder's training step beside plain PyTorch's: milliseconds, and held-out error after equal steps.

    python benchmarks/autoencoder_step.py [--threads 1] [--steps 300] [--data color-mnist --data-dir DIR] [--smoke]

Three contenders train the same network from the same weights on the same batches, learning rates and clipping:
what `Interpreter.fit` does; autograd on the same module under bf16 autocast, channels last, with fused Adam; and
plain PyTorch: autograd, fp32, contiguous, Adam as it comes. Each takes `--block` steps in turn. The held-out error is
the mean square of images in [-1, 1], in fp32 on the same noise, the mean over `--seeds` runs and their deviation.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from harness import common_arguments, pinned, print_table, statement
from lightning_fabric import Fabric
from torch import nn

from posthoc_inn.autoencoders import ConvAutoencoder
from posthoc_inn.config import AutoencoderConfig, TrainConfig, preset
from posthoc_inn.images import BatchSource
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.rows.cache import Cache, pixels, unit
from posthoc_inn.seeds import derived
from posthoc_inn.training.loop import Loop
from posthoc_inn.training.precision import choose_precision
from posthoc_inn.training.schedule import learning_rate
from posthoc_inn.training.tasks import AutoencoderTask


def cached(data: object) -> Cache:
    """Return all pictures of a data set as uint8."""
    cache = Cache()
    for batch in BatchSource(data, batch_size=500).batches():
        cache.append(images=pixels(batch["images"]))
    return cache


class Ours:
    """The product's own loop, a step a call."""

    def __init__(self, config: AutoencoderConfig, training: TrainConfig, parts: list[Cache]) -> None:
        precision = "bf16-mixed" if choose_precision("auto", torch.device("cpu")) == "bf16" else "32-true"
        self.autoencoder = ConvAutoencoder(config)
        self.task = AutoencoderTask(self.autoencoder, *parts, batch_size=training.batch_size, seed=training.seed)
        self._loop = Loop(self.task, training, Fabric(accelerator="cpu", devices=1, precision=precision), None)

    def step(self) -> None:
        """Take one step."""
        self._loop._one_step()
        self._loop.step += 1


class Autograd:
    """The textbook's loop on the same module."""

    def __init__(self, config: AutoencoderConfig, training: TrainConfig, parts: list[Cache], *, is_plain: bool) -> None:
        self.autoencoder = ConvAutoencoder(config)
        if is_plain:
            self.autoencoder.to(memory_format=torch.contiguous_format)
        self.task = AutoencoderTask(self.autoencoder, *parts, batch_size=training.batch_size, seed=training.seed)
        self._training, self._is_plain, self._step = training, is_plain, 0
        fused = None if is_plain else True
        self._optimizer = torch.optim.Adam(self.autoencoder.parameters(), betas=training.betas, fused=fused)

    def step(self) -> None:
        """Take one step."""
        training = self._training
        generator = torch.Generator().manual_seed(derived(training.seed, "batch", self._step))
        images, noise = self.task.batch(self._step, generator)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(training, self._step)
        with torch.autocast("cpu", torch.bfloat16, enabled=not self._is_plain):
            loss = self.autoencoder.loss_figures(unit(images), noise)["loss"]
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.autoencoder.parameters(), training.clip)
        self._optimizer.step()
        self._step += 1


Contender = Ours | Autograd
CONTENDERS: dict[str, Callable[[AutoencoderConfig, TrainConfig, list[Cache]], Contender]] = {
    "posthoc_inn": Ours,
    "autocast, channels last, fused Adam": lambda *a: Autograd(*a, is_plain=False),
    "plain PyTorch, fp32": lambda *a: Autograd(*a, is_plain=True),
}
PLAIN = "plain PyTorch, fp32"


def time_blocks(contenders: dict[str, Contender], *, blocks: int, block: int) -> dict[str, list[float]]:
    """Return the seconds a step of each block, the contenders taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for k in range(-1, blocks):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            contenders[name].step()  # whatever the one before left in the caches
            started = time.perf_counter()
            for _ in range(block):
                contenders[name].step()
            if k >= 0:
                seconds[name].append((time.perf_counter() - started) / block)
    return seconds


@torch.no_grad()
def held_out_error(contender: Contender) -> float:
    """Return the held-out error, in fp32."""
    contender.autoencoder.eval()
    return contender.task.held_out()["error"]


def main(arguments: list[str] | None = None) -> None:
    """Time, train and print the table."""
    parser = common_arguments(__doc__)
    parser.add_argument("--data", default="color-digits")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--size", type=int, default=28, choices=(28, 32, 64, 128), help="pixels; as the data has")
    parser.add_argument("--steps", type=int, default=300, help="before the held-out error is measured; 0: not at all")
    parser.add_argument("--seeds", type=int, default=2, help="runs of --steps")
    parser.add_argument("--blocks", type=int, default=20, help="timed blocks of each contender")
    parser.add_argument("--block", type=int, default=10, help="steps of a block")
    given = parser.parse_args(arguments)
    if given.smoke:
        given.draws, given.steps, given.seeds, given.blocks, given.block = 1, 2, 1, 2, 1
    manager = get_plugin_manager()
    parts = [
        cached(manager.build_dataset(given.data, given.data_dir, train=part, seed=0, draws=draws))
        for part, draws in ((True, given.draws), (False, 1))
    ]
    usual = preset("default")
    width = 4 if given.smoke else usual.autoencoder_width
    channels = parts[0]["images"].shape[0]
    config = AutoencoderConfig(size=given.size, channels=channels, latent_dim=usual.latent_dim, width=width)
    training = usual.autoencoder_training.replace(batch_size=8) if given.smoke else usual.autoencoder_training
    with pinned(given.threads) as threads:
        print(statement(threads))
        print(
            f"{given.data}, kind conv, {given.size} px, width {width}, latent {config.latent_dim}, batch "
            f"{training.batch_size}; {given.blocks} blocks of {given.block} steps, in turns"
        )
        contenders = {name: make(config, training, parts) for name, make in CONTENDERS.items()}
        seconds = time_blocks(contenders, blocks=given.blocks, block=given.block)
        errors = {name: errors_after(make, config, training, parts, given) for name, make in CONTENDERS.items()}
    rows = []
    for name, own in seconds.items():
        ratios = [plain / mine for plain, mine in zip(seconds[PLAIN], own, strict=True)]
        cells = [f"{1e3 * s:.1f}" for s in (statistics.median(own), min(own), max(own))]
        rows.append([name, *cells, f"{statistics.median(ratios):.2f}", *errors[name]])
    error = f"error, {given.steps} steps"
    print_table(["training step, ms", "median", "least", "most", "times plain", error, "deviation"], rows)


def errors_after(
    make: Callable[[AutoencoderConfig, TrainConfig, list[Cache]], Contender],
    config: AutoencoderConfig,
    training: TrainConfig,
    parts: list[Cache],
    given: argparse.Namespace,
) -> list[str]:
    """Return mean and deviation of the held-out error after `given.steps` steps, over `given.seeds` runs, as text."""
    steps, seeds = given.steps, given.seeds
    if not steps:
        return ["", ""]
    found = []
    for seed in range(seeds):
        contender = make(config.replace(seed=seed), training.replace(steps=steps, seed=seed), parts)
        for _ in range(steps):
            contender.step()
        found.append(held_out_error(contender))
    spread = f"{statistics.stdev(found):.5f}" if len(found) > 1 else ""
    return [f"{statistics.mean(found):.5f}", spread]


if __name__ == "__main__":
    main()
