"""MSC 4.3 on CIFAR-10: of two networks, the one that saw painted images keeps shapes, the other one textures.

    python texture_bias.py --data-dir DIR --weights FILE --judge FILE --painter FILE [--out runs/texture-bias] [--smoke]

DIR holds CIFAR-10 as cifar_resnet.py reads it. `--weights` are a ResNet-20's: two copies are trained on, for as many
steps, one on photographs, one on the same photographs painted in the textures of others (Johnson et al. 2016, with
the features of an ImageNet SqueezeNet 1.0, `--painter`), so that texture tells it nothing of the class. One
autoencoder, trained by the painter's features and by neither network, serves both; each has a t at its last pooled
layer.

Both are asked about test photographs as they are, painted (the shape is left), and cut into shuffled patches (the
texture is left). Of the samples, a ResNet-56 (`--judge`), which had no part in any of this, says the class. Written to
--out: table.md, figures.json, samples.jpg. Every stage goes on where it was stopped when it is started again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cifar_resnet import SPEC, cifar10, moved, trained
from jpeg import to_jpeg
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posthoc_inn import Interpreter
from posthoc_inn.concepts import StyleTransfer
from posthoc_inn.config import AutoencoderConfig, TrainConfig, preset
from posthoc_inn.drawing import Column, grid
from posthoc_inn.images import apply_spec
from posthoc_inn.progress import Reporter, make_reporter
from posthoc_inn.sweep import model_sweep
from posthoc_inn.training import train

NETWORKS = {"photographs": "trained on photographs", "painted": "trained on painted ones"}
PROBES = {"as they are": "photograph", "painted": "painted: shape", "shuffled": "shuffled: texture"}
"""What the networks are asked about, and what the picture calls it."""
PATCHES = 4
"""Patches along a side of a shuffled image."""
SAMPLES, REFINED, SHOWN = 4, 20, 6
"""Samples of each image; gradient steps of the refined ones; images in the picture."""


def painted(images: Tensor, textures: Tensor, painter: Path, steps: int, file: Path, reporter: Reporter) -> Tensor:
    """Return uint8 images (N, 3, 32, 32), each painted in one of the textures (T, 3, 32, 32), in turn.

    Images come in turn of their classes, and so do textures: those of a class meet all textures, hence the shift.
    """
    if not file.exists():
        stylize = StyleTransfer.from_backbone("squeezenet1_0", weights=str(painter), steps=steps)
        owner = (torch.arange(len(images)) + torch.arange(len(images)) // len(textures)) % len(textures)
        out = torch.empty_like(images)
        reporter.stage("painting", len(textures))
        for k, texture in enumerate(textures):
            mine = owner == k
            done = stylize(images[mine].float() / 255, texture.float() / 255)
            out[mine] = (done * 255).round().to(torch.uint8)
            reporter.advance(k + 1, {})
        save_file({"images": out}, str(file))
    return load_file(file)["images"]


def shuffled(images: Tensor, seed: int = 0) -> Tensor:
    """Return images (N, C, H, W) cut into patches, which lie in another order in each.

    >>> shuffled(torch.arange(16.0).view(1, 1, 4, 4)).sum()
    tensor(120.)
    """
    generator = torch.Generator().manual_seed(seed)
    side = images.shape[-1] // PATCHES
    patches = F.unfold(images, side, stride=side)
    order = torch.stack([torch.randperm(patches.shape[2], generator=generator) for _ in images])
    reordered = patches.gather(2, order[:, None].expand_as(patches))
    return F.fold(reordered, images.shape[-2:], side, stride=side)


# ---- the two networks


class Loss(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        # The network ends in a softmax.
        return F.nll_loss(self.network(apply_spec(images, SPEC)).clamp_min(1e-8).log(), classes)


class Task:
    """Cross-entropy on images that are mirrored and moved by up to four pixels at random."""

    name = "classifier"

    def __init__(self, network: nn.Module, data: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> None:
        self.module, self.data, self.held = Loss(network), data, held_out

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        images, classes = self.data
        index = torch.randint(len(images), (128,), generator=generator)
        return moved(images[index], generator), classes[index]

    def held_out(self) -> dict[str, float]:
        said = self.module.network(apply_spec(self.held[0].float() / 255, SPEC))
        return {"loss": float(F.nll_loss(said.clamp_min(1e-8).log(), self.held[1]))}


def trained_on(
    network: nn.Module, data: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], steps: int, out: Path,
    reporter: Reporter, name: str,
) -> nn.Module:  # fmt: skip
    """Return a copy of the network after `steps` more steps on `data`."""
    network, file = copy.deepcopy(network), out / f"network-{name}.safetensors"
    if not file.exists():
        config = TrainConfig(
            steps=steps, batch_size=128, lr=2e-3, weight_decay=0.01, warmup=0.1, clip=1.0,
            eval_every=max(1, steps // 5), patience=0, checkpoint_every=100,
        )  # fmt: skip
        reporter.stage(f"network, {name}", steps)
        checkpoint = out / f"network-{name}-training.safetensors"
        train(Task(network, data, held_out), config, checkpoint=checkpoint, resume=True,
              progress=lambda step, total, figures: reporter.advance(step, figures))  # fmt: skip
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, str(file))
    network.load_state_dict(load_file(file))
    return network.eval()


# ---- what is measured


@torch.no_grad()
def right(network: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Return the share of images (N, 3, 32, 32) in [0, 1] of which the network says the class."""
    said = torch.cat([network(apply_spec(part, SPEC)).argmax(1) for part in images.split(500)])
    return float((said == classes).double().mean())


