"""What the ColorMNIST examples share: the data, and a SqueezeNet trained on it with snapshots on the way.

MNIST comes from a directory as torchvision keeps it (MNIST/raw/*-ubyte, or the .gz files).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from posthoc_inn.config import ImageSpec, TrainConfig
from posthoc_inn.datasets.color_digits import ColorizedDigits
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.progress import make_reporter
from posthoc_inn.training import train

SPEC = ImageSpec(size=(28, 28), mean=(0.5,), std=(0.5,))
LAYER = "features.11"
"""The penultimate Fire module of SqueezeNet 1.1, as in MSC section 4.2."""


def digits(data_dir: str, *, train: bool, draws: int = 1, seed: int = 0) -> ColorizedDigits:
    """Return ColorMNIST: every digit in `draws` random pairs of colours."""
    return get_plugin_manager().build_dataset("color-mnist", data_dir, train=train, seed=seed, draws=draws)


def untrained(seed: int) -> nn.Module:
    """Return a SqueezeNet 1.1 for ten classes with torchvision's initialisation."""
    model = get_plugin_manager().build_backbone("squeezenet1_1", weights=None, num_classes=10)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                if module is model.classifier[1]:
                    nn.init.normal_(module.weight, mean=0.0, std=0.01)
                else:
                    nn.init.kaiming_uniform_(module.weight)
                nn.init.zeros_(module.bias)
    return model


class ClassifierLoss(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.network(images * 2 - 1), labels)


class ClassifierTask:
    """Cross-entropy on digits in ever new colours; leaves a snapshot of the weights before each of the given steps."""

    name = "classifier"

    def __init__(
        self, network: nn.Module, data: ColorizedDigits, held_out: ColorizedDigits, snapshots: dict[int, Path]
    ) -> None:
        self.module = ClassifierLoss(network)
        self.data, self.held, self.snapshots = data, held_out, snapshots

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        if step in self.snapshots and not self.snapshots[step].exists():
            partial = self.snapshots[step].with_suffix(".partial")
            save_file({k: v.contiguous() for k, v in self.module.network.state_dict().items()}, str(partial))
            partial.rename(self.snapshots[step])
        index = torch.randint(len(self.data), (64,), generator=generator)
        return self.data.images(index), self.data.digits[index]

    def held_out(self) -> dict[str, float]:
        loss = hits = 0.0
        outputs = []
        index = torch.arange(len(self.held))
        for part in index.split(500):
            logits = self.module.network(self.held.images(part) * 2 - 1)
            loss += float(F.cross_entropy(logits, self.held.digits[part], reduction="sum"))
            hits += float((logits.argmax(1) == self.held.digits[part]).sum())
            outputs.append(logits.amax(0))
        # SqueezeNet's last layer is a ReLU: an output that starts off everywhere has no gradient, and stays off.
        dead = int((torch.stack(outputs).amax(0) <= 0).sum())
        return {"loss": loss / len(index), "accuracy": hits / len(index), "dead_outputs": dead}


def train_classifier(data_dir: str, out: Path, steps: Sequence[int], *, seed: int = 2) -> dict[float, Path]:
    """Train SqueezeNet (Adam 1e-4, batch 64, no schedule) up to the last of `steps`; return step -> file of weights.

    Resumes where it was stopped. With seed 1 an output starts off everywhere, and the accuracy ends at 88.5 %.
    """
    out.mkdir(parents=True, exist_ok=True)
    snapshots = {step: out / f"step{step:06d}.safetensors" for step in steps}
    if all(path.exists() for path in snapshots.values()):
        return {float(step): path for step, path in snapshots.items()}
    model = untrained(seed).to(memory_format=torch.channels_last)
    task = ClassifierTask(model, digits(data_dir, train=True, draws=15, seed=10),
                          digits(data_dir, train=False, seed=11), snapshots)  # fmt: skip
    last = max(steps)
    # One step more than asked for: the last snapshot is taken when that step begins.
    config = TrainConfig(
        steps=last + 1, batch_size=64, optimizer="adam", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, warmup=0.0,
        final_lr=1.0, clip=0.0, eval_every=max(1, last // 10), patience=0, checkpoint_every=500, seed=seed,
    )  # fmt: skip
    started = time.perf_counter()
    with make_reporter(None) as reporter:
        reporter.stage("classifier", config.steps)
        history = train(task, config, checkpoint=out / "classifier.safetensors", resume=True,
                        progress=lambda step, total, figures: reporter.advance(step, figures))  # fmt: skip
    look = history.to_dict()["rows"][-1]
    seconds = time.perf_counter() - started
    print(f"classifier: {last:,} steps, accuracy {look['accuracy']:.4f}, {seconds:.0f} s", flush=True)
    if look["dead_outputs"]:
        print(f"warning: {look['dead_outputs']:.0f} outputs are off everywhere: take another --seed", flush=True)
    return {float(step): path for step, path in snapshots.items()}
