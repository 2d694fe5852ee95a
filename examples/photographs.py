"""What networks for photographs keep of them: SqueezeNet on animals, a ResNet on CIFAR-10, a face network on CelebA.

    python photographs.py animals --data-dir DIR --more ZIP --weights FILE     ImageNet SqueezeNet 1.0, 64 px
    python photographs.py cifar   --data-dir DIR --weights FILE --judge FILE   ResNet-20, judged by a ResNet-56; 32 px
    python photographs.py faces   --data-dir DIR --weights FILE --judge FILE   MobileFaceNet, SqueezeNet judges; 64 px

One autoencoder for all layers, then a t for each: half of `--minutes` for the former, the other half shared by the
latter, in steps that a plan of the fit says fit into them. Every stage goes on where it was stopped when it is started
again. Written to --out: table.md and figures.json, on held-out photographs, and samples.jpg.

What is lost on the way from a photograph to a sample is told in three steps: by the size (the photograph at the
autoencoder's, and back), by the autoencoder, by t. Of each step: how often the network says what it says of the
photograph, and the cosine of the layer's z. `--latent vector` is the autoencoder of smaller pictures, for comparison.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jpeg import to_jpeg
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models import squeezenet1_0

from posthoc_inn import Interpreter
from posthoc_inn.analysis import Faithfulness, frechet_distance
from posthoc_inn.config import AutoencoderConfig, FitConfig, ImageSpec, preset
from posthoc_inn.drawing import Column, grid
from posthoc_inn.features import LayerExtractor
from posthoc_inn.fit import FitRequest
from posthoc_inn.images import apply_spec, resize
from posthoc_inn.progress import make_reporter
from posthoc_inn.sweep import layer_sweep
from posthoc_inn.training.perceptual import FeatureDistance
from posthoc_inn.weights import load_weights

IMAGENET = ImageSpec(size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SEES = ["features.1", "features.5", "features.10", "features.12"]
"""Layers of SqueezeNet 1.0 that pictures are compared by: the last before each halving, and the last."""
SAMPLES, REFINED = 4, 20
"""Samples of each photograph that are measured; gradient steps of the refined ones."""
SHOWN = 6
"""Photographs in the picture."""


@dataclass
class Subject:
    """What is explained, and by what.

    Attributes:
        model: The network.
        spec: What it wants of images.
        size: Of the autoencoder's pictures, in pixels.
        layers: Early to late; the last one's t comes first, with the autoencoder.
        data: Photographs to learn from.
        held_out: Photographs to measure on, (N, 3, H, W) in [0, 1].
        judge: What Fréchet distances are over: its name, and features (B, F) of pictures; None for none.
        verdicts: What an independent classifier says of pictures (B,), or None.
        compare: Perceptual distance of pictures and images by a network that nothing was trained with, or None.
    """

    model: nn.Module
    spec: ImageSpec
    size: int
    layers: tuple[str, ...]
    data: Any
    held_out: Tensor
    judge: tuple[str, Callable[[Tensor], Tensor]] | None = None
    verdicts: Callable[[Tensor], Tensor] | None = None
    compare: Callable[[Tensor, Tensor], Tensor] | None = None


# ---- photographs of any size


class Photographs(Dataset[Tensor]):
    """Squares (3, side, side) in [0, 1] of photographs.

    Args:
        files: Bytes of image files.
        side: Pixels.
        views: Squares of each: 1 is the largest in the middle; of more, each is drawn once, from three quarters of the
            shorter side upwards, every second one mirrored.
    """

    def __init__(self, files: Sequence[bytes], side: int, views: int = 1) -> None:
        self.files, self.side, self.views = files, side, views

    def __len__(self) -> int:
        return len(self.files) * self.views

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        chance = random.Random(index)
        with Image.open(io.BytesIO(self.files[index % len(self.files)])) as file:
            image = file.convert("RGB")
        width, height = image.size
        part = min(width, height) * (chance.uniform(0.75, 1.0) if self.views > 1 else 1.0)
        x, y = (chance.random() if self.views > 1 else 0.5 for _ in range(2))
        left, top = x * (width - part), y * (height - part)
        box = (left, top, left + part, top + part)
        square = image.resize((self.side, self.side), Image.Resampling.BICUBIC, box=box)
        pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(self.side, self.side, 3)
        mirrored = self.views > 1 and chance.random() < 0.5
        return (pixels.flip(1) if mirrored else pixels).permute(2, 0, 1) / 255


def files_of(place: Path) -> list[bytes]:
    """Return the image files of a directory with one folder a class, or of a zip file, in the order of their names."""
    ends = (".jpg", ".jpeg", ".png")
    if place.is_dir():
        return [p.read_bytes() for p in sorted(place.rglob("*")) if p.name.lower().endswith(ends)]
    with zipfile.ZipFile(place) as archive:
        return [archive.read(name) for name in sorted(archive.namelist()) if name.lower().endswith(ends)]


# ---- the three subjects


def animals(arguments: argparse.Namespace) -> Subject:
    """Return ImageNet SqueezeNet 1.0, and photographs of animals; a quarter of these is held out."""
    files = files_of(arguments.data_dir)
    random.Random(0).shuffle(files)
    kept, learned = files[: len(files) // 4], files[len(files) // 4 :]
    learned += [file for place in arguments.more for file in files_of(place)]
    if arguments.smoke:
        kept, learned = kept[:20], learned[:40]
    held_out = Photographs(kept, 224)
    return Subject(
        squeezenet(arguments.weights),
        IMAGENET,
        64,
        tuple(arguments.layers or ("features.12", "classifier")),
        Photographs(learned, 224, views=2 if arguments.smoke else arguments.views),
        torch.stack([held_out[k] for k in range(len(held_out))]),
    )


def squeezenet(weights: Path) -> nn.Module:
    """Return torchvision's SqueezeNet 1.0 with the weights of a file."""
    model = squeezenet1_0()
    load_weights(model, weights)
    return model.eval()