def told(share: float, count: int) -> str:
    """Return a share of `count` images in per cent, with its standard error."""
    return f"{100 * share:.0f} ± {100 * math.sqrt(share * (1 - share) / count):.0f} %"


def samples_of(interpreter: Interpreter, images: Tensor, refine: int) -> Tensor:
    """Return samples (N, SAMPLES, 3, 32, 32) for images, refined by so many gradient steps."""
    with warnings.catch_warnings():
        # That shuffled images are unlike those of the fit is what they are for.
        warnings.simplefilter("ignore")
        parts = [interpreter.sample(part, n=SAMPLES, seed=0, refine=refine) for part in images.split(50)]
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="of a ResNet-20")
    parser.add_argument("--judge", type=Path, required=True, help="of a ResNet-56")
    parser.add_argument("--painter", type=Path, required=True, help="of ImageNet SqueezeNet 1.0")
    parser.add_argument("--out", type=Path, default=Path("runs/texture-bias"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--textures", type=int, default=20)
    parser.add_argument("--network-steps", type=int, default=800)
    parser.add_argument("--autoencoder-steps", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=2500, help="of each t")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--smoke", action="store_true", help="few images, few steps: to see that it runs")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    smoke, out = arguments.smoke, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    count, test_count, textures = (120, 40, 3) if smoke else (arguments.images, 500, arguments.textures)
    images, listed = cifar10(arguments.data_dir, train=True, count=count)
    test, test_listed = cifar10(arguments.data_dir, train=False, count=test_count + textures)
    classes, test_classes = torch.tensor(listed), torch.tensor(test_listed[:test_count])
    test, sources = test[:test_count], test[test_count:]
    judge = trained(arguments.judge, 56)
    with make_reporter(None) as reporter:
        every = painted(
            torch.cat([images, test]), sources, arguments.painter, 3 if smoke else 200, out / "painted.safetensors",
            reporter,
        )  # fmt: skip
        strokes, test_strokes = every[: len(images)], every[len(images) :]
        steps = 3 if smoke else arguments.network_steps
        start, networks = trained(arguments.weights), {}
        for name, (seen, held) in {"photographs": (images, test), "painted": (strokes, test_strokes)}.items():
            networks[name] = trained_on(start, (seen, classes), (held, test_classes), steps, out, reporter, name)
        perceptual = {"perceptual": "squeezenet1_0", "perceptual_weights": str(arguments.painter)}
        fit = {"autoencoder_steps": 10, "steps": 10} if smoke else {
            "autoencoder_steps": arguments.autoencoder_steps, "steps": arguments.steps,
        }  # fmt: skip
        model_sweep(
            {name: (network, "pool") for name, network in networks.items()}, torch.cat([images, strokes]),
            held_out=torch.cat([test, test_strokes]), out=out / "fits", fit=fit, reporter=reporter, spec=SPEC,
            preset=preset("default"), image_size=32, seed=0,
            autoencoder=AutoencoderConfig.of_map(32, width=8 if smoke else 32, **perceptual),
        )  # fmt: skip
    at = {x: Interpreter.load(out / "fits" / x / "bundle", model=networks[x]) for x in NETWORKS}
    probes = {"as they are": test / 255, "painted": test_strokes / 255, "shuffled": shuffled(test / 255)}
    heads = ["network", "images", "the network says the class", "the judge of the images", "of reconstructions",
             "of samples", "of refined samples"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    found: dict[str, Any] = {}
    columns: list[Column] = []
    for probe, asked in probes.items():
        columns.append(Column(asked[:SHOWN], PROBES[probe], gap=bool(columns), rule=bool(columns), span=1))
        for name, interpreter in at.items():
            drawn = {refine: samples_of(interpreter, asked, refine) for refine in (0, REFINED)}
            twice = test_classes.repeat_interleave(SAMPLES)
            shares = {
                "network": right(networks[name], asked, test_classes),
                "judge": right(judge, asked, test_classes),
                "reconstructions": right(judge, interpreter.pipeline.reconstructions(asked), test_classes),
                "samples": right(judge, drawn[0].flatten(0, 1), twice),
                "refined": right(judge, drawn[REFINED].flatten(0, 1), twice),
            }
            found.setdefault(name, {})[probe] = shares
            cells = " | ".join(told(share, len(test)) for share in shares.values())
            lines.append(f"| {NETWORKS[name]} | {probe} | {cells} |")
            columns += [
                Column(drawn[REFINED][:SHOWN, k], NETWORKS[name].replace("trained ", "") if k == 0 else "",
                       span=2 if k == 0 else 1) for k in range(2)
            ]  # fmt: skip
    (out / "samples.jpg").write_bytes(to_jpeg(grid(columns)))
    (out / "figures.json").write_text(json.dumps(found, indent=1))
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
