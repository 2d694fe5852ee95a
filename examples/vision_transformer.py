"""What a small vision transformer keeps in its class token, in the mean of its tokens, and in its patches.

    python examples/vision_transformer.py --data-dir DIR [--out runs/vision-transformer] [--layer blocks.2] [--smoke]

DIR holds CIFAR-10: `train` and `test` with a folder of images a class, or torchvision's `cifar-10-batches-py`. A ViT
of timm (patches of 4 px, 4 blocks of width 96) is trained on it first. One autoencoder serves all readings of the
layer; each has a t. Every stage goes on where it was stopped when the script is started again. Needs timm.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cifar_resnet import CLASSES, SPEC, cifar10, moved
from jpeg import to_jpeg
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from posthoc_inn import Interpreter
from posthoc_inn.config import TrainConfig
from posthoc_inn.drawing import Column, grid
from posthoc_inn.images import apply_spec
from posthoc_inn.progress import make_reporter
from posthoc_inn.training import train

READINGS = {"class": "class token", "mean": "mean of all tokens", "patches": "patches"}
"""What of the layer's tokens is explained -> what it is called."""
DRAWN, SAMPLES = 5, 2
"""Images and samples of each reading in the picture."""


def transformer() -> VisionTransformer:
    """Return the network, for images (B, 3, 32, 32) normalised by `SPEC`."""
    return VisionTransformer(
        img_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3, num_classes=len(CLASSES), drop_path_rate=0.05
    )


class Loss(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(self.network(apply_spec(images, SPEC)), classes, label_smoothing=0.1)


class Task:
    """Cross-entropy on images that are mirrored and moved at random."""

    name = "classifier"

    def __init__(self, network: nn.Module, data: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> None:
        self.module, self.data, self.held = Loss(network), data, held_out

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        images, classes = self.data
        index = torch.randint(len(images), (128,), generator=generator)
        return moved(images[index], generator), classes[index]

    def held_out(self) -> dict[str, float]:
        loss = hits = 0.0
        for images, classes in zip(self.held[0].split(500), self.held[1].split(500), strict=True):
            logits = self.module.network(apply_spec(images.float() / 255, SPEC))
            loss += float(F.cross_entropy(logits, classes, reduction="sum"))
            hits += float((logits.argmax(1) == classes).sum())
        return {"loss": loss / len(self.held[1]), "accuracy": hits / len(self.held[1])}


def trained(data: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], out: Path, *, steps: int) -> nn.Module:
    """Return the network, trained for `steps`, and read from `out` where it was trained before."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"transformer{steps}.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformer()
    task = Task(network, data, held_out)
    if not file.exists():
        config = TrainConfig(
            steps=steps, batch_size=128, optimizer="adamw", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05,
            warmup=0.1, final_lr=0.01, clip=1.0, eval_every=max(1, steps // 5), patience=0, checkpoint_every=100,
        )  # fmt: skip
        started = time.perf_counter()
        with make_reporter(None) as reporter:
            reporter.stage("transformer", steps)
            train(task, config, checkpoint=out / f"training{steps}.safetensors", resume=True,
                  progress=lambda step, total, figures: reporter.advance(step, figures))  # fmt: skip
        print(f"transformer: {steps:,} steps, {(time.perf_counter() - started) / 60:.1f} minutes", flush=True)
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, str(file))
    network.load_state_dict(load_file(file))
    network.eval()
    with torch.no_grad():
        print(f"transformer: right on {100 * task.held_out()['accuracy']:.1f} % of the test images", flush=True)
    return network


def figures(metrics: dict[str, Any]) -> dict[str, float]:
    """Return what the table shows, of a fit's figures on held-out images."""
    faithful, rebuilt, explained = (
        metrics[name] for name in ("faithfulness", "autoencoder", "explained_by_invariances")
    )
    return {
        "agreement": faithful["agreement"],
        "agreement_error": faithful["agreement_error"],
        "similarity": faithful["similarity"],
        "between": faithful["similarity_between"],
        "rebuilt_agreement": rebuilt["agreement"],
        "rebuilt_similarity": rebuilt["similarity"],
        "above_floor": explained["above_floor"],
        "above_floor_error": explained["above_floor_error"],
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """Return one row a reading."""
    heads = ["z", "agreement: reconstructions", "samples", "cosine: reconstructions", "samples", "different images",
             "share of v above the floor"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for reading, f in found.items():
        cells = [
            READINGS[reading],
            f"{100 * f['rebuilt_agreement']:.0f} %",
            f"{100 * f['agreement']:.1f} ± {100 * f['agreement_error']:.1f} %",
            *(f"{f[name]:.3f}" for name in ("rebuilt_similarity", "similarity", "between")),
            f"{100 * f['above_floor']:.1f} ± {100 * f['above_floor_error']:.1f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def fitted(
    model: nn.Module, reading: str, layer: str, data: tuple[Tensor, Tensor], autoencoder: nn.Module | None, out: Path,
    **steps: int,
) -> Interpreter:  # fmt: skip
    """Return t of one reading of the layer, read from `out` where it is there; the first one trains the autoencoder."""
    bundle = out / "bundle"
    if bundle.exists():
        return Interpreter.load(bundle, model=model)
    interpreter = Interpreter(
        model, layer, tokens=reading, spec=SPEC, autoencoder=autoencoder, image_size=32, preset="quick"
    )
    train_images, test_images = data
    begun = (out / "checkpoints").exists()
    interpreter.fit(train_images, held_out=test_images, out=out, resume=begun, **steps)
    (out / "metrics.json").write_text(json.dumps(interpreter.metrics_, indent=1))
    interpreter.save(bundle)
    return interpreter


def picture(pictures: dict[str, Tensor], images: Tensor, rebuilt: Tensor) -> bytes:
    """Draw an image a row: the image, its reconstruction, and samples of each reading."""
    columns = [Column(images, "input"), Column(rebuilt, "recon-\nstructed")]
    for reading, drawn in pictures.items():
        columns.append(Column(drawn[:, 0], READINGS[reading], gap=True, rule=True, span=SAMPLES))
        columns += [Column(drawn[:, k]) for k in range(1, SAMPLES)]
    return to_jpeg(grid(columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/vision-transformer"))
    parser.add_argument("--layer", default="blocks.2", help="blocks.0 to blocks.3; the last one feeds the class token")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to see that it runs")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    smoke, out = arguments.smoke, arguments.out
    images, classes = cifar10(arguments.data_dir, train=True, count=400 if smoke else 50_000)
    test, test_classes = cifar10(arguments.data_dir, train=False, count=200 if smoke else 2000)
    model = trained(
        (images, torch.tensor(classes)), (test, torch.tensor(test_classes)), out, steps=10 if smoke else 1500
    )
    steps = {"steps": 10, "autoencoder_steps": 10} if smoke else {}
    data = images[:16_000], test
    found, pictures, autoencoder = {}, {}, None
    for reading in READINGS:
        where = out / f"{arguments.layer}-{reading}"
        interpreter = fitted(model, reading, arguments.layer, data, autoencoder, where, **steps)
        autoencoder = interpreter.autoencoder_
        found[reading] = figures(json.loads((where / "metrics.json").read_text()))
        shown = test[:DRAWN].float() / 255
        pictures[reading] = interpreter.sample(shown, n=SAMPLES, seed=1)
        rebuilt = interpreter.pipeline.reconstructions(shown)
    (out / "vision-transformer.jpg").write_bytes(picture(pictures, shown, rebuilt))
    text = table(found)
    (out / "vision-transformer.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
