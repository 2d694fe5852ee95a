"""Table 1 and figure 2 of MSC on a ResNet-20: what three inversions make of its layers, from the first to the softmax.

    python examples/inversion_by_depth.py --data-dir DIR --weights FILE --judge FILE [--out runs/inversion] [--smoke]

DIR holds CIFAR-10: `train` and `test` with a folder of images a class, or torchvision's `cifar-10-batches-py`. The
weights are those of ResNet-20 and, to measure Fréchet distances over, ResNet-56, as akamaster/pytorch_resnet_cifar10
publishes them. One autoencoder for all depths, a t and a decoder on z for each. Every stage goes on where it was
stopped when it is started again. About an hour on one core that nothing else uses.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from cifar_resnet import SPEC, cifar10, trained
from jpeg import to_jpeg
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posthoc_inn import Interpreter
from posthoc_inn.analysis.inversion import ON_Z, OPTIMIZED, RECONSTRUCTIONS, SAMPLES, Inversion, inversion
from posthoc_inn.config import preset
from posthoc_inn.drawing import Column, grid, to_png
from posthoc_inn.features import LayerExtractor
from posthoc_inn.images import apply_spec
from posthoc_inn.progress import make_reporter
from posthoc_inn.sweep import layer_sweep

LAYERS = ["layer1", "layer2", "layer3", "linear", "softmax"]
"""From the first stage to the output; `linear` gives the logits."""
STOPPED_BY = 1000
"""Test images that say when the training of t stops; all others are inverted, or the reference."""
CALLED = {"linear": "logits"}
DRAWN = 4
"""Images in the picture."""


def measured(
    layer: str, model: nn.Module, data: tuple[Tensor, Tensor], network: dict[str, Any], out: Path, **settings: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the figures and the pictures of one layer; read them where they are there."""
    file = out / f"{layer}.json"
    if file.exists() and json.loads(file.read_text())["settings"] == settings:
        return json.loads(file.read_text()), load_file(out / f"{layer}.safetensors")
    interpreter = Interpreter.load(out.parent / "fits" / layer / "bundle", model=model)
    train, images = data
    started = time.perf_counter()
    with make_reporter(None) as reporter:
        shared = {"out": out / layer, "reporter": reporter, **network}
        result: Inversion = inversion(interpreter.pipeline, images, train, **settings, **shared)
    print(f"\n{layer}: {(time.perf_counter() - started) / 60:.1f} minutes\n{result.table()}\n", flush=True)
    pictures = {m.name: m.pictures.contiguous() for m in result.methods} | {"images": result.inputs.contiguous()}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{layer}.png").write_bytes(to_png(result.figure()))
    save_file(pictures, out / f"{layer}.safetensors")
    facts = {"settings": settings, "minutes": (time.perf_counter() - started) / 60, **result.to_dict()}
    file.write_text(json.dumps(facts, indent=1))
    return facts, pictures


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the figures of all depths, one row a depth, the inversions side by side."""
    names = {RECONSTRUCTIONS: "reconstruction", SAMPLES: "t", ON_Z: "decoder", OPTIMIZED: "pixels"}
    parts = [
        ("Fréchet", "distance", 2),
        ("Fréchet of few", "distance_of_few", 2),
        ("cosine", "similarity", 3),
        ("agreement", "agreement", 3),
        ("diversity", "diversity", 2),
    ]
    lines = []
    for title, key, digits in parts:
        shown = [n for n in names if not (key == "distance" and n == OPTIMIZED)]
        lines += [f"| {title} | {' | '.join(names[n] for n in shown)} |", "|" + " --- |" * (len(shown) + 1)]
        for layer, facts in found.items():
            by_name = {m["name"]: m[key] for m in facts["methods"]}
            lines.append(f"| {CALLED.get(layer, layer)} | {' | '.join(f'{by_name[n]:.{digits}f}' for n in shown)} |")
        lines.append("")
    return "\n".join(lines)


def picture(pictures: dict[str, dict[str, Tensor]]) -> bytes:
    """Draw figure 2: an image a row; two samples of t, the decoder on z and optimised pixels of each layer."""
    first = next(iter(pictures.values()))
    rows = slice(0, DRAWN)
    columns = [Column(first["images"][rows], "input"), Column(first[RECONSTRUCTIONS][rows, 0], "recon-\nstructed")]
    for layer, found in pictures.items():
        columns += [
            Column(found[SAMPLES][rows, 0], f"{CALLED.get(layer, layer)}:\nt", gap=True, rule=True),
            Column(found[SAMPLES][rows, 1], "t"),
            Column(found[ON_Z][rows, 0], "decoder"),
            Column(found[OPTIMIZED][rows, 0], "pixels"),
        ]
    return to_jpeg(grid(columns, inch=0.55), quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="of the ResNet-20 that is explained")
    parser.add_argument("--judge", type=Path, required=True, help="weights of ResNet-56, for Fréchet distances")
    parser.add_argument("--out", type=Path, default=Path("runs/inversion"))
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS, help="which depths; all by default")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to see that it runs")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    smoke, out = arguments.smoke, arguments.out
    model, judge = trained(arguments.weights), LayerExtractor(trained(arguments.judge, 56), "pool")
    train, _ = cifar10(arguments.data_dir, train=True, count=400 if smoke else 16_000)
    test, _ = cifar10(arguments.data_dir, train=False, count=200 if smoke else 2000)
    apart = 100 if smoke else STOPPED_BY
    quick = preset("quick")
    config = quick.replace(conditioner_width=128, flow_training=quick.flow_training.replace(batch_size=128))
    steps = {"steps": 10, "autoencoder_steps": 10} if smoke else {"steps": 1500, "autoencoder_steps": 6000}
    layer_sweep(
        model,
        arguments.layers,
        train,
        held_out=test[:apart],
        out=out / "fits",
        spec=SPEC,
        image_size=32,
        preset=config,
        fit=steps,
        seed=0,
    )
    network = {"features": lambda x: judge.features(apply_spec(x, SPEC)), "name": "ResNet-56's average pool"}
    settings = (
        {"steps": 10, "few": 8, "optimization_steps": 5}
        if smoke
        else {"steps": 1000, "few": 16, "optimization_steps": 100}
    )
    found, pictures = {}, {}
    for layer in arguments.layers:
        found[layer], pictures[layer] = measured(
            layer, model, (train, test[apart:]), network, out / "inversions", **settings
        )
    (out / "inversion.jpg").write_bytes(picture(pictures))
    first = next(iter(found.values()))
    text = table(found) + (
        f"\nFréchet distance of the inverted images themselves: {first['floor']:.2f} for {first['images']} images, "
        f"{first['floor_of_few']:.2f} for {first['few']}; cosine of z and agreement of different images: "
        + "; ".join(f"{k} {v['similarity_between']:.2f}, {v['agreement_between']:.2f}" for k, v in found.items())
    )
    (out / "inversion.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
