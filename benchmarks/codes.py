"""Vector or map, and which couplings: what t makes of each code after equal seconds, on CIFAR-10 and a ResNet-20.

    python benchmarks/codes.py --data-dir DIR --weights FILE --judge FILE [--layer pool] [--seconds 300]
                               [--autoencoder-seconds 600] [--cases vector map-affine map-conv map-transformer]
                               [--code-noise 0 0.1 0.3]

DIR holds CIFAR-10 as examples/cifar_resnet.py reads it, the weights are those of its ResNet-20 and of a ResNet-56,
the judge of Fréchet distances. One autoencoder a code, all trained for the same seconds, then a t for each case
likewise; steps are what a plan of the fit says fit into these, or those of --steps. Held-out figures: the error of
reconstructions and of samples (pixels in [-1, 1]), the share of each for which the network says what it says of the
image, the cosine of z, the Fréchet distance of samples, and nats a value of a pixel: a bound of -log p(image | z)
that holds for every code alike, from the decoder's error, t's nats and the entropy of the noise of codes. With
--code-noise reconstructions are those of codes with this noise, which is what t's samples can reach.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from harness import statement
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from cifar_resnet import SPEC, cifar10, trained

from posthoc_inn import Interpreter
from posthoc_inn.analysis import frechet_distance
from posthoc_inn.config import AutoencoderConfig, FitConfig, preset
from posthoc_inn.features import LayerExtractor
from posthoc_inn.fit import FitRequest
from posthoc_inn.images import apply_spec

CASES = ("vector", "map-affine", "map-conv", "map-linear+conv", "map-transformer", "map")
COLUMNS = (
    *("case", "D", "steps of E and D, t", "parameters of t, M", "nats", "nats a value"),
    *("error: reconstruction", "sample", "agreement: reconstruction", "sample"),
    *("cosine: reconstruction", "sample", "Fréchet of samples"),
)


def config_of(case: str, name: str) -> FitConfig:
    """Return the preset called `name`, with the couplings that a case names; "map" is the preset's own t."""
    usual = preset(name).replace(linear_fallback=False, latent="vector" if case == "vector" else "map")
    kind = case.removeprefix("map-")
    if kind == "affine":
        return usual.replace(map_flow=usual.flow, map_flow_training=usual.flow_training)
    if kind in ("conv", "linear+conv", "transformer"):
        of_maps = usual if usual.map_flow is not None else preset("quick")
        assert of_maps.map_flow is not None
        return usual.replace(
            map_flow=of_maps.map_flow.replace(kind=kind, dropout=usual.flow.dropout),
            map_flow_training=of_maps.map_flow_training,
        )
    return usual


def fitted(
    model: nn.Module, layer: str, config: FitConfig, data: tuple[Tensor, Tensor], seconds: tuple[float, float],
    autoencoder: nn.Module | AutoencoderConfig | None, given_steps: tuple[int | None, int | None],
) -> tuple[Interpreter, tuple[int, int]]:  # fmt: skip
    """Return a fit in which E and D, and t, take so many seconds each, or the steps that are given; and their steps."""
    given = {"spec": SPEC, "image_size": 32, "preset": config, "seed": 0, "autoencoder": autoencoder}
    steps = [n or 0 for n in given_steps]
    if None in given_steps:
        request = FitRequest(data=data[0], held_out=data[1], steps=1000, autoencoder_steps=1000)
        plan = Interpreter(model, layer, **given).prepare(request).plan()
        steps = [n or max(20, round(1000 * s / max(plan.seconds.get(k, 1e9), 1e-6)))
                 for k, s, n in zip(("autoencoder", "t"), seconds, given_steps, strict=True)]  # fmt: skip
    interpreter = Interpreter(model, layer, **given)
    interpreter.fit(data[0], held_out=data[1], autoencoder_steps=steps[0], steps=steps[1], progress=False)
    return interpreter, (steps[0], steps[1])


