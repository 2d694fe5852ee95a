"""Two sketches define a concept (IIN 3.2): faces painted in circles and in hatching, and a factor for the strokes.

    python examples/two_sketches.py --data-dir DIR --weights FILE [--out runs/two-sketches] [--smoke] [--threads 1]

DIR holds CelebA's images.zip and attributes.csv, FILE is SqueezeNet 1.0 trained on ImageNet: its features paint, and it
is the network that is attached to. Prints how well the factor, and all the others, tell the two kinds of strokes in
faces that had no part in training, and what swapping the factor does. Goes on where it was stopped when it is started
again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from celeba_faces import SIZE, faces, factor_probes, for_few_faces
from torch import Tensor

from posthoc_inn import Interpreter
from posthoc_inn.analysis.editing import swap
from posthoc_inn.concepts import RANDOM, SketchSource, StyleTransfer
from posthoc_inn.drawing import columns_of, grid, to_png
from posthoc_inn.plugins import get_plugin_manager

STROKES = "strokes"


def circles(side: int = 128) -> Tensor:
    """Return a sketch of circles, (3, side, side), black on white."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    drawn = torch.rand(70, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([side, side, 8.0])
    ink = torch.zeros(side, side, dtype=torch.bool)
    for left, top, radius in drawn.tolist():
        ink |= (((x - left) ** 2 + (y - top) ** 2).sqrt() - 4 - radius).abs() < 1.2
    return (~ink).float().expand(3, -1, -1)


def hatching(side: int = 128) -> Tensor:
    """Return a sketch of straight strokes, crossed here and there, (3, side, side), black on white."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    ink = ((x + y) % 7 - 3).abs() < 1.5
    return (~(ink | (((x - y) % 28 - 3).abs() < 1.5))).float().expand(3, -1, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--weights", required=True, help="SqueezeNet 1.0, trained on ImageNet")
    parser.add_argument("--out", type=Path, default=Path("runs/two-sketches"))
    parser.add_argument("--images", type=int, default=400, help="faces painted, each in both ways")
    parser.add_argument("--autoencoder-steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    smoke, out = arguments.smoke, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    data = faces(arguments.data_dir, train=True, few=60 if smoke else 2000)
    aside = faces(arguments.data_dir, train=False, few=12 if smoke else 300)
    paint = StyleTransfer.from_backbone("squeezenet1_0", weights=arguments.weights, **({"steps": 3} if smoke else {}))
    source = SketchSource(
        data, circles(), hatching(), name=STROKES, stylize=paint, images=20 if smoke else arguments.images,
        cache=out / "painted",
    )  # fmt: skip
    manager = get_plugin_manager()
    model = manager.build_backbone("squeezenet1_0", weights=arguments.weights)
    config = for_few_faces(eval_every=10 if smoke else 100)
    spec = manager.image_spec("squeezenet1_0", weights=arguments.weights).replace(size=(SIZE, SIZE), crop=1.0)
    interpreter = Interpreter(model, "features.12", spec=spec, preset=config, seed=0)
    few = {"steps": 5, "autoencoder_steps": 10, "concept_steps": 20}
    interpreter.fit(
        data, held_out=aside, concepts=source, out=out / "fit", resume=(out / "fit").is_dir(), evaluate=False,
        **(few if smoke else {"steps": 100, "autoencoder_steps": arguments.autoencoder_steps, "concept_steps": 1000}),
    )  # fmt: skip

    pipeline, concepts = interpreter.pipeline, interpreter.concept_model
    kept = torch.stack([aside[k][0] for k in range(min(len(aside), 100))])
    # Other networks of the same sketches: nothing that e was trained with has painted these.
    painted = [paint(kept, sketch) for sketch in (circles(), hatching())]
    painted_train = torch.stack([source.extra[k] for k in range(len(source.extra))])
    a, b = (pipeline.encode(pictures)[0] for pictures in painted)
    known = torch.cat([pipeline.encode(part)[0] for part in painted_train.split(200)])
    rows, held_out = ((x, (torch.arange(len(x)) >= len(x) // 2).long()) for x in (known, torch.cat([a, b])))
    other = torch.arange(len(a)).roll(1)
    swapped = swap(concepts, b, a[other], STROKES)
    found = {"sizes": dict(zip(concepts.factor_names, concepts.factor_dims, strict=True))}
    told = factor_probes(concepts, STROKES, rows, held_out)
    found["factor tells the strokes"] = told["probe_factor"]
    found["all other factors do"] = told["probe_rest"]
    found["latent does"] = told["probe_latent"]
    targets = {"circles": pipeline.decode(a), "hatching": pipeline.decode(b)}
    for name, edited in (("strokes", swapped), ("random factor", swap(concepts, b, a[other], RANDOM))):
        pictures = pipeline.decode(edited)
        far = {k: (pictures - t).square().flatten(1).mean(1) for k, t in targets.items()}
        found[f"hatched face, {name} of another in circles: nearer to itself in circles"] = float(
            (far["circles"] < far["hatching"]).double().mean()
        )
    for name, value in found.items():
        print(f"{name}: {value if isinstance(value, dict) else f'{100 * value:.1f} %'}")
    (out / "two_sketches.json").write_text(json.dumps(found, indent=1))
    shown = slice(0, 6)
    photograph = pipeline.encode(kept[shown])[0]
    on_photograph = [swap(concepts, photograph, z[other[shown]], STROKES) for z in (a, b)]
    columns = [
        kept[shown], painted[0][shown], targets["circles"][shown], painted[1][shown], targets["hatching"][shown],
        pipeline.decode(swapped[shown]), pipeline.decode(photograph), *map(pipeline.decode, on_photograph),
    ]  # fmt: skip
    titles = (
        "face", "in\ncircles", "decoded", "hatched", "decoded", "hatched,\nother's circles", "face,\ndecoded",
        "other's\ncircles", "other's\nhatching",
    )  # fmt: skip
    figure = grid(columns_of(torch.stack(columns, dim=1), headings=titles, gaps=(1, 3, 5, 6)))
    (out / "strokes.png").write_bytes(to_png(figure, dpi=100))


if __name__ == "__main__":
    main()
