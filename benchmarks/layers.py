"""Samples beside reconstructions, from a network's first layer to its last, by what t is told of z.

    python benchmarks/layers.py [--contexts auto 128 512 linear] [--steps 900] [--data-dir DIR] [--layers stem ... head]

An early layer determines nearly the whole picture: there samples have to come as near to their image as
reconstructions do, and what lies between is t's own error. A small network on coloured digits (those that come with
scikit-learn; MNIST's from --data-dir), one autoencoder for all, a t of the preset "quick" for each layer and each
context: "auto" is the preset as it is, which may start from the picture that z shows; a number is the width of H(z)
without that; "linear" puts the linear Gaussian first. Prints the squared error of pixels in [-1, 1] and the cosine of
z, of reconstructions and of samples, on held-out images, and MSC eq. 19 above its floor. "Noise" is the error of
decoded latents with the encoder's own noise: no t can be nearer than that.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import statement
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from posthoc_inn import Interpreter
from posthoc_inn.autoencoders import ConvAutoencoder
from posthoc_inn.config import AutoencoderConfig, FitConfig, ImageSpec, preset
from posthoc_inn.plugins import get_plugin_manager

SPEC = ImageSpec(size=(28, 28), mean=(0.5,), std=(0.5,))
NETWORK, AUTOENCODER = "network.safetensors", "autoencoder.safetensors"
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


def config_of(context: str, picture_steps: int) -> FitConfig:
    """Return the preset with another context: "auto" for its own, the width of H(z), or "linear"."""
    quick = preset("quick").replace(linear_fallback=False)
    if context == "auto":
        steps = {"steps": picture_steps, "eval_every": max(1, picture_steps // 2)}
        return quick.replace(picture_training=quick.picture_training.replace(**steps))
    quick = quick.replace(pictures="never")
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
    mean, std = pipeline.encode(images)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)).to(mean)
    made = {
        "reconstruction": pipeline.decode(mean),
        "noise": pipeline.decode(mean + std * noise),
        "sample": interpreter.sample(images, n=1)[:, 0],
    }
    for name, pictures in made.items():
        found[f"{name} error"] = 4 * float((pictures - images).square().mean())
        again = pipeline.features(pictures)
        found[f"{name} cosine"] = float(F.cosine_similarity(again.flatten(1), z.flatten(1)).mean())
    return found


def parts_of(arguments: argparse.Namespace, images: Tensor, labels: Tensor) -> tuple[nn.Module, ConvAutoencoder | None]:
    """Return the network and the autoencoder of an earlier run, or a network that is trained now and None."""
    keep: Path | None = arguments.keep
    if keep is not None and (keep / NETWORK).exists():
        model = get_plugin_manager().build_backbone("small_cnn", weights=str(keep / NETWORK), num_classes=10)
    else:
        model = classifier(images, labels, arguments.classifier_steps)
    if keep is None:
        return model, None
    keep.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), keep / NETWORK)
    if not (keep / AUTOENCODER).exists():
        return model, None
    quick = preset("quick")
    config = AutoencoderConfig(size=28, latent_dim=quick.latent_dim, width=quick.autoencoder_width)
    autoencoder = ConvAutoencoder(config)
    autoencoder.load_state_dict(load_file(keep / AUTOENCODER))
    return model, autoencoder.eval()


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data-dir", default=None, help="MNIST as torchvision keeps it; digits of scikit-learn without"
    )
    parser.add_argument("--contexts", nargs="+", default=["auto", "128", "512", "linear"])
    parser.add_argument("--layers", nargs="+", default=LAYERS, choices=LAYERS)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--autoencoder-steps", type=int, default=3000)
    parser.add_argument("--classifier-steps", type=int, default=1500)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--picture-steps", type=int, default=preset("quick").picture_training.steps)
    parser.add_argument("--keep", type=Path, default=None, help="where network and autoencoder are kept for a next run")
    arguments = parser.parse_args()
    data, aside = (
        digits(arguments.data_dir, train=t, count=n) for t, n in ((True, arguments.images), (False, arguments.held_out))
    )
    pictures, labels = torch.stack([x for x, _ in data]), torch.tensor([y for _, y in data])
    kept, kept_labels = torch.stack([x for x, _ in aside]), torch.tensor([y for _, y in aside])
    model, autoencoder = parts_of(arguments, pictures, labels)
    with torch.no_grad():
        right = float((model(kept * 2 - 1).argmax(1) == kept_labels).float().mean())
    print(statement(torch.get_num_threads()))
    print(f"{len(pictures):,} images; the network is right on {100 * right:.1f} % of {len(kept)} others\n")
    names = (
        *("layer", "numbers", "t starts from", "error: reconstruction", "noise", "sample", "ratio"),
        "cosine: reconstruction",
        *("sample", "explained by v, above the floor", "nats", "seconds of t"),
    )
    print("| " + " | ".join(names) + " |\n" + "| --- " * len(names) + "|")
    for layer in arguments.layers:
        for context in arguments.contexts:
            config = config_of(context, arguments.picture_steps)
            interpreter = Interpreter(
                model, layer, spec=SPEC, autoencoder=autoencoder, preset=config, seed=0
            ).fit(pictures, held_out=kept, steps=arguments.steps, autoencoder_steps=arguments.autoencoder_steps,
                  progress=False)  # fmt: skip
            autoencoder = interpreter.autoencoder_
            if arguments.keep is not None and not (arguments.keep / AUTOENCODER).exists():
                kept_as = {name: value.contiguous() for name, value in autoencoder.state_dict().items()}
                save_file(kept_as, arguments.keep / AUTOENCODER)
            found, metrics = measured(interpreter, kept), interpreter.metrics_
            count = torch.Size(interpreter.probe_.z_shape).numel()
            cells = [
                layer,
                f"{count:,}",
                f"{context}: {interpreter.pipeline.flow.flow.config.kind}",
                *(f"{found[k]:.4f}" for k in ("reconstruction error", "noise error", "sample error")),
            ]
            cells += [f"{found['sample error'] / found['reconstruction error']:.2f}"]
            cells += [f"{found[k]:.3f}" for k in ("reconstruction cosine", "sample cosine")]
            cells += [f"{100 * metrics['explained_by_invariances']['above_floor']:.1f} %"]
            cells += [
                f"{metrics['likelihood']['held_out']:.1f}",
                f"{metrics['seconds']['t'] + metrics['seconds'].get('pictures', 0):.0f}",
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"\n{(time.perf_counter() - started) / 60:.0f} minutes")