@torch.no_grad()
def row_of(
    case: str, interpreter: Interpreter, steps: tuple[int, int], judge: LayerExtractor, kept: Tensor
) -> list[str]:
    """Return the figures of one case."""
    metrics: dict[str, Any] = interpreter.metrics_
    # Codes with noise are what t knows: what bounds its samples are their reconstructions.
    quality = metrics.get("code_noise") or metrics["autoencoder"]
    faith, nats = metrics["faithfulness"], metrics["likelihood"]
    images = kept.float() / 255
    samples = torch.cat([interpreter.sample(part, n=1)[:, 0] for part in kept.split(250)])
    values = images[0].numel()
    bound = 0.5 * (1 + math.log(2 * math.pi * quality["error"])) + (nats["held_out"] - nats["noise_floor"]) / values
    distance = frechet_distance(
        images, samples, features=lambda x: judge.features(apply_spec(x, SPEC)), name="ResNet-56's average pool"
    )
    flow = interpreter.flow_
    return [
        case, str(flow.flow.config.dim), f"{steps[0] or 'as above'}, {steps[1]:,}",
        f"{sum(p.numel() for p in flow.parameters()) / 1e6:.2f}", f"{nats['held_out']:.1f}", f"{bound:.3f}",
        f"{quality['error']:.4f}", f"{4 * float((samples - images).square().mean()):.4f}",
        f"{100 * quality['agreement']:.1f} %", f"{100 * faith['agreement']:.1f} %",
        f"{quality['similarity']:.3f}", f"{faith['similarity']:.3f}", f"{distance.value:.2f}",
    ]  # fmt: skip


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="of the ResNet-20 that is explained")
    parser.add_argument("--judge", type=Path, required=True, help="of a ResNet-56, for Fréchet distances")
    parser.add_argument("--layer", default="pool")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES[:3])
    parser.add_argument("--preset", default="quick", help="whose t is taken")
    parser.add_argument("--seconds", type=float, default=300.0, help="of t")
    parser.add_argument("--autoencoder-seconds", type=float, default=600.0)
    parser.add_argument("--steps", type=int, default=None, help="of t, instead of seconds")
    parser.add_argument("--autoencoder-steps", type=int, default=None, help="instead of seconds")
    parser.add_argument(
        "--code-noise", type=float, nargs="+", default=[0.0], help="shares: a row of each case with each"
    )
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--held-out", type=int, default=2000, help="images")
    parser.add_argument("--perceptual", default="model", help="what E and D over maps are also trained by; '' for none")
    parser.add_argument("--out", type=Path, default=None, help="keep and take up autoencoders here")
    arguments = parser.parse_args()
    model, judge = trained(arguments.weights), LayerExtractor(trained(arguments.judge, 56), "pool")
    train, _ = cifar10(arguments.data_dir, train=True, count=arguments.images)
    kept, _ = cifar10(arguments.data_dir, train=False, count=arguments.held_out)
    print(statement(torch.get_num_threads()), flush=True)
    started = time.perf_counter()
    print("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|", flush=True)
    known: dict[str, nn.Module] = {}
    for case, noise in itertools.product(arguments.cases, arguments.code_noise):
        code = "vector" if case == "vector" else "map"
        wanted: nn.Module | AutoencoderConfig | None = known.get(code)
        if wanted is None and code == "map" and arguments.perceptual:
            wanted = AutoencoderConfig.of_map(32, width=32, perceptual=arguments.perceptual)
        file = None if arguments.out is None else arguments.out / code
        if code not in known and file is not None and file.exists():
            wanted = known[code] = Interpreter.load(file, model=model).pipeline.autoencoder
        seconds, config = (arguments.autoencoder_seconds, arguments.seconds), config_of(case, arguments.preset)
        config, given_steps = config.replace(code_noise=noise), (arguments.autoencoder_steps, arguments.steps)
        interpreter, steps = fitted(model, arguments.layer, config, (train, kept), seconds, wanted, given_steps)
        steps = (0, steps[1]) if isinstance(wanted, nn.Module) else steps
        known[code] = interpreter.autoencoder_
        if file is not None and not file.exists():
            interpreter.save(file)
        print(
            "| "
            + " | ".join(row_of(f"{case}, noise {noise:g}" if noise else case, interpreter, steps, judge, kept))
            + " |",
            flush=True,
        )
    print(f"\n{(time.perf_counter() - started) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