def cifar(arguments: argparse.Namespace) -> Subject:
    """Return a ResNet-20 and CIFAR-10; a ResNet-56 judges."""
    from cifar_resnet import SPEC, cifar10, trained

    few = arguments.smoke
    data, _ = cifar10(arguments.data_dir, train=True, count=300 if few else 50_000)
    held_out, _ = cifar10(arguments.data_dir, train=False, count=60 if few else 2000)
    judge = verdicts = None
    if arguments.judge is not None:
        network = trained(arguments.judge, 56)
        pool = LayerExtractor(network, "pool")
        judge = "a ResNet-56's average pool", lambda x: pool.features(apply_spec(x, SPEC))
        verdicts = torch.no_grad()(lambda x: network(apply_spec(x, SPEC)).argmax(1))
    layers = tuple(arguments.layers or ("layer1", "layer2", "pool"))
    return Subject(
        trained(arguments.weights), SPEC, 32, layers, data, held_out.float() / 255, judge, verdicts
    )  # fmt: skip


def face_photographs(arguments: argparse.Namespace) -> Subject:
    """Return MobileFaceNet and CelebA; an ImageNet SqueezeNet, which saw none of it, compares pictures."""
    from celeba_faces import Mirrored, faces, pixels_of
    from mobile_face_net import load_face_net

    few = arguments.smoke
    data = faces(arguments.data_dir, train=True, few=100 if few else None)
    held_out = pixels_of(faces(arguments.data_dir, train=False, few=30 if few else None)).float() / 255
    judge = compare = None
    if arguments.judge is not None:
        network = squeezenet(arguments.judge)
        larger = lambda x: apply_spec(resize(x, (128, 128)), IMAGENET.replace(size=None))  # noqa: E731
        pooled = LayerExtractor(network, "features.12")
        judge = "an ImageNet SqueezeNet's features", lambda x: pooled.features(larger(x)).mean((2, 3))
        compare = torch.no_grad()(FeatureDistance(network, larger, SEES))
    layers = tuple(arguments.layers or ("network.blocks.4", "network.blocks.14", "network.linear1"))
    spec = ImageSpec(size=(64, 64))
    return Subject(
        load_face_net(arguments.weights), spec, 64, layers, Mirrored(data), held_out, judge, compare=compare
    )  # fmt: skip


SUBJECTS = {"animals": animals, "cifar": cifar, "faces": face_photographs}


# ---- what is trained


def steps_for(subject: Subject, given: dict[str, Any], minutes: float, out: Path, share: float) -> dict[str, int]:
    """Return the steps that fit into so many minutes, as a plan says; kept in `out`, since no two plans are equal."""
    file = out / "steps.json"
    if not file.exists():
        request = FitRequest(data=subject.data, held_out=subject.held_out, steps=1000, autoencoder_steps=1000)
        seconds = Interpreter(subject.model, subject.layers[-1], **given).prepare(request).plan().seconds
        of_t = seconds["t"] + seconds.get("faithful", 0.0)
        found = {
            "autoencoder_steps": max(20, round(1000 * 60 * minutes * share / seconds["autoencoder"])),
            "steps": max(20, round(1000 * 60 * minutes * (1 - share) / len(subject.layers) / of_t)),
        }
        file.write_text(json.dumps(found))
    return dict(json.loads(file.read_text()))


