"""Samples beside reconstructions, from a network's first layer to its last, by what t is told of z.

    python benchmarks/layers.py [--contexts 128 512 linear] [--steps 900] [--data-dir DIR] [--layers stem ... head]

An early layer determines nearly the whole picture: there samples have to come as near to their image as
reconstructions do, and what lies between is t's own error. A small network on coloured digits (those that come with
scikit-learn; MNIST's from --data-dir), one autoencoder for all, a t of the preset "quick" for each layer and each
context: a number is the width of H(z), "linear" puts the linear Gaussian first. Prints the squared error of pixels in
[-1, 1] and the cosine of z, of reconstructions and of samples, on held-out images, and MSC eq. 19 above its floor.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from harness import statement
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from posthoc_inn import Interpreter
from posthoc_inn.config import FitConfig, ImageSpec, preset
from posthoc_inn.plugins import get_plugin_manager

SPEC = ImageSpec(size=(28, 28), mean=(0.5,), std=(0.5,))
LAYERS = ["stem", "stage1", "stage2", "stage3", "pool", "head"]


def digits(data_dir: str | None, *, train: bool, count: int) -> Dataset[tuple[Tensor, int]]:
    """Return coloured digits."""
    manager = get_plugin_manager()
    if data_dir is None:
        data = manager.build_dataset("color-digits", train=train)
    else:
        data = manager.build_dataset("color-mnist", data_dir, train=train, seed=int(train))
    return Subset(data, range(min(count, len(data))))


def classifier(images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """Return a small network, trained on images (N, 3, 28, 28) in [0, 1]."""
    model = get_plugin_manager().build_backbone("small_cnn", weights=None, num_classes=10).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        index = torch.randint(len(images), (64,), generator=generator)
        loss = F.cross_entropy(model(images[index] * 2 - 1), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def config_of(context: str) -> FitConfig:
    """Return the preset with another context: the width of H(z), or "linear"."""
    quick = preset("quick").replace(linear_fallback=False)
    if context == "linear":
        return quick.replace(flow=quick.flow.replace(kind="linear+affine"))
    width = int(context)
    return quick.replace(context_dim=width, flow=quick.flow.replace(context_dim=width))


@torch.no_grad()
def measured(interpreter: Interpreter, images: Tensor) -> dict[str, float]:
    """Return errors of pixels in [-1, 1] and cosines of z, of reconstructions and of one sample an image."""
    pipeline = interpreter.pipeline
    z = pipeline.features(images)
    found = {}
    made = {
        "reconstruction": pipeline.decode(pipeline.encode(images)[0]),
        "sample": interpreter.sample(images, n=1)[:, 0],
    }
    for name, pictures in made.items():
        found[f"{name} error"] = 4 * float((pictures - images).square().mean())
        again = pipeline.features(pictures)
        found[f"{name} cosine"] = float(F.cosine_similarity(again.flatten(1), z.flatten(1)).mean())
    return found


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data-dir", default=None, help="MNIST as torchvision keeps it; digits of scikit-learn without"
    )
    parser.add_argument("--contexts", nargs="+", default=["128", "512", "linear"])
    parser.add_argument("--layers", nargs="+", default=LAYERS, choices=LAYERS)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--autoencoder-steps", type=int, default=3000)
    parser.add_argument("--classifier-steps", type=int, default=1500)
    parser.add_argument("--images", type=int, default=20_000)
    arguments = parser.parse_args()
    data, aside = (digits(arguments.data_dir, train=t, count=n) for t, n in ((True, arguments.images), (False, 1000)))
    pictures, labels = torch.stack([x for x, _ in data]), torch.tensor([y for _, y in data])
    kept, kept_labels = torch.stack([x for x, _ in aside]), torch.tensor([y for _, y in aside])
    model = classifier(pictures, labels, arguments.classifier_steps)
    with torch.no_grad():
        right = float((model(kept * 2 - 1).argmax(1) == kept_labels).float().mean())
    print(statement(torch.get_num_threads()))
    print(f"{len(pictures):,} images; the network is right on {100 * right:.1f} % of {len(kept)} others\n")
    names = (
        *("layer", "numbers", "context", "error: reconstruction", "sample", "ratio", "cosine: reconstruction"),
        *("sample", "explained by v, above the floor", "nats", "seconds of t"),
    )
    print("| " + " | ".join(names) + " |\n" + "| --- " * len(names) + "|")
    autoencoder = None
    for layer in arguments.layers:
        for context in arguments.contexts:
            interpreter = Interpreter(
                model, layer, spec=SPEC, autoencoder=autoencoder, preset=config_of(context), seed=0
            ).fit(pictures, held_out=kept, steps=arguments.steps, autoencoder_steps=arguments.autoencoder_steps,
                  progress=False)  # fmt: skip
            autoencoder = interpreter.autoencoder_
            found, metrics = measured(interpreter, kept), interpreter.metrics_
            count = torch.Size(interpreter.probe_.z_shape).numel()
            cells = [
                layer,
                f"{count:,}",
                context,
                *(f"{found[k]:.4f}" for k in ("reconstruction error", "sample error")),
            ]
            cells += [f"{found['sample error'] / found['reconstruction error']:.2f}"]
            cells += [f"{found[k]:.3f}" for k in ("reconstruction cosine", "sample cosine")]
            cells += [f"{100 * metrics['explained_by_invariances']['above_floor']:.1f} %"]
            cells += [f"{metrics['likelihood']['held_out']:.1f}", f"{metrics['seconds']['t']:.0f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"\n{(time.perf_counter() - started) / 60:.0f} minutes")