def configuration(arguments: argparse.Namespace, size: int) -> tuple[FitConfig, AutoencoderConfig | None]:
    """Return how t and the autoencoder look."""
    usual = preset("default").replace(
        latent=arguments.latent, faithful=arguments.faithful, map_faithful=arguments.faithful
    )
    if usual.map_flow is not None and arguments.flow_width:
        usual = usual.replace(map_flow=usual.map_flow.replace(width=arguments.flow_width))
    looks = {"eval_every": 10} if arguments.smoke else {}
    # The larger the pictures, the fewer a step: their number of steps is what a short training lacks.
    usual = usual.replace(
        flow_training=usual.flow_training.replace(**looks),
        autoencoder_training=usual.autoencoder_training.replace(batch_size=64 if size < 48 else 32),
    )
    if arguments.latent == "vector":
        return usual, None
    wanted: dict[str, Any] = {"width": 8 if arguments.smoke else arguments.width}
    if arguments.channels is not None:
        wanted["latent_channels"] = arguments.channels
    if arguments.perceptual_weight is not None:
        wanted["perceptual"] = "model" if arguments.perceptual_weight else ""
        wanted["perceptual_weight"] = arguments.perceptual_weight
        wanted["perceptual_share"] = arguments.perceptual_share
    return usual, AutoencoderConfig.of_map(size, **wanted)


# ---- what is measured


def refined(interpreter: Interpreter, images: Tensor) -> tuple[Faithfulness, Tensor]:
    """Return how the network sees samples once gradient steps have moved them, and these, (N, SAMPLES, C, H, W)."""
    found = interpreter.analyze("samples", images, images=len(images), samples=SAMPLES, refine=REFINED)
    return cast(Faithfulness, found.refinement.after), found.pictures


def figures(subject: Subject, interpreter: Interpreter, count: int) -> dict[str, Any]:
    """Return what is told of one layer: the three steps as the fit measured them, and what this script adds."""
    metrics = interpreter.metrics_
    found = {name: metrics[name] for name in ("resolution", "autoencoder", "faithfulness", "explained_by_invariances")}
    faith, nearer = refined(interpreter, subject.held_out[:count])
    found |= {"refined": faith.to_dict(), "likelihood": metrics["likelihood"]}
    side = (subject.size, subject.size)
    images = resize(subject.held_out, side).clamp(0, 1)
    made = {
        "reconstructions": interpreter.pipeline.reconstructions(subject.held_out),
        "samples": torch.cat([interpreter.sample(part, n=1)[:, 0] for part in subject.held_out.split(100)]),
    }
    for name, pictures in made.items():
        extra: dict[str, float] = {"error": float(4 * (pictures - images).square().mean())}
        if subject.judge is not None:
            judge, features = subject.judge
            extra["frechet"] = frechet_distance(images, pictures, features=features, name=judge).value
        if subject.verdicts is not None:
            parts = zip(images.split(200), pictures.split(200), strict=True)
            extra["judge"] = float(
                torch.cat([subject.verdicts(a) == subject.verdicts(b) for a, b in parts]).double().mean()
            )
        if subject.compare is not None:
            parts = list(zip(images.split(100), pictures.split(100), strict=True))
            extra["distance"] = sum(float(subject.compare(b, a)) * len(a) for a, b in parts) / len(images)
        found[name] = extra
    if subject.verdicts is not None:
        # A network can be led to a class by what nobody else sees: does another network see it too?
        own = subject.verdicts(images[:count]).repeat_interleave(SAMPLES)
        said = torch.cat([subject.verdicts(part) for part in nearer.flatten(0, 1).split(200)])
        found["refined"]["judge"] = float((said == own).double().mean())
    return found


def table(found: dict[str, dict[str, Any]], subject: Subject) -> str:
    """Return one row a layer."""
    heads = ["layer", "agreement: resized", "reconstructions", "samples", "refined", "cosine: resized",
             "reconstructions", "samples", "refined", "different images", "error: reconstructions", "samples",
             "share of v above the floor"]  # fmt: skip
    more = {"frechet": "Fréchet distance", "judge": "agreement for the judge", "distance": "perceptual distance"}
    first = next(iter(found.values()))
    known = [name for name in more if name in first["samples"]]
    columns = [(of, name) for name in known for of in ("reconstructions", "samples", "refined") if name in first[of]]
    heads += [f"{more[name]}: {of}" for of, name in columns]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    steps = ("resolution", "autoencoder", "faithfulness", "refined")
    for layer, f in found.items():
        cells = [layer]
        cells += [
            f"{100 * f[s]['agreement']:.1f} ± {100 * f[s]['agreement_error']:.1f} %"
            if f[s] and math.isfinite(f[s]["agreement"]) else "-" for s in steps
        ]  # fmt: skip
        cells += [f"{f[s]['similarity']:.3f}" if f[s] else "-" for s in steps]
        cells += [f"{f['faithfulness']['similarity_between']:.3f}"]
        cells += [f"{f[name]['error']:.4f}" for name in ("reconstructions", "samples")]
        cells += [f"{100 * f['explained_by_invariances']['above_floor']:.1f} %"]
        cells += [f"{f[of][name]:.3f}" for of, name in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(at: dict[str, Interpreter], subject: Subject) -> bytes:
    """Draw a photograph a row: itself, at the autoencoder's size, its reconstruction, and samples of each layer."""
    images = subject.held_out[:: max(1, len(subject.held_out) // SHOWN)][:SHOWN]
    some = next(iter(at.values()))
    side = (subject.size, subject.size)
    columns = [Column(resize(images, side).clamp(0, 1), f"photo,\n{subject.size} px")]
    columns.append(Column(some.pipeline.reconstructions(images).clamp(0, 1), "recon-\nstructed"))
    for layer, interpreter in at.items():
        drawn = interpreter.sample(images, n=2, seed=1)
        columns.append(Column(drawn[:, 0], layer, gap=True, rule=True, span=3))
        columns.append(Column(drawn[:, 1]))
        columns.append(Column(interpreter.sample(images, n=1, seed=1, refine=REFINED)[:, 0], "refined"))
    return to_jpeg(grid(columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="of the network that is explained")
    parser.add_argument("--judge", type=Path, default=None, help="weights of the network that judges pictures")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="animals: more photographs to learn from")
    parser.add_argument("--views", type=int, default=8, help="animals: squares of each photograph")
    parser.add_argument("--layers", nargs="+", default=None, help="early to late")
    parser.add_argument("--latent", choices=("map", "vector"), default="map")
    parser.add_argument("--channels", type=int, default=None, help="of a map")
    parser.add_argument("--width", type=int, default=32, help="of the autoencoder of maps")
    parser.add_argument("--flow-width", type=int, default=None, help="of t over maps")
    parser.add_argument(
        "--faithful", type=float, default=1.0, help="steps by t's samples, as a share of t's; 0 for none"
    )
    parser.add_argument("--perceptual-weight", type=float, default=None, help="0 for squared error alone")
    parser.add_argument("--perceptual-share", type=float, default=0.25, help="of a batch that is compared by it")
    parser.add_argument("--minutes", type=float, default=240, help="of training, all in all")
    parser.add_argument("--share", type=float, default=0.5, help="of these that the autoencoder gets")
    parser.add_argument("--out", type=Path, default=Path("runs/photographs"))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--smoke", action="store_true", help="few photographs, few steps: to see that it runs")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    out = arguments.out / f"{arguments.subject}-{arguments.latent}"
    out.mkdir(parents=True, exist_ok=True)
    subject = SUBJECTS[arguments.subject](arguments)
    config, autoencoder = configuration(arguments, subject.size)
    given: dict[str, Any] = {"spec": subject.spec, "image_size": subject.size, "preset": config, "seed": 0}
    steps = {"autoencoder_steps": 20, "steps": 20}
    if not arguments.smoke:
        steps = steps_for(subject, given | {"autoencoder": autoencoder}, arguments.minutes, out, arguments.share)
    print(f"{len(subject.data):,} photographs to learn from, {len(subject.held_out):,} held out; {steps}", flush=True)
    started = time.perf_counter()
    found: dict[str, Any] = {"steps": steps}
    # The first fit trains the autoencoder: the last layer, whose z is small.
    with make_reporter(None) as reporter:
        layer_sweep(
            subject.model, subject.layers[::-1], subject.data, held_out=subject.held_out, out=out / "layers", fit=steps,
            autoencoder=autoencoder, reporter=reporter, **given,
        )  # fmt: skip
    found["minutes"] = (time.perf_counter() - started) / 60
    at = {x: Interpreter.load(out / "layers" / x / "bundle", model=subject.model) for x in subject.layers}
    found["layers"] = {x: figures(subject, at[x], 20 if arguments.smoke else 100) for x in subject.layers}
    (out / "figures.json").write_text(json.dumps(found, indent=1))
    text = table(found["layers"], subject)
    (out / "table.md").write_text(text + "\n")
    (out / "samples.jpg").write_bytes(picture(at, subject))
    print(text, f"\n{found['minutes']:.0f} minutes of training in this run")


if __name__ == "__main__":
    main()
